"""Regression: the network trained for squared error, the baseline for PSNR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from generative.checks import checked
from generative.networks import ImageNetwork
from generative.networks.trained_regression import regressed
from generative.randomness import Randomness
from generative.types import Batch, LossOutput
from lightning_modules.conditional_module import ConditionalModule, ImageTask
from lightning_modules.contract import Card, Output, Task


@checked("module")
class RegressionRestorer(ConditionalModule):
    """Estimates the clean image directly, E[x | degraded image], with the network of the MeanFlow restorer.

    Args:
        network: One-headed network; its times are held at (1, 0) and its noisy input is zero.
        **kwargs: Arguments of ``ConditionalModule``.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({"restore", "inpaint"})
    default_task: ClassVar[ImageTask] = "restore"
    card: ClassVar[Card] = Card(
        "Regression: a DiT trained for squared error, the baseline of restoration",
        "Restoring images with the degradations that it was trained on: `mean` is the answer of least squared error.",
        "The answer is blurred where the input leaves several possibilities. Other degradations, sizes and subjects than "
        "those of training are outside of what was learned.",
    )

    def __init__(self, network: ImageNetwork, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)

    @property
    def outputs(self) -> dict[str, Output]:
        return {"mean": Output(1)}

    @classmethod
    def serves_as(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """One that is told labels answers to more than a degraded image."""
        return frozenset() if arguments.get("labels") else frozenset({"regression"})

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        """Mean squared error."""
        return LossOutput((self._estimate(batch, randomness) - batch.image).square().mean())

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """The estimate is the only output, named ``mean``."""
        return {"mean": self.finished(self._estimate(batch), batch)}

    def _estimate(self, batch: Batch, randomness: Randomness | None = None) -> Tensor:
        return regressed(self.network, self.condition(batch, randomness))
