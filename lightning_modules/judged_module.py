"""The base of paradigms whose estimates of the image can be judged in training, by a perceptual distance or a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from generative.judges.perceptual import PerceptualLoss
from generative.objectives import ImageTerms
from generative.types import LossOutput
from lightning_modules.base import ImageData
from lightning_modules.conditional_module import ConditionalModule


def losses_of_nobody(arguments: Mapping[str, Any], losses: str, adversarial: Sequence[str]) -> dict[str, str]:
    """Name the settings of losses that no judge gives, for ``unread``.

    Args:
        arguments: A module's, with ``perceptual`` and ``discriminator``.
        losses: Key of the losses' settings.
        adversarial: Those of the adversarial loss.

    Returns:
        Why, in words, by key.
    """
    unread = {}
    if not arguments.get("perceptual"):
        unread[f"{losses}.perceptual_weight"] = "there is no perceptual distance (perceptual=vgg16)"
    if not arguments.get("discriminator"):
        keys = [f"{losses}.{name}" for name in adversarial]
        unread |= dict.fromkeys(keys, "there is no discriminator (discriminator=patch)")
    return unread


class JudgedModule(ConditionalModule):
    """Adds terms on the estimate of the image to a paradigm's loss.

    The EMA averages the network alone; the perceptual distance is frozen and stays out of the state dict.

    Args:
        discriminator: Patch discriminator, or None for no adversarial term.
        perceptual: Perceptual distance, or None.
        image_terms: What they count; None where there is neither.
        **kwargs: Arguments of ``ConditionalModule``.
    """

    training_only: ClassVar[Mapping[str, Any]] = {
        **ConditionalModule.training_only,
        "discriminator": None,
        "perceptual": None,
        "image_terms": None,
    }

    def __init__(
        self,
        network: nn.Module,
        *args: Any,
        discriminator: nn.Module | None = None,
        perceptual: PerceptualLoss | None = None,
        image_terms: ImageTerms | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, *args, **kwargs)
        self.discriminator = discriminator
        self.perceptual = perceptual
        self.image_terms = image_terms or ImageTerms()

    @classmethod
    def unread(cls, arguments: Mapping[str, Any]) -> dict[str, str]:
        unread = super().unread(arguments) | losses_of_nobody(
            arguments, "module.image_terms", ("adversarial_weight", "adversarial_start")
        )
        if not (arguments.get("perceptual") or arguments.get("discriminator")):
            unread["module.image_terms.max_time"] = "nobody judges (discriminator=patch, perceptual=vgg16)"
        return unread

    def check_data(self, data: ImageData) -> None:
        """Refuse images that the perceptual distance does not take."""
        super().check_data(data)
        if self.perceptual is not None:
            image = torch.zeros(1, data.channels, data.image_size, data.image_size)
            self.perceptual(image, image)

    @property
    def judges(self) -> bool:
        """Whether estimates of the image are judged in training."""
        return self.discriminator is not None or self.perceptual is not None

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The discriminator's too."""
        return [*super().trainable_parameters(), *(self.discriminator.parameters() if self.discriminator else ())]

    def configure_model(self) -> None:
        """Refuse to shard what trains beside the network."""
        if self.device_mesh is not None and self.discriminator is not None:
            raise ValueError(
                "trainer=fsdp cannot train a discriminator along with the network: use trainer=ddp, or discriminator=none."
            )
        super().configure_model()

    def judged(self, estimate_BCHW: Tensor, image_BCHW: Tensor, time_B: Tensor | None = None) -> LossOutput:
        """Return the terms on an estimate of the image; see ``ImageTerms``."""
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
        if self.perceptual is not None:
            perceptual = self.perceptual.to(self.device)
        step = self.global_step if self._trainer is not None else 0
        return self.image_terms(estimate_BCHW, image_BCHW, time_B, self.discriminator, perceptual, step)
