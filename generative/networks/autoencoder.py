"""Convolutional autoencoder with a bottleneck: the tokenizer of MaskGIT, or latents for other paradigms.

After VQGAN (Esser et al. 2021, arXiv 2012.09841), with two differences in the encoder, which make a token depend on the
pixels near its own patch alone: norms act on each pixel by itself, and there is no attention. With group norm or attention
every token depends on every pixel, so the fill of a hole would change tokens all over the image.

Shape legend: B batch, C image channels, H/W height and width in pixels, D latent channels, G side of the token grid, N = G G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from generative.checks import checked
from generative.networks.bottlenecks import Bottleneck
from generative.networks.matrices import at_end
from generative.randomness import Randomness
from generative.ranges import Count, WholeNumber


class PixelNorm(nn.Module):
    """Layer norm over the channels of each pixel: it looks at no other pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise.

        Args:
            x_BCHW: (B, C, H, W) features.

        Returns:
            (B, C, H, W) features.
        """
        return self.norm(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two convolutions with a shortcut; the second one begins as zero."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.in_norm = PixelNorm(channels)
        self.in_conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.out_norm = PixelNorm(channels)
        self.out_conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        for parameter in self.out_conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Transform the features.

        Args:
            x_BCHW: (B, C, H, W) features.

        Returns:
            (B, C, H, W) features.
        """
        h = self.in_conv(F.silu(self.in_norm(x_BCHW)))
        return x_BCHW + self.out_conv(F.silu(self.out_norm(h)))


@dataclass
class Reconstruction:
    """What an autoencoder makes of images.

    Attributes:
        image: (B, C, H, W) reconstructions, not clamped.
        loss: () weighted loss of the bottleneck.
        tokens: (B, N) int64 tokens in row-major order, or None for continuous latents.
    """

    image: Tensor
    loss: Tensor
    tokens: Tensor | None


