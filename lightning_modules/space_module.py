"""The base of the paradigms that make images of pixels, or of the latents of a trained autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from generative.randomness import Randomness
from generative.spaces import Latents, LatentSpace, Space
from generative.types import Batch, Condition, State
from lightning_modules.base import ImageData
from lightning_modules.conditional_module import ConditionalModule
from lightning_modules.contract import Part


class SpaceModule(ConditionalModule):
    """Learns and samples in a space, and decodes what it has made of it.

    In training the images' latents come from a cache, computed once.

    Args:
        network: Its channels and size are those of the space.
        space: Checkpoint of an autoencoder in whose latents it works, or None for pixels.
        latent_scale: Mean and standard deviation of the latents' channels where these are known already, as in an export;
            None: they are measured when a training begins, and kept in its checkpoints.
        cache_dir: Cache folder of the latents, or None for the user's.
        **kwargs: Arguments of ``ConditionalModule``.

    Attributes:
        space: What lies between images and what the network works on.
    """

    part_keys: ClassVar[tuple[str, ...]] = ("space",)
    training_only: ClassVar[Mapping[str, Any]] = {**ConditionalModule.training_only, "cache_dir": None}

    def __init__(
        self,
        network: nn.Module,
        *args: Any,
        space: str | None = None,
        latent_scale: Mapping[str, Sequence[float]] | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, *args, **kwargs)
        self.space = Space() if space is None else LatentSpace(Latents.load(space), latent_scale)
        self.cache_dir = cache_dir
        self.network_sees_pixels = space is None

    @property
    def latent_space(self) -> LatentSpace | None:
        """The space where it is none of pixels."""
        return self.space if isinstance(self.space, LatentSpace) else None

    def check_data(self, data: ImageData) -> None:
        """Refuse images that the autoencoder does not fit."""
        super().check_data(data)
        if self.latent_space:
            self.latent_space.latents.check_images(data.image_size, data.channels)

    def parts_record(self) -> dict[str, Any]:
        return {"space": self.latent_space.latents.record()} if self.latent_space else {}

    def parts(self) -> dict[str, Part]:
        if self.latent_space is None:
            return {}
        latents = self.latent_space.latents
        return {"space": Part(latents.network, latents.settings(), latents.card())}

    def found_arguments(self) -> dict[str, Any]:
        return {"latent_scale": self.latent_space.scale()} if self.latent_space else {}

    def measure(self, data: Any) -> None:
        """Encode the images, and take the scale of their latents."""
        if self.latent_space:
            self.latent_space.measure(data.use_encoder(self.latent_space.latents, self.cache_dir).values)

    def condition(self, batch: Batch, randomness: Randomness | None = None) -> Condition:
        condition = super().condition(batch, randomness)
        return condition if condition.image is None else replace(condition, image=self.space.folded(condition.image))

    def reconstruction(self, batch: Batch) -> Tensor | None:
        if self.latent_space is None:
            return None
        return self.space.decoded(self.space.encoded(batch)).clamp(-1, 1)

    def decoded_states(self, states: Iterator[State]) -> Iterator[State]:
        """Yield the pictures of a sampler's states."""
        return (State(self.space.decoded(state.z), self.space.decoded(state.image)) for state in states)

    def sampling_record(self) -> dict[str, Any]:
        return super().sampling_record() | ({"space": self.parts_record()["space"]} if self.latent_space else {})
