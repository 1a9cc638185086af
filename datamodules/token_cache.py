"""The tokens of the training images, computed once, mirrored images too: two bytes a token.

Shape legend: I images, F 1 or 2 (as they are, mirrored), N tokens of an image, B batch.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.progress import track
from torch import Tensor

from datamodules.source import ImageSource
from files.cache import Tensors, cache_folder, cached
from files.pixels import from_levels
from generative.networks.tokenizer import Tokenizer

MAX_CODES = 2**16
BATCH_SIZE = 250


class TokenCacheError(ValueError):
    """The tokens cannot be kept; the message says in one sentence why, and the remedy."""


@dataclass(frozen=True)
class TokenCache:
    """Tokens by image.

    Attributes:
        tokens: (I, F, N) int16, the bits of unsigned numbers.
    """

    tokens: Tensor

    def lookup(self, index_B: Tensor, flipped_B: Tensor | None = None) -> Tensor:
        """Return the tokens of some images.

        Args:
            index_B: (B,) int64 indices.
            flipped_B: (B,) bool, which of them are mirrored; None where none is.

        Returns:
            (B, N) int64 tokens.
        """
        view = 0 if flipped_B is None else flipped_B.long()
        return self.tokens[index_B, view].long() & (MAX_CODES - 1)

    def to(self, device: torch.device | str) -> TokenCache:
        """Return the cache on a device.

        Args:
            device: The device of the batches to come.

        Returns:
            The cache there.
        """
        return self if self.tokens.device == torch.device(device) else TokenCache(self.tokens.to(device))


def tokenized(
    store: ImageSource,
    image_size: int,
    mirrored: bool,
    tokenizer: Tokenizer,
    device: torch.device | str,
    cache_dir: str | Path | None = None,
) -> TokenCache:
    """Tokenize images, or read what an earlier run of the same tokenizer and images has written; memory holds them all.

    Images larger than ``image_size`` are tokenized in their centred crop alone; a warning says so.

    Args:
        image_size: Side of the images in pixels.
        mirrored: Whether to tokenize the mirrored images too.
        device: Where it runs.
        cache_dir: Cache folder, or None for the user's.

    Returns:
        The tokens, on the CPU.

    Raises:
        TokenCacheError: If two bytes cannot hold a token, or memory cannot hold all of them.
    """
    if tokenizer.num_codes > MAX_CODES:
        raise TokenCacheError(f"a tokenizer of {tokenizer.num_codes} codes is too large: two bytes hold {MAX_CODES}.")
    if store.longest_side is None or store.longest_side > image_size:
        rank_zero_warn(
            f"training images larger than data.image_size={image_size} are tokenized in their centred crop alone"
        )
    views = 2 if mirrored else 1
    images = hashlib.blake2b(store.content_hashes().numpy().data, digest_size=8).hexdigest()
    name = f"{images}-{len(store)}-{image_size}-{tokenizer.hash}-{views}.pt"

    def build() -> Tensors:
        tokenizer.to(device)
        parts = []
        batches = torch.arange(len(store)).split(BATCH_SIZE)
        for indices in track(batches, description="tokenizing", console=Console(stderr=True), transient=True):
            image = from_levels(store.gather(indices, image_size)).to(device)
            encoded = torch.stack([tokenizer.encode(view) for view in (image, image.flip(-1))[:views]], dim=1)
            parts.append(encoded.to(torch.int16).cpu())
            if len(parts) == 1:
                _check_memory(len(store), 2 * parts[0][0].numel())
        return {"tokens": torch.cat(parts)}

    return TokenCache(cached(cache_folder(cache_dir) / "tokens" / name, build)["tokens"])


def _check_memory(num_images: int, bytes_per_image: int) -> None:
    """Say at once that the tokens of so many images are too many, before hours are spent on them."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * num_images * bytes_per_image > memory:  # twice: while the parts are put together
        raise TokenCacheError(
            f"the tokens of {num_images} training images take {num_images * bytes_per_image / 1e9:.3g} GB, more than half "
            f"of this machine's memory: set data.num_train={memory // (2 * bytes_per_image)} or less"
        )
