"""A trained tokenizer, frozen: images to tokens and back, from the checkpoint of a tokenizer run.

Shape legend: B batch, C channels, H/W height and width, G side of the token grid, N = G G tokens.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from files.cache import cache_folder, cached
from generative.export import SUFFIX, read_beside
from generative.networks.autoencoder import Autoencoder
from generative.networks.trained_autoencoder import TrainedAutoencoder

PATCH_BATCH = 256  # codes painted at a time
PATCHES = "patches"  # in an exported file


class Tokenizer(TrainedAutoencoder):
    """A frozen autoencoder with codes.

    Args:
        network: The trained autoencoder.
        path: Where its weights come from, for the record.

    Raises:
        ValueError: If the autoencoder has no codes.

    Attributes:
        num_codes: Number of codes K.
    """

    key: ClassVar[str] = "tokenizer"
    noun: ClassVar[str] = "tokenizer"
    example: ClassVar[str] = "vqgan_scenes"
    name: ClassVar[str] = "tokens"
    num_codes: int

    def __init__(self, network: Autoencoder, path: str | Path) -> None:
        if network.num_codes is None:
            raise ValueError(
                f"tokenizer={path} is an autoencoder without codes: train one with bottleneck=vq, simvq or fsq."
            )
        super().__init__(network, path)
        self.num_codes = network.num_codes

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Return the tokens of images.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].

        Returns:
            (B, N) int64 tokens in row-major order.
        """
        return self.network.tokenize(image_BCHW)

    @torch.no_grad()
    def decode(self, tokens_BN: Tensor) -> Tensor:
        """Return the images of tokens.

        Args:
            tokens_BN: (B, N) int64 tokens in row-major order.

        Returns:
            (B, C, H, W) images in [-1, 1].
        """
        return self.network.detokenize(tokens_BN)

    @torch.no_grad()
    def codebook(self) -> Tensor:
        """Return the (K, D) codes."""
        return self.network.bottleneck.codes(torch.arange(self.num_codes)[None])[0].clone()

    @torch.no_grad()
    def decode_mean(self, probability_BNK: Tensor) -> Tensor:
        """Return the images of the expected codes: about the mean of the images of all tokens.

        Args:
            probability_BNK: (B, N, K) probabilities of the codes of each token.

        Returns:
            (B, C, H, W) images in [-1, 1].
        """
        codes_KD = self.network.bottleneck.codes(torch.arange(self.num_codes, device=probability_BNK.device)[None])[0]
        z = rearrange(probability_BNK @ codes_KD, "b (h w) d -> b d h w", h=self.grid_size)
        return self.network.decode(z).clamp(-1, 1)

    @cached_property
    def patches(self) -> Tensor:
        """(K, C, P, P) patch that the decoder paints for each code, in the middle of a grid of the same code.

        An exported tokenizer has them in its file, that of a run in the user's cache folder: the decoder takes long for them.
        """
        if Path(self.path).suffix == SUFFIX and PATCHES in (beside := read_beside(Path(self.path))):
            return beside[PATCHES]
        return cached(cache_folder() / PATCHES / f"{self.hash}.pt", lambda: {PATCHES: self._painted().cpu()})[PATCHES]

    def _painted(self) -> Tensor:
        grid = torch.arange(self.num_codes, device=self.network.last_layer.device)[:, None].expand(
            -1, self.grid_size**2
        )
        pictures = torch.cat([self.decode(part) for part in grid.split(PATCH_BATCH)])
        patches = rearrange(pictures, "k c (h p) (w q) -> k h w c p q", h=self.grid_size, w=self.grid_size)
        return patches[:, self.grid_size // 2, self.grid_size // 2]

    def transformer_settings(self) -> dict[str, Any]:
        """Return what a transformer of its tokens is built with, as arguments of ``TokenTransformer``."""
        return {
            "num_codes": self.num_codes,
            "grid_size": self.grid_size,
            "codebook_KE": self.codebook(),
            "patch_shape": (self.network.in_channels, self.patch_size, self.patch_size),
        }

    def card(self) -> str:
        """Describe it in Markdown, for an export of which it is a part."""
        size, channels, grid = self.network.image_size, self.network.in_channels, self.grid_size
        return (
            f"# Tokenizer\n\nImages of {size} pixels and {channels} channels to {grid} x {grid} tokens of {self.num_codes} "
            f"codes and back; weights {self.hash}. It belongs to the network in the folder above, which reads it from here.\n\n"
            "```python\nfrom generative.networks.tokenizer import load_tokenizer\n\n"
            'tokenizer = load_tokenizer("tokenizer/model.safetensors")\n```\n'
        )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a trained tokenizer; see ``TrainedAutoencoder.load``."""
    return Tokenizer.load(path)
