"""Regression: the network trained for squared error, the baseline for PSNR."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from generative.networks import ImageNetwork
from generative.randomness import Randomness
from generative.types import Batch, LossOutput, restoration_condition
from lightning_modules.contract import Card, Output, Task
from lightning_modules.generative_module import GenerativeModule


class RegressionRestorer(GenerativeModule):
    """Estimates the clean image directly, E[x | degraded image], with the network of the MeanFlow restorer.

    Args:
        network: One-headed network; its times are held at (1, 0) and its noisy input is zero.
        reimpose_known: Put exactly known pixels back into the output.
        **kwargs: Arguments of ``GenerativeModule``.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({"restore", "inpaint"})
    card: ClassVar[Card] = Card(
        "Regression: a DiT trained for squared error, the baseline of restoration",
        "Restoring images with the degradations that it was trained on: `mean` is the answer of least squared error.",
        "The answer is blurred where the input leaves several possibilities. Other degradations, sizes and subjects than "
        "those of training are outside of what was learned.",
    )

    def __init__(self, network: ImageNetwork, reimpose_known: bool = False, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.reimpose_known = reimpose_known

    @property
    def outputs(self) -> dict[str, Output]:
        return {"mean": Output(1)}

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        """Mean squared error."""
        return LossOutput((self._estimate(batch) - batch.image).square().mean())

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """The estimate is the only output, named ``mean``."""
        image = self._estimate(batch).clamp(-1, 1)
        if self.reimpose_known:
            degraded, validity = batch.observed()
            image = image.lerp(degraded, validity)
        return {"mean": image}

    def sampling_record(self) -> dict[str, Any]:
        return {"reimpose_known": self.reimpose_known}

    def _estimate(self, batch: Batch) -> Tensor:
        condition = restoration_condition(*batch.observed())
        times = torch.tensor([1.0, 0.0], device=batch.image.device).expand(len(batch.image), 2)
        (image,) = self.network(torch.zeros_like(batch.image), times, condition)
        return image
