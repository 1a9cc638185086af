"""A trained tokenizer, frozen: images to tokens and back, from the checkpoint of a tokenizer run.

Shape legend: B batch, C channels, H/W height and width, G side of the token grid, N = G G tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from generative.export import SUFFIX, read_network
from generative.frozen import Frozen
from generative.inpainting import receptive_radius
from generative.networks.autoencoder import Autoencoder
from generative.networks.bottlenecks import GaussianBottleneck
from generative.networks.quantizers import FSQ, SimVQ, VectorQuantizer
from generative.weights import (
    LoadMemoryError,
    NotLoadedError,
    checkpoint_fault,
    is_out_of_memory,
    network_weights,
    read_checkpoint,
    weights_hash,
)

PATCH_BATCH = 256  # codes painted at a time
NOT_ALIKE = "its config and weights are not those of an autoencoder"
# A checkpoint may name nothing else to be built: it could otherwise run code.
PARTS: dict[str, type[nn.Module]] = {
    f"generative.networks.{part.__name__}": part
    for part in (Autoencoder, VectorQuantizer, SimVQ, FSQ, GaussianBottleneck)
}


class Tokenizer(Frozen[Autoencoder]):
    """A frozen autoencoder with codes.

    Args:
        network: The trained autoencoder.
        path: Where its weights come from, for the record.

    Raises:
        ValueError: If the autoencoder has no codes.

    Attributes:
        num_codes: Number of codes K.
        grid_size: Side G of the token grid.
        patch_size: Side of a token's patch in pixels.
        hash: Hash of the weights.
        dilation: How many tokens around its own patch a token depends on, measured.
    """

    num_codes: int

    def __init__(self, network: Autoencoder, path: str | Path) -> None:
        if network.num_codes is None:
            raise ValueError(
                f"tokenizer={path} is an autoencoder without codes: train one with bottleneck=vq, simvq or fsq."
            )
        super().__init__(network)
        self.path = str(path)
        self.num_codes = network.num_codes
        self.grid_size = network.grid_size
        self.patch_size = network.image_size // network.grid_size
        self.hash = weights_hash(network)
        self.dilation = receptive_radius(network.encode, network.image_size, network.in_channels, network.grid_size)

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
        """(K, C, P, P) patch that the decoder paints for each code, in the middle of a grid of the same code."""
        grid = torch.arange(self.num_codes, device=self.network.last_layer.device)[:, None].expand(
            -1, self.grid_size**2
        )
        pictures = torch.cat([self.decode(part) for part in grid.split(PATCH_BATCH)])
        patches = rearrange(pictures, "k c (h p) (w q) -> k h w c p q", h=self.grid_size, w=self.grid_size)
        return patches[:, self.grid_size // 2, self.grid_size // 2]

    def check_images(self, image_size: int, channels: int) -> None:
        """Check that the tokenizer was trained on images of a shape.

        Args:
            image_size: Side in pixels.
            channels: Number of channels.

        Raises:
            ValueError: It was not.
        """
        own = (self.network.image_size, self.network.in_channels)
        if own != (image_size, channels):
            raise ValueError(
                f"tokenizer={self.path} was trained on images of {own[0]} pixels and {own[1]} channels, but the data have "
                f"{image_size} and {channels}: choose the tokenizer's data, or train one on these."
            )

    def record(self) -> dict[str, Any]:
        """Identify the tokenizer.

        Returns:
            Plain values: two with equal hashes give equal tokens.
        """
        return {"path": self.path, "hash": self.hash}

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
    """Load a trained tokenizer; nothing but tensors and plain containers is unpickled.

    Args:
        path: Checkpoint of a tokenizer run, such as ``experiment=vqgan_scenes``, whose averaged weights are used where it
            has them; or the ``model.safetensors`` of an exported one.

    Raises:
        ValueError: If the file is missing or is no such checkpoint.
        LoadMemoryError: If it needs more memory than there is.
    """
    config, weights = read_tokenizer(path)
    try:
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten, so they must not cost a draw
            network = _build(config)
        network.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise LoadMemoryError(f"tokenizer={path} does not fit into the memory that is left: {error}") from error
        raise ValueError(_no_tokenizer(path, NOT_ALIKE)) from error
    if not isinstance(network, Autoencoder):
        raise ValueError(_no_tokenizer(path, f"it holds a {type(network).__name__}"))
    return Tokenizer(network, path)


def read_tokenizer(path: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Read what a tokenizer is built from; see ``load_tokenizer``.

    Args:
        path: Checkpoint of a run, or ``model.safetensors`` of an export.

    Returns:
        The config of its network, and the weights by the network's own names.
    """
    return _read_exported(Path(path)) if Path(path).suffix == SUFFIX else _read_run(path)


def _read_run(path: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    try:
        checkpoint = read_checkpoint(path)
    except FileNotFoundError as error:
        raise ValueError(f"tokenizer={path} does not exist.") from error
    except NotLoadedError as error:
        raise ValueError(_no_tokenizer(path, str(error))) from error
    if fault := checkpoint_fault(checkpoint):
        raise ValueError(_no_tokenizer(path, fault))
    try:
        return checkpoint["config"]["network"], network_weights(checkpoint)
    except (KeyError, TypeError) as error:
        raise ValueError(_no_tokenizer(path, NOT_ALIKE)) from error


def _read_exported(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    weights, metadata = read_network(path)
    try:
        return json.loads(metadata["network"]), weights
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(_no_tokenizer(path, NOT_ALIKE)) from error


def _build(node: Mapping[str, Any]) -> nn.Module:
    arguments = {
        key: _build(value) if isinstance(value, Mapping) else value for key, value in node.items() if key != "_target_"
    }
    return PARTS[node["_target_"]](**arguments)


def _no_tokenizer(path: str | Path, reason: str) -> str:
    return f"tokenizer={path} is no tokenizer: {reason}; give a run of experiment=vqgan_scenes or one like it."
