"""Weighted means by name: float64 sums that merge over ranks, also where ranks saw different names or nothing."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric as Sums

from generative.metrics.by_image import ImageSums
from generative.metrics.catalogue import Metric, definitions


class WeightedMean(Sums):
    """The sums behind one weighted mean.

    torchmetrics' own ``MeanMetric`` (1.9) leaves NaN values out, which would hide a diverged model, and forgets the
    weights when that is switched off.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor) -> None:
        """Add values.

        Args:
            values: Values of any shape.
            weights: Their weights, of the same shape.
        """
        values, weights = values.to(self.total.device).double(), weights.to(self.total.device).double()
        self.total += (values * weights).sum()
        self.weight += weights.sum()

    def compute(self) -> Tensor:
        """Return the mean; NaN without any weight."""
        return self.total / self.weight


class Mean(NamedTuple):
    """A mean over all ranks and the weight behind it.

    Attributes:
        value: The mean.
        weight: Sum of the weights; the number of values where they were not weighted.
    """

    value: float
    weight: float


class NamedMeans:
    """A set of weighted means that grows with the names it is given.

    Attributes:
        device: Where the sums live.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Forget everything.

        Args:
            device: Where the sums live: the device over which the ranks talk.
        """
        # Apple's MPS has no float64.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self._means: dict[str, WeightedMean] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Add values to a mean.

        Args:
            name: Name of the mean.
            values: Values of any shape on any device.
            weights: Weights that broadcast to the values' shape; 1 by default.
        """
        if name not in self._means:
            self._means[name] = WeightedMean().to(self.device)
        weights = torch.ones_like(values) if weights is None else weights.expand_as(values)
        self._means[name].update(values, weights)

    def compute(self) -> dict[str, Mean]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Returns:
            The mean by name, of all names that any rank has seen, in the order of the first rank that saw them.
        """
        means = {}
        for name in self._names_of_all_ranks():
            # The ranks' collectives must pair up, so a rank that never saw the name takes part with empty sums.
            self.add(name, torch.zeros(0))
            metric = self._means[name]
            with metric.sync_context():
                means[name] = Mean((metric.total / metric.weight).item(), metric.weight.item())
        return means

    def _names_of_all_ranks(self) -> list[str]:
        names: list[list[str]] = [list(self._means)]
        if dist.is_available() and dist.is_initialized():
            names = [[]] * dist.get_world_size()
            dist.all_gather_object(names, list(self._means))
        return list(dict.fromkeys(name for names_of_rank in names for name in names_of_rank))


class MeanMetrics:
    """Metrics that are means over batches and ranks; those that are made of means have a ``compute`` of their own.

    A kind of metrics adds its values under their names, ``<metric>/<output>``: by ``add`` those that each image has of its
    own, so that differences have an interval, and else to ``_means``.

    Sums are additive and in float64, so results depend neither on the batch size nor on the number of ranks.

    Attributes:
        metrics: What is measured.
        by_image: What each image has added.
        num_images: Images of all ranks behind the last ``compute``.
    """

    metrics: ClassVar[tuple[Metric, ...]]

    def __init__(self) -> None:
        self._means = NamedMeans()
        self.by_image = ImageSums()
        self.reset()

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Forget all images.

        Args:
            device: Where the sums live: the device over which the ranks talk.
        """
        self.num_images = 0
        self._means.reset(device)
        self.by_image.reset()

    def add(self, name: str, values: Tensor, index_B: Tensor, weights: Tensor | None = None) -> None:
        """Add the values of a batch's images to a mean, and keep what each image adds.

        Args:
            name: Name of the mean.
            values: (B, ...) values.
            index_B: (B,) int64 indices of the images.
            weights: Weights that broadcast to the values' shape; 1 by default.
        """
        self._means.add(name, values, weights)
        self.by_image.add(name, values, index_B, weights)

    def compute(self) -> dict[str, float]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Returns:
            Values by ``<metric>/<output>``; empty where no rank took in an image.
        """
        means = self._means.compute()
        self.num_images = max((int(mean.weight) for mean in means.values()), default=0)
        return {name: mean.value for name, mean in means.items()}

    @classmethod
    def definition(cls) -> dict[str, Any]:
        """Say what each metric means, for the record next to the numbers.

        Returns:
            A sentence per metric.
        """
        return definitions(cls.metrics)
