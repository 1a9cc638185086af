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
from lightning_modules.conditional_module import ImageTask
from lightning_modules.contract import Card, Output, Task
from lightning_modules.judged_module import JudgedModule


@checked("module")
class RegressionRestorer(JudgedModule):
    """Estimates the clean image directly, E[x | degraded image], with the network of the MeanFlow restorer.

    Args:
        network: One-headed network; its times are held at (1, 0) and its noisy input is zero.
        **kwargs: Arguments of ``JudgedModule``.
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
    def unread(cls, arguments: Mapping[str, Any]) -> dict[str, str]:
        return super().unread(arguments) | {"module.image_terms.max_time": "a regression has no times"}

    @classmethod
    def serves_as(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """One that is told labels answers to more than a degraded image."""
        return frozenset() if arguments.get("labels") else frozenset({"regression"})

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        """Mean squared error, and the terms of those who judge the estimate, where there are some."""
        estimate = self._estimate(batch, randomness)
        error = (estimate - batch.image).square().mean()
        if not self.judges:
            return LossOutput(error)
        terms = self.judged(estimate, batch.image)
        return LossOutput(error + terms.loss, {"squared_error": error.detach(), **terms.logs})

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """The estimate is the only output, named ``mean``."""
        return {"mean": self.finished(self._estimate(batch), batch)}

    def _estimate(self, batch: Batch, randomness: Randomness | None = None) -> Tensor:
        return regressed(self.network, self.condition(batch, randomness))
