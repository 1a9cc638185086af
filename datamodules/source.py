"""The interface of the images of a split: what the loaders ask of them, whether they lie in memory or in tar shards.

Shape suffixes: N images of the split, M of a part of it, B batch, C channels, S side of the square crop, L labels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from generative.randomness import Randomness

_NUM_TOLD_FROM = 4096  # images that tell whether labels are classes
_CHUNK = 2**16  # images whose labels are hashed at a time; a multiple of the eight bits of a byte


class ImageSource(ABC):
    """The images of a split, by index: in memory (``ImageStore``) or in tar shards (``ShardStore``).

    Attributes:
        channels: Number of channels C of every image.
        hashes: (N,) int64 content hashes where they are known already, or None.
        prefetch: Batches that the loaders fetch ahead; 0 where a batch is one index operation in memory.
    """

    channels: int
    hashes: Tensor | None
    prefetch: int = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Size of the images in bytes, as they are stored."""

    @property
    @abstractmethod
    def shortest_side(self) -> int:
        """Length in pixels of the shortest side of any image."""

    @property
    @abstractmethod
    def longest_side(self) -> int | None:
        """Length in pixels of the longest side of any image; None where that shows only when they are read."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Length L of the labels; 0 without labels."""

    @abstractmethod
    def labels_of(self, indices_B: Tensor) -> Tensor | None:
        """Return the labels of some images.

        Args:
            indices_B: (B,) int64 indices of the images.

        Returns:
            (B, L) float multi-hot labels, or None for images without labels.
        """

    def has_one_label(self) -> bool:
        """Tell from the first images whether the labels are classes, of which each image has one."""
        labels = self.labels_of(torch.arange(min(len(self), _NUM_TOLD_FROM)))
        return labels is not None and bool(((labels > 0).sum(1) == 1).all())

    @abstractmethod
    def to(self, device: torch.device | str) -> ImageSource:
        """Return the source with its images on a device, where they can lie there."""

    @abstractmethod
    def select(self, rows: Tensor) -> ImageSource:
        """Return a source of some of the images; nothing is copied.

        Args:
            rows: (M,) int64 indices, or an (N,) mask.

        Returns:
            A source of M images.
        """

    @abstractmethod
    def content_hashes(self) -> Tensor:
        """Return a hash of each image, for finding identical ones.

        Returns:
            (N,) int64 hashes.
        """

    def identities(self) -> Tensor:
        """Return what stands for each image in the fingerprint.

        Returns:
            (N,) int64 numbers: the content hashes, or others where pixels depend on the processor that made them.
        """
        return self.content_hashes()

    def fingerprint(self) -> str:
        """Hash the images and their labels in their order.

        Returns:
            16 hexadecimal digits, the same on every machine.
        """
        digest = hashlib.blake2b(f"{len(self)} images, {self.num_classes} labels".encode(), digest_size=8)
        digest.update(self.identities().numpy().astype("<i8").data)
        for indices in torch.arange(len(self)).split(_CHUNK):
            labels = self.labels_of(indices)
            if labels is not None:
                digest.update(np.packbits(labels.cpu().numpy() > 0).data)
        return digest.hexdigest()

    @abstractmethod
    def hashed(self) -> ImageSource:
        """Return the same source with its hashes known."""

    @abstractmethod
    def gather(self, indices_B: Tensor, size: int, randomness: Randomness | None = None) -> Tensor:
        """Cut a square from each of some images.

        Args:
            indices_B: (B,) int64 indices of the images.
            size: Side S of the square in pixels; at most ``shortest_side``.
            randomness: Source of the crops' places, or None for centred crops.

        Returns:
            (B, C, S, S) uint8 images on the source's device.
        """

    def read(self, indices_B: Tensor, size: int, randomness: Randomness | None = None) -> tuple[Tensor, Tensor]:
        """Cut squares, and say which images they are of where damaged ones are replaced.

        Returns:
            The images of ``gather``, and the (B,) indices of what they show.
        """
        return self.gather(indices_B, size, randomness), indices_B

    def permutation(self, generator: torch.Generator) -> Tensor:
        """Draw an order of an epoch.

        Returns:
            (N,) int64 permutation of the indices.
        """
        return torch.randperm(len(self), generator=generator)

    def name_of(self, index: int) -> str:
        """Return what messages call an image.

        Args:
            index: Index of the image.
        """
        return f"number {index}"
