"""The label classifier in training: the evaluator of conditional generation, of the runs' own data.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.checks import checked
from generative.judges.label_classifier import LabelClassifier
from generative.randomness import Randomness
from generative.ranges import WholeNumber
from generative.types import Batch, LossOutput
from lightning_modules.base import ImageData, TrainingModule, check_labels_kept
from lightning_modules.contract import Card, Task


@checked("module")
class LabelClassifierModule(TrainingModule):
    """Learns to tell the labels of an image, each by itself; it makes no images.

    Args:
        max_shift: In training each image is shifted by up to so many pixels in both directions, its border repeated.
        **kwargs: Arguments of ``TrainingModule``.
    """

    network: LabelClassifier
    tasks: ClassVar[frozenset[Task]] = frozenset({"judge"})
    card: ClassVar[Card] = Card(
        "Label classifier: a ResNet with one sigmoid output for each label",
        "Judging images that were drawn of labels.",
        "It knows its training set's labels only; its probabilities on images of other kinds mean nothing.",
    )
    trained_method: ClassVar[str] = "logits"
    not_shardable: ClassVar[str | None] = "its loss calls a part of the network alone, and the network is small"

    def __init__(self, network: LabelClassifier, max_shift: WholeNumber = 0, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.max_shift = max_shift

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        """Binary cross-entropy, the mean over images and labels."""
        logits = self.network.logits(shifted(batch.image, self.max_shift, randomness))
        return LossOutput(F.binary_cross_entropy_with_logits(logits, labels_of(batch).to(logits)))

    def check_data(self, data: ImageData) -> None:
        """Mirrored and turned images must still have their labels."""
        check_labels_kept(data)

    @classmethod
    def serves_as(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"classifier"})

    def evaluation_step(self, batch: Batch) -> Mapping[str, Any]:
        """The probabilities of the labels, as ``scores``."""
        return self.offered(batch, scores=lambda: self.network(batch.image))


def labels_of(batch: Batch) -> Tensor:
    """Return the labels of a batch.

    Returns:
        (B, L) multi-hot labels.

    Raises:
        ValueError: It has none.
    """
    if batch.labels is None:
        raise ValueError("A label classifier needs labelled images: choose such data, as data=scenes.")
    return batch.labels


def shifted(image_BCHW: Tensor, max_shift: int, randomness: Randomness) -> Tensor:
    """Shift each image by its own whole number of pixels and repeat its border.

    Args:
        image_BCHW: (B, C, H, W) images.
        max_shift: Largest shift in pixels.
        randomness: Source of the shifts.

    Returns:
        (B, C, H, W) shifted images.
    """
    if max_shift == 0:
        return image_BCHW
    height, width = image_BCHW.shape[-2:]
    offset_B2 = (randomness.uniform(2) * (2 * max_shift + 1)).long() - max_shift
    rows_BH, columns_BW = (
        (torch.arange(size, device=offset_B2.device) + offset_B2[:, axis, None]).clamp(0, size - 1)
        for axis, size in enumerate((height, width))
    )
    image_index = torch.arange(len(image_BCHW), device=offset_B2.device)
    shifted_BHWC = image_BCHW.permute(0, 2, 3, 1)[
        image_index[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]
    ]
    return shifted_BHWC.permute(0, 3, 1, 2).contiguous()
