"""Whether a restored image still shows what the clean one does: the class, or the set of labels, that a classifier sees.

Only images count that the classifier reads rightly when they are clean, so that its own faults are not the restorer's.

Shape suffixes: B batch, L labels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from generative.metrics.catalogue import Metric, Table
from generative.metrics.means import MeanMetrics

BY_DEGRADATION = Table("labels kept, by degradation", 26)
BY_VISIBILITY = Table("labels kept, by what the hole hides", 27)
VISIBILITIES = ("no_object", "visible", "half_hidden", "hidden")  # numbered by ``visibility``
JUDGED = (
    "the likeliest class, where each image has one, and else the set of the labels with a probability above 0.5; of the "
    "images that the classifier reads rightly when they are clean"
)
HIDES = (
    "hidden: all pixels that show it lie in the hole; half_hidden: some do; visible: none does; images with both known and "
    "unknown pixels alone"
)
METRICS = (
    Metric(
        "label_kept", "Label kept", "", "higher", 4, Table("labels kept", 25), leading=True, placeholder="<output>",
        definition=f"share of the restored images in which a classifier sees the same as in the clean image: {JUDGED}",
    ),
    Metric(
        "label_kept_by_degradation", "Label kept, by degradation", "", "higher", 4, BY_DEGRADATION,
        case="output and degradation", placeholder="<output>/<degradation>",
        definition="label_kept of the images that met a degradation, by the name of the step of a mixture",
    ),
    Metric(
        "label_kept_by_visibility", "Label kept, by visibility", "", "higher", 4, BY_VISIBILITY, case="output and object",
        placeholder="<output>/<visibility>",
        definition=f"label_kept of the images by their object that shows least; {HIDES}",
    ),
    Metric(
        "object_kept_by_visibility", "Object kept, by visibility", "", "higher", 4, BY_VISIBILITY, case="output and object",
        placeholder="<output>/<visibility>",
        definition=f"share of the objects of the same images whose label is still seen in the restored image; {HIDES}",
    ),
)  # fmt: skip


def judged_labels(scores_BL: Tensor, has_one_label: bool) -> Tensor:
    """Return what a classifier sees.

    Args:
        scores_BL: (B, L) probabilities of the labels.
        has_one_label: Whether the labels are classes, of which each image has one.

    Returns:
        (B, L) booleans: the likeliest class, of equal ones the first; or all labels more likely than not. A NaN is neither.
    """
    if not has_one_label:
        return scores_BL > 0.5
    best_B1 = scores_BL.nan_to_num(nan=-torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(scores_BL, dtype=torch.bool).scatter(1, best_B1, True) & ~scores_BL.isnan()


def visibility(objects_BLHW: Tensor, hole_B1HW: Tensor) -> Tensor:
    """Tell what a hole leaves of objects.

    Args:
        objects_BLHW: (B, L, H, W) booleans, true where a pixel shows the label's object.
        hole_B1HW: (B, 1, H, W) booleans, true where the pixel is missing.

    Returns:
        (B, L) int64 numbers of ``VISIBILITIES``; an object that shows in no pixel at all is none.
    """
    in_hole, outside = ((objects_BLHW & part).flatten(2).any(2) for part in (hole_B1HW, ~hole_B1HW))
    names = {(False, True): "visible", (True, True): "half_hidden", (True, False): "hidden"}
    number_BL = torch.zeros_like(in_hole, dtype=torch.int64)
    for (hides, shows), name in names.items():
        number_BL[(in_hole == hides) & (outside == shows)] = VISIBILITIES.index(name)
    return number_BL


class LabelKeptMetrics(MeanMetrics):
    """Collects what a classifier sees in clean and restored images, over batches and ranks.

    Attributes:
        num_images: Images of all ranks behind the last ``compute``.
        clean_accuracy: Share of them that the classifier reads rightly when they are clean.
        counts: Number of images, or objects, behind each value of the last ``compute``.
    """

    metrics = METRICS

    def reset(self, device: torch.device | str = "cpu") -> None:
        super().reset(device)
        self.clean_accuracy = float("nan")
        self.counts: dict[str, int] = {}

    def update(
        self,
        outputs: Mapping[str, Tensor],
        clean_BL: Tensor,
        labels_BL: Tensor,
        index_B: Tensor,
        degradations: Sequence[str] = (),
        visibility_BL: Tensor | None = None,
    ) -> Tensor:
        """Take in a batch.

        Args:
            outputs: (B, L) booleans by output, what the classifier sees in restored images; floats with NaN for an image that
                diverged, in which nothing can be seen.
            clean_BL: (B, L) booleans, what it sees in the clean ones.
            labels_BL: (B, L) multi-hot labels.
            index_B: (B,) int64 indices of the images.
            degradations: What befell each of the B images, or nothing where all met the same.
            visibility_BL: (B, L) what ``visibility`` tells; all of an image is 0 where it has no hole. None where nothing is
                known.

        Returns:
            (B,) booleans, true for the images that count.
        """
        right_B = (clean_BL == (labels_BL > 0)).all(1)
        self._means.add("clean", right_B.float())
        for output, judged_BL in outputs.items():
            kept_B = (judged_BL == clean_BL).all(1).float().masked_fill(judged_BL.isnan().any(1), torch.nan)
            self.add(f"label_kept/{output}", kept_B, index_B, right_B)
            for name in sorted(set(degradations)):
                rows_B = right_B & torch.tensor([each == name for each in degradations], device=right_B.device)
                self._means.add(f"label_kept_by_degradation/{output}/{name}", kept_B[rows_B])
            if visibility_BL is None:
                continue
            for number, name in enumerate(VISIBILITIES[1:], 1):
                least_B = right_B & (visibility_BL.amax(1) == number)
                objects_BL = right_B[:, None] & (visibility_BL == number)
                self._means.add(f"label_kept_by_visibility/{output}/{name}", kept_B[least_B])
                self._means.add(f"object_kept_by_visibility/{output}/{name}", judged_BL[objects_BL].float())
        return right_B

    def compute(self) -> dict[str, float]:
        means = self._means.compute()
        clean = means.pop("clean", None)
        if clean is None or not clean.weight:
            return {}
        self.num_images, self.clean_accuracy = round(clean.weight), clean.value
        means = {name: mean for name, mean in means.items() if mean.weight}
        self.counts = {name: round(mean.weight) for name, mean in means.items()}
        return {name: mean.value for name, mean in means.items()}
