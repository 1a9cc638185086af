"""The space in which images are made: their pixels, or the latents of a trained autoencoder (arXiv 2112.10752).

Latents are standardised channel by channel, so that a schedule of noise means in them what it means in pixels. What a network
is shown of a degraded image is not encoded, since an encoder would make latents of other images of its noise: it is folded to
the grid of the latents.

Shape legend: B batch, C image channels, H/W height and width in pixels, D latent channels, G side of the grid of latents,
c h w either of C H W and D G G.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.inpainting import KnownPixels, token_mask
from generative.networks.autoencoder import Autoencoder
from generative.networks.trained_autoencoder import TrainedAutoencoder
from generative.types import Batch

MIN_STD = 1e-6  # a channel that does not vary stays as it is


class Latents(TrainedAutoencoder):
    """A frozen autoencoder with continuous latents.

    Args:
        network: The trained autoencoder.
        path: Where its weights come from, for the record.

    Raises:
        ValueError: If its latents are codes.

    Attributes:
        num_channels: Channels D of the latents.
    """

    key: ClassVar[str] = "space"
    noun: ClassVar[str] = "autoencoder"
    example: ClassVar[str] = "autoencoder_scenes"
    name: ClassVar[str] = "latents"
    num_codes: ClassVar[None] = None

    def __init__(self, network: Autoencoder, path: str | Path) -> None:
        super().__init__(network, path)
        self.num_channels = network.bottleneck.dim

    @classmethod
    def _built(cls, config: Mapping[str, Any], path: str | Path) -> Autoencoder:
        network = super()._built(config, path)
        if network.num_codes is not None:
            raise cls._refused(path, "its latents are codes, for module=maskgit")
        return network

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Return the (B, D, G, G) latents of (B, C, H, W) images in [-1, 1]: the means of their Gaussians."""
        return self.network.bottleneck(self.network.encode(image_BCHW)).z

    @torch.no_grad()
    def decode(self, z_BDGG: Tensor) -> Tensor:
        """Return the (B, C, H, W) images, not clamped, of (B, D, G, G) latents."""
        return self.network.decode(z_BDGG)

    def card(self) -> str:
        """Describe it in Markdown, for an export of which it is a part."""
        size, channels, grid = self.network.image_size, self.network.in_channels, self.grid_size
        return (
            f"# Autoencoder\n\nImages of {size} pixels and {channels} channels to latents of {grid} x {grid} x "
            f"{self.num_channels} and back; weights {self.hash}. It belongs to the network in the folder above, which works on "
            "these latents and has their scale.\n\n"
            "```python\nfrom generative.spaces import Latents\n\n"
            'latents = Latents.load("space/model.safetensors")\n```\n'
        )


class Space(nn.Module):
    """Pixels: images are made as they are."""

    def encoded(self, batch: Batch) -> Tensor:
        """Return what a network learns to make of a batch: (B, c, h, w)."""
        return batch.image

    def shape(self, batch: Batch) -> tuple[int, ...]:
        """Return c, h and w."""
        return tuple(batch.image.shape[1:])

    def decoded(self, z_BCHW: Tensor) -> Tensor:
        """Return the (B, C, H, W) images, not clamped, of what a network makes."""
        return z_BCHW

    def folded(self, image_BKHW: Tensor) -> Tensor:
        """Return what a network is shown of (B, K, H, W) maps, with height h and width w."""
        return image_BKHW

    def known(self, batch: Batch) -> KnownPixels:
        """Return what is known exactly of what a network makes."""
        return KnownPixels(*batch.observed())


class LatentSpace(Space):
    """Latents of a frozen autoencoder, which stays out of the state dict; mean and standard deviation are in it.

    Args:
        latents: The autoencoder.
        scale: ``mean`` and ``std`` of each channel, as ``scale`` returns them; None where they are yet to be measured or
            loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, latents: Latents, scale: Mapping[str, Sequence[float]] | None = None) -> None:
        super().__init__()
        self.latents = latents
        scale = scale or {"mean": [0.0] * latents.num_channels, "std": [1.0] * latents.num_channels}
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(scale[name]))

    def measure(self, latents_IFDGG: Tensor) -> None:
        """Take mean and standard deviation of each channel from the latents of all training images, mirrored ones too.

        Args:
            latents_IFDGG: (I, F, D, G, G) latents of I images in F views.
        """
        std_D, mean_D = torch.std_mean(latents_IFDGG.float(), dim=(0, 1, 3, 4))
        self.mean.copy_(mean_D)
        self.std.copy_(torch.where(std_D > MIN_STD, std_D, 1.0))

    def scale(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of each channel as plain values."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def encoded(self, batch: Batch) -> Tensor:
        return self._standardised(self._on(batch.image).encode(batch.image) if batch.encoded is None else batch.encoded)

    def shape(self, batch: Batch) -> tuple[int, ...]:
        height, width = (side // self.latents.patch_size for side in batch.image.shape[-2:])
        return (self.latents.num_channels, height, width)

    def decoded(self, z_BCHW: Tensor) -> Tensor:
        z_BCHW = z_BCHW * self.std[:, None, None] + self.mean[:, None, None]
        return self._on(z_BCHW).decode(z_BCHW).float()

    def folded(self, image_BKHW: Tensor) -> Tensor:
        """Put the pixels of a latent's patch side by side as channels: (B, K P P, G, G)."""
        return F.pixel_unshuffle(image_BKHW, self.latents.patch_size)

    def known(self, batch: Batch) -> KnownPixels:
        """A latent is known where all pixels that its encoding depends on are."""
        degraded, validity = batch.observed()
        grid_size = self.latents.grid_size
        unknown_BN = token_mask(validity, grid_size, self.latents.dilation)
        known_B1GG = (~unknown_BN).view(-1, 1, grid_size, grid_size).to(degraded.dtype)
        return KnownPixels(self._standardised(self._on(degraded).encode(degraded * validity)), known_B1GG)

    def _standardised(self, z_BDGG: Tensor) -> Tensor:
        return (z_BDGG.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def _on(self, like: Tensor) -> Latents:
        return self.latents.to(like.device)
