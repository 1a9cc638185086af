"""The tokenizer: an autoencoder with a quantiser between encoder and decoder (VQGAN, arXiv 2012.09841).

With ``bottleneck=kl`` it is a plain KL autoencoder, whose latents other paradigms can be trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar

from torch import Tensor, nn

from generative.checks import checked
from generative.judges.perceptual import PerceptualLoss
from generative.networks.autoencoder import Autoencoder
from generative.networks.bottlenecks import GaussianBottleneck
from generative.objectives.autoencoder import AutoencoderObjective
from generative.randomness import Randomness
from generative.types import Batch, LossOutput
from lightning_modules.contract import Card, Output, Task
from lightning_modules.generative_module import GenerativeModule
from lightning_modules.judged_module import losses_of_nobody


@checked("module")
class VQGAN(GenerativeModule):
    """Learns to write images as tokens and to read them back.

    The EMA averages the autoencoder alone; codes that are moving averages already, and the discriminator, stay as they are.

    Args:
        objective: Its losses.
        discriminator: Makes the patch discriminator, or None for no adversarial loss.
        perceptual: Perceptual distance, or None. It is frozen and stays out of the state dict.
        **kwargs: Arguments of ``GenerativeModule``.
    """

    network: Autoencoder
    tasks: ClassVar[frozenset[Task]] = frozenset({"reconstruct"})
    card: ClassVar[Card] = Card(
        "Tokenizer: an autoencoder that writes an image as a grid of codes",
        "Making tokens of images for a network of tokens, and images of tokens.",
        "It is lossy, and knows images like those of its training set only.",
    )
    training_only: ClassVar[Mapping[str, Any]] = {
        **GenerativeModule.training_only,
        "discriminator": None,
        "perceptual": None,
    }
    not_shardable: ClassVar[str | None] = (
        "its adaptive weight needs the gradient of a whole layer, and its discriminator is trained along with the network"
    )

    not_compilable: ClassVar[str | None] = (
        "its adaptive weight takes the gradient of one layer, for which compiled code runs the whole backward pass"
    )

    def __init__(
        self,
        network: Autoencoder,
        objective: AutoencoderObjective,
        discriminator: nn.Module | None = None,
        perceptual: PerceptualLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.objective = objective
        self.discriminator = discriminator
        self.perceptual = perceptual

    @property
    def outputs(self) -> dict[str, Output]:
        return {"reconstruction": Output(1)}

    @classmethod
    def serves_as(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """An autoencoder with continuous latents makes no tokens, one with tokens no latents."""
        bottleneck = (arguments.get("network") or {}).get("bottleneck") or {}
        continuous = str(bottleneck.get("_target_")).endswith(f".{GaussianBottleneck.__name__}")
        return frozenset({"space" if continuous else "tokenizer"})

    @classmethod
    def unread(cls, arguments: Mapping[str, Any]) -> dict[str, str]:
        adversarial = ("adversarial_weight", "adversarial_start", "adaptive")
        return super().unread(arguments) | losses_of_nobody(arguments, "objective", adversarial)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The discriminator's too."""
        return [*super().trainable_parameters(), *(self.discriminator.parameters() if self.discriminator else ())]

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
        if self.perceptual is not None:
            perceptual = self.perceptual.to(self.device)
        return self.objective(self.network, self.discriminator, perceptual, batch.image, self.global_step, randomness)

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """``reconstruction``, which needs no draw."""
        return {"reconstruction": self.network(batch.image).image.clamp(-1, 1)}

    def evaluation_step(self, batch: Batch) -> Mapping[str, Any]:
        """The tokens too."""
        made = cache(lambda: self.network(batch.image))
        return self.offered(
            batch, outputs=lambda: {"reconstruction": made().image.clamp(-1, 1)}, tokens=lambda: made().tokens
        )

    def sampling_record(self) -> dict[str, Any]:
        return {
            "bottleneck": type(self.network.bottleneck).__name__,
            "num_codes": self.network.num_codes,
            "num_tokens": self.network.num_tokens,
            "perceptual": None if self.perceptual is None else self.perceptual.definition(),
        }
