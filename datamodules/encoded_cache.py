"""What a frozen autoencoder makes of the training images, computed once, of all their views: tokens or latents.

Shape legend: I images, V views (as they are, mirrored, turned), B batch; ``...`` is N tokens or D G G latents of an image.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.progress import track
from torch import Tensor

from datamodules.source import ImageSource
from datamodules.views import Views
from files.cache import Tensors, cache_folder, cached
from files.pixels import from_levels

MAX_CODES = 2**16
BATCH_SIZE = 250


class EncodedCacheError(ValueError):
    """What is encoded cannot be kept; the message says in one sentence why, and the remedy."""


class Encoder(Protocol):
    """A frozen autoencoder."""

    @property
    def name(self) -> str:
        """What it makes: ``tokens`` or ``latents``."""

    @property
    def num_codes(self) -> int | None:
        """Number of codes of tokens, which are kept in two bytes each; None for latents, which are kept as they are."""

    @property
    def hash(self) -> str:
        """Hash of its weights."""

    def to(self, device: torch.device | str) -> Any:
        """Move it."""

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Encode (B, C, H, W) images in [-1, 1]."""


@dataclass(frozen=True)
class EncodedCache:
    """Tokens or latents by image.

    Attributes:
        values: (I, V, ...) float32 latents; or int16, the bits of unsigned numbers of tokens.
    """

    values: Tensor

    def lookup(self, index_B: Tensor, view_B: Tensor | None = None) -> Tensor:
        """Return what is kept of some images.

        Args:
            index_B: (B,) int64 indices.
            view_B: (B,) int64 numbers of their views; None for the images as they are.

        Returns:
            (B, ...) int64 tokens or float32 latents.
        """
        found = self.values[index_B, 0 if view_B is None else view_B]
        return found if found.is_floating_point() else found.long() & (MAX_CODES - 1)

    def to(self, device: torch.device | str) -> EncodedCache:
        """Return the cache on a device.

        Args:
            device: The device of the batches to come.

        Returns:
            The cache there.
        """
        return self if self.values.device == torch.device(device) else EncodedCache(self.values.to(device))


def encoded(
    store: ImageSource,
    image_size: int,
    views: Views,
    encoder: Encoder,
    device: torch.device | str,
    cache_dir: str | Path | None = None,
) -> EncodedCache:
    """Encode images, or read what an earlier run of the same autoencoder and images has written; memory holds all of it.

    Images larger than ``image_size`` are encoded in their centred crop alone; a warning says so.

    Args:
        image_size: Side of the images in pixels.
        views: Those in which to encode each image.
        device: Where it runs.
        cache_dir: Cache folder, or None for the user's.

    Returns:
        Tokens or latents, on the CPU.

    Raises:
        EncodedCacheError: If two bytes cannot hold a token, or memory cannot hold all of it.
    """
    if encoder.num_codes is not None and encoder.num_codes > MAX_CODES:
        raise EncodedCacheError(f"a tokenizer of {encoder.num_codes} codes is too large: two bytes hold {MAX_CODES}.")
    if store.longest_side is None or store.longest_side > image_size:
        rank_zero_warn(
            f"training images larger than data.image_size={image_size} are encoded in their centred crop alone"
        )
    dtype = torch.float32 if encoder.num_codes is None else torch.int16
    images = hashlib.blake2b(store.content_hashes().numpy().data, digest_size=8).hexdigest()
    name = f"{images}-{len(store)}-{image_size}-{encoder.hash}-{views.number}.pt"

    def build() -> Tensors:
        encoder.to(device)
        parts = []
        batches = torch.arange(len(store)).split(BATCH_SIZE)
        for indices in track(batches, description="encoding", console=Console(stderr=True), transient=True):
            image = from_levels(store.gather(indices, image_size)).to(device)
            made = torch.stack([encoder.encode(views.view(image, number)) for number in range(views.number)], dim=1)
            parts.append(made.to(dtype).cpu())
            if len(parts) == 1:
                _check_memory(encoder.name, len(store), parts[0][0].nbytes)
        return {encoder.name: torch.cat(parts)}

    return EncodedCache(cached(cache_folder(cache_dir) / encoder.name / name, build)[encoder.name])


def encoded_by_ranks(
    trainer: Trainer | None,
    store: ImageSource,
    image_size: int,
    views: Views,
    encoder: Encoder,
    cache_dir: str | Path | None = None,
) -> EncodedCache:
    """Encode images where a trainer computes; see ``encoded``.

    Args:
        trainer: The trainer, or None for the CPU of this process.

    Returns:
        Tokens or latents, on the trainer's device.
    """
    device = trainer.strategy.root_device if trainer else torch.device("cpu")
    values = None
    if trainer is None or trainer.local_rank == 0:  # one process of a machine fills the cache, the others read it
        values = encoded(store, image_size, views, encoder, device, cache_dir)
    if trainer is not None:
        trainer.strategy.barrier()
    return (values or encoded(store, image_size, views, encoder, device, cache_dir)).to(device)


def _check_memory(what: str, num_images: int, bytes_per_image: int) -> None:
    """Say at once that what is encoded of so many images is too much, before hours are spent on it."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * num_images * bytes_per_image > memory:  # twice: while the parts are put together
        raise EncodedCacheError(
            f"the {what} of {num_images} training images take {num_images * bytes_per_image / 1e9:.3g} GB, more than half "
            f"of this machine's memory: set data.num_train={memory // (2 * bytes_per_image)} or less"
        )