@checked("network")
class Autoencoder(nn.Module):
    """Encoder, bottleneck and decoder.

    Args:
        image_size: Side of the images in pixels.
        in_channels: Channels C of the images.
        bottleneck: Quantiser or Gaussian between encoder and decoder.
        channels: Width of each resolution, the image's first; each further one halves the resolution.
        encoder_blocks: Residual blocks of each resolution in the encoder.
        encoder_kernels: Size of the encoder's convolutions at each resolution; 1 looks at no neighbour.
        decoder_blocks: Residual blocks of each resolution in the decoder.
        fold: The first resolution works on squares of so many pixels, folded into channels: much cheaper than pixels.

    Raises:
        ValueError: If the settings do not fit each other.

    Attributes:
        grid_size: Side G of the token grid.
        num_tokens: Tokens N of an image.
    """

    convolutional: ClassVar[bool] = True

    def __init__(
        self,
        image_size: Count,
        in_channels: Count,
        bottleneck: Bottleneck,
        channels: Sequence[Count] = (64, 128, 256),
        encoder_blocks: Sequence[WholeNumber] = (1, 1, 2),
        encoder_kernels: Sequence[Count] = (3, 3, 1),
        decoder_blocks: Sequence[WholeNumber] = (2, 2, 2),
        fold: Count = 1,
    ) -> None:
        super().__init__()
        for name, values in {
            "encoder_blocks": encoder_blocks,
            "encoder_kernels": encoder_kernels,
            "decoder_blocks": decoder_blocks,
        }.items():
            if len(values) != len(channels):
                raise ValueError(
                    f"network.{name}={list(values)} must have one entry per resolution, as network.channels={list(channels)}."
                )
        if any(size % 2 == 0 for size in encoder_kernels):
            raise ValueError(f"network.encoder_kernels={list(encoder_kernels)} must be odd.")
        patch_size = fold * 2 ** (len(channels) - 1)
        if image_size % patch_size:
            raise ValueError(
                f"network.fold={fold} and the resolutions of network.channels={list(channels)} make tokens of {patch_size}x"
                f"{patch_size} pixels, which do not divide data.image_size={image_size}: use a multiple of {patch_size}."
            )
        self.image_size = image_size
        self.in_channels = in_channels
        self.grid_size = image_size // patch_size
        self.num_tokens = self.grid_size**2
        self.bottleneck = at_end(bottleneck)
        folded_channels = in_channels * fold**2
        self.fold = nn.PixelUnshuffle(fold)
        self.encoder = _encoder(folded_channels, channels, encoder_blocks, encoder_kernels, bottleneck.in_channels)
        self.decoder = _decoder(folded_channels, channels, decoder_blocks, bottleneck.dim)
        self.unfold = nn.PixelShuffle(fold)

    @property
    def num_codes(self) -> int | None:
        """Number of codes K, or None for continuous latents."""
        return self.bottleneck.num_codes

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, at which adversarial losses are balanced."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight

    def forward(self, image_BCHW: Tensor, randomness: Randomness | None = None) -> Reconstruction:
        """Encode and decode.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].
            randomness: Source of the bottleneck's draws in training.
        """
        latent = self.bottleneck(self.encode(image_BCHW), randomness)
        return Reconstruction(self.decode(latent.z), latent.loss, latent.tokens)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Encode images up to the bottleneck.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].

        Returns:
            (B, D, G, G) encodings.
        """
        return self.encoder(self.fold(image_BCHW).contiguous(memory_format=torch.channels_last))

    def decode(self, z_BDGG: Tensor) -> Tensor:
        """Decode latents.

        Args:
            z_BDGG: (B, D, G, G) latents.

        Returns:
            (B, C, H, W) images, not clamped.
        """
        return self.unfold(self.decoder(z_BDGG.contiguous(memory_format=torch.channels_last)))

    def tokenize(self, image_BCHW: Tensor) -> Tensor:
        """Return the tokens of images.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].

        Returns:
            (B, N) int64 tokens in row-major order.

        Raises:
            ValueError: The bottleneck has no codes.
        """
        tokens = self.bottleneck(self.encode(image_BCHW)).tokens
        if tokens is None:
            raise ValueError(f"{type(self.bottleneck).__name__} makes no tokens: choose bottleneck=vq, simvq or fsq.")
        return tokens

    def detokenize(self, tokens_BN: Tensor) -> Tensor:
        """Return the images of tokens.

        Args:
            tokens_BN: (B, N) int64 tokens in row-major order.

        Returns:
            (B, C, H, W) images in [-1, 1].
        """
        z = rearrange(self.bottleneck.codes(tokens_BN), "b (h w) d -> b d h w", h=self.grid_size)
        return self.decode(z.to(self.last_layer.dtype)).clamp(-1, 1)


def _encoder(
    in_channels: int, channels: Sequence[int], blocks: Sequence[int], kernels: Sequence[int], out_channels: int
) -> nn.Sequential:
    layers: list[nn.Module] = [at_end(nn.Conv2d(in_channels, channels[0], kernels[0], padding=kernels[0] // 2))]
    for level, width in enumerate(channels):
        if level > 0:  # kernel and stride 2: halves the resolution and looks at no neighbour
            layers.append(nn.Conv2d(channels[level - 1], width, 2, stride=2))
        layers += [Block(width, kernels[level]) for _ in range(blocks[level])]
    layers += [PixelNorm(channels[-1]), nn.SiLU(), at_end(nn.Conv2d(channels[-1], out_channels, 1))]
    return nn.Sequential(*layers)


def _decoder(in_channels: int, channels: Sequence[int], blocks: Sequence[int], latent_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = [at_end(nn.Conv2d(latent_dim, channels[-1], 3, padding=1))]
    for level in reversed(range(len(channels))):
        layers += [Block(channels[level], 3) for _ in range(blocks[level])]
        if level > 0:
            layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(channels[level], channels[level - 1], 3, padding=1)]
    layers += [PixelNorm(channels[0]), nn.SiLU(), at_end(nn.Conv2d(channels[0], in_channels, 3, padding=1))]
    return nn.Sequential(*layers)
