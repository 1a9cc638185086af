"""Label accuracy as on i-CLEVR: the k most likely labels of an image with k labels, and how many of them are right.

Two ways of averaging circulate under one name; both are here, by name.

Shape suffixes: B batch, L labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from generative.metrics.catalogue import Metric, Table, Variant
from generative.metrics.means import MeanMetrics

TABLE = Table("label accuracy", 20)
CASE = "label set"
# The same classifier bounds what it says of generated images: on real ones, and on what a frozen autoencoder makes of them.
REAL, RECONSTRUCTED = "real", "reconstruction"
BOUNDS = (REAL, RECONSTRUCTED, f"{REAL}_held_out", f"{REAL}_more_objects")  # real images of label sets never trained on
ASSISTED = Variant("assisted", ", assisted", Table("label accuracy, assisted", 21))  # a classifier helps in drawing
METRICS = (
    Metric(
        "label_accuracy", "Label accuracy", "", "higher", 3, TABLE, case=CASE, bounds=BOUNDS, leading=True,
        variants=(ASSISTED,), main_of=("generate",), against="recall",
        definition="of each image with k labels the k most likely labels are taken; right ones over all labels of all images "
        "(pooled); of equal scores the label with the smaller number counts as the more likely",
    ),
    Metric(
        "label_accuracy_per_image", "Label accuracy per image", "", "higher", 3, TABLE, case=CASE, bounds=BOUNDS,
        variants=(ASSISTED,),
        definition="mean over the images of the share of right labels among the image's k most likely ones",
    ),
    Metric(
        "exact_sets", "Exact sets", "", "higher", 3, TABLE, case=CASE, bounds=BOUNDS,
        definition="share of the images whose k most likely labels are exactly their labels",
    ),
)  # fmt: skip


class LabelScores(NamedTuple):
    """The scores of a set of images.

    Attributes:
        pooled: Right labels over all labels, in [0, 1].
        per_image: Mean of the images' shares of right labels, in [0, 1].
        exact: Share of the images with all labels right, in [0, 1].
    """

    pooled: float
    per_image: float
    exact: float


def recognised_labels(scores_BL: Tensor, labels_BL: Tensor) -> Tensor:
    """Return which labels of an image are among its k most likely ones, k being the number of its labels.

    Args:
        scores_BL: (B, L) scores, larger for more likely labels; a label whose score is NaN is never recognised.
        labels_BL: (B, L) multi-hot labels; k may differ between the rows.

    Returns:
        (B, L) booleans, true only where a label is.
    """
    present = labels_BL > 0
    order = scores_BL.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)
    position = order.argsort(dim=1)  # of each label in its row's order
    is_likely = position < present.sum(dim=1, keepdim=True)
    return present & is_likely & ~scores_BL.isnan()


def label_scores(recognised_BL: Tensor, labels_BL: Tensor) -> LabelScores:
    """Average over images.

    Args:
        recognised_BL: (B, L) what ``recognised_labels`` returns.
        labels_BL: (B, L) multi-hot labels, at least one in each row.
    """
    num_right, num_labels = _counts(recognised_BL, labels_BL)
    pooled, per_image = num_right.sum() / num_labels.sum(), (num_right / num_labels).mean()
    return LabelScores(pooled.item(), per_image.item(), (num_right == num_labels).double().mean().item())


def _counts(recognised_BL: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    # On the CPU: Apple's MPS has no float64.
    return recognised_BL.sum(1).cpu().double(), (labels_BL > 0).sum(1).cpu().double()


class LabelAccuracyMetrics(MeanMetrics):
    """Collects the scores of real or generated images over batches and ranks; images without labels are left out.

    Args:
        output: Name of what is measured, the part of the metrics' names after the slash.

    Attributes:
        num_images: Images of all ranks behind the last ``compute``.
    """

    metrics = METRICS

    def __init__(self, output: str) -> None:
        self.output = output
        super().__init__()

    def reset(self, device: torch.device | str = "cpu") -> None:
        super().reset(device)
        self.num_labels = 0

    def update(self, scores_BL: Tensor, labels_BL: Tensor) -> None:
        """Take in a batch.

        Args:
            scores_BL: (B, L) scores, larger for more likely labels.
            labels_BL: (B, L) multi-hot labels.
        """
        num_right, num_labels = _counts(recognised_labels(scores_BL, labels_BL), labels_BL)
        labelled = num_labels > 0
        num_right, num_labels = num_right[labelled], num_labels[labelled]
        self._means.add("label_accuracy", num_right / num_labels, num_labels)
        self._means.add("label_accuracy_per_image", num_right / num_labels)
        self._means.add("exact_sets", (num_right == num_labels).double())

    def compute(self) -> dict[str, float]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Returns:
            ``label_accuracy/<output>``, ``label_accuracy_per_image/<output>`` and ``exact_sets/<output>``; empty when no
            rank took in an image with labels.
        """
        means = {name: mean for name, mean in self._means.compute().items() if mean.weight}
        if not means:
            return {}
        self.num_images = round(means["exact_sets"].weight)
        self.num_labels = round(means["label_accuracy"].weight)
        return {f"{name}/{self.output}": mean.value for name, mean in means.items()}
