"""What each image adds to a mean: kept beside the mean, so that two evaluations of the same images can be paired.

Shape suffixes: B batch, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class ImageValues:
    """The parts of a weighted mean, in the order of the images' indices.

    Attributes:
        index: (N,) int64 indices of the images, each once.
        total: (N,) float64 sums of an image's weighted values.
        weight: (N,) float64 sums of its weights, above 0.
    """

    index: Tensor
    total: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """(): the mean over all images."""
        return self.total.sum() / self.weight.sum()

    def of(self, index_M: Tensor) -> ImageValues:
        """Return the parts of some of the images, (M,) sorted indices that are all there."""
        there = torch.isin(self.index, index_M)
        return ImageValues(self.index[there], self.total[there], self.weight[there])


def joined(several: Sequence[ImageValues]) -> ImageValues:
    """Take several sets of images for one, whose indices go on from set to set."""
    starts = [0]
    for values in several:
        starts.append(starts[-1] + int(values.index[-1]) + 1)
    index = torch.cat([values.index + start for values, start in zip(several, starts, strict=False)])
    return ImageValues(index, torch.cat([v.total for v in several]), torch.cat([v.weight for v in several]))


class ImageSums:
    """Collects the parts of named means over batches and ranks."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._rows: dict[str, list[ImageValues]] = {}

    def add(self, name: str, values: Tensor, index_B: Tensor, weights: Tensor | None = None) -> None:
        """Add the values of a batch's images.

        Args:
            name: Name of the mean.
            values: (B, ...) values on any device.
            index_B: (B,) int64 indices of the images; the parts of one that comes several times are added up.
            weights: Weights that broadcast to the values' shape; 1 by default.
        """
        values = (values.cpu() if values.device.type == "mps" else values).double()  # Apple's MPS has no float64
        weights = torch.ones_like(values) if weights is None else weights.to(values).expand_as(values)
        total_B, weight_B = ((part.reshape(len(index_B), -1).sum(1)).cpu() for part in (values * weights, weights))
        self._rows.setdefault(name, []).append(ImageValues(index_B.cpu(), total_B, weight_B))

    def merged(self) -> dict[str, ImageValues]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Returns:
            The parts by name, without images that have no weight.
        """
        several = [self._rows]
        if dist.is_available() and dist.is_initialized():
            several = [{}] * dist.get_world_size()
            dist.all_gather_object(several, self._rows)
        found = {}
        for name in dict.fromkeys(name for rows in several for name in rows):
            parts = [part for rows in several for part in rows.get(name, ())]
            index, total, weight = (torch.cat([getattr(p, key) for p in parts]) for key in ("index", "total", "weight"))
            index, place = index.unique(return_inverse=True)
            total, weight = (torch.zeros(len(index)).to(part).index_add(0, place, part) for part in (total, weight))
            if (counts := weight != 0).any():
                found[name] = ImageValues(index[counts], total[counts], weight[counts])
        return found
