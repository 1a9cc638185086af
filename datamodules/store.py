"""Images in memory as uint8, of one size or of many, and their vectorised cropping.

Shape suffixes: N images in the store, B batch, C channels, H height, W width, S side of the square crop, L labels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datamodules.source import ImageSource
from generative.randomness import Randomness


@dataclass(frozen=True)
class ImageStore(ImageSource):
    """uint8 images in one flat buffer, each stored as C x H x W.

    Attributes:
        flat: (bytes,) uint8 buffer, possibly memory-mapped and shared with other stores.
        offsets: (N,) int64 position of each image in the buffer.
        heights: (N,) int64 heights in pixels.
        widths: (N,) int64 widths in pixels.
        channels: Number of channels C of every image.
        labels: (N, L) float multi-hot labels, or None.
        hashes: (N,) int64 content hashes where they are known already, or None.
        origins: (N,) int64 numbers of what each image was generated from, or None for images that were read.
    """

    flat: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    channels: int
    labels: Tensor | None = None
    hashes: Tensor | None = None
    origins: Tensor | None = None

    @classmethod
    def dense(cls, images_NCHW: Tensor, labels: Tensor | None = None, recipe: str | None = None) -> ImageStore:
        """Build a store of images of one size.

        Args:
            images_NCHW: (N, C, H, W) uint8 images.
            labels: (N, L) float multi-hot labels, or None.
            recipe: For generated images all that they were generated from, their places in the store apart. It stands for
                the pixels in the fingerprint: the last bit of a float, and so a grey level here and there, depends on the
                processor.

        Returns:
            The store; it shares memory with a contiguous ``images_NCHW``.
        """
        n, channels, height, width = images_NCHW.shape
        return cls(
            flat=images_NCHW.reshape(-1),
            offsets=torch.arange(n) * (channels * height * width),
            heights=torch.full((n,), height),
            widths=torch.full((n,), width),
            channels=channels,
            labels=labels,
            origins=None if recipe is None else _numbered(recipe, n),
        )

    @classmethod
    def ragged(
        cls, flat: Tensor, heights: Tensor, widths: Tensor, channels: int, hashes: Tensor | None = None
    ) -> ImageStore:
        """Build a store of images of different sizes, laid end to end.

        Args:
            flat: (bytes,) uint8 buffer.
            heights: (N,) int64 heights in pixels.
            widths: (N,) int64 widths in pixels.
            channels: Number of channels C.
            hashes: (N,) int64 content hashes where they are known.

        Returns:
            The store; it shares memory with ``flat``.
        """
        sizes = channels * heights * widths
        return cls(flat, sizes.cumsum(0) - sizes, heights, widths, channels, hashes=hashes)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.flat.device

    @property
    def nbytes(self) -> int:
        """Size of the buffer in bytes."""
        return self.flat.numel()

    @property
    def shortest_side(self) -> int:
        return int(torch.minimum(self.heights, self.widths).min())

    @property
    def longest_side(self) -> int:
        return int(torch.maximum(self.heights, self.widths).max())

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else self.labels.shape[1]

    def labels_of(self, indices_B: Tensor) -> Tensor | None:
        return None if self.labels is None else self.labels[indices_B.to(self.labels.device)]

    def to(self, device: torch.device | str) -> ImageStore:
        return replace(
            self,
            flat=self.flat.to(device),
            offsets=self.offsets.to(device),
            heights=self.heights.to(device),
            widths=self.widths.to(device),
            labels=None if self.labels is None else self.labels.to(device),
        )

    def select(self, rows: Tensor) -> ImageStore:
        return replace(
            self,
            offsets=self.offsets[rows],
            heights=self.heights[rows],
            widths=self.widths[rows],
            labels=None if self.labels is None else self.labels[rows],
            hashes=None if self.hashes is None else self.hashes[rows],
            origins=None if self.origins is None else self.origins[rows],
        )

    def image(self, index: int) -> Tensor:
        """Return one whole image.

        Args:
            index: Index of the image.

        Returns:
            (C, H, W) uint8 view.
        """
        offset, height, width = int(self.offsets[index]), int(self.heights[index]), int(self.widths[index])
        return self.flat[offset : offset + self.channels * height * width].view(self.channels, height, width)

    def content_hashes(self) -> Tensor:
        if self.hashes is not None:
            return self.hashes
        return torch.tensor([content_hash(self.image(i)) for i in range(len(self))], dtype=torch.int64)

    def identities(self) -> Tensor:
        return self.content_hashes() if self.origins is None else self.origins

    def hashed(self) -> ImageStore:
        return replace(self, hashes=self.content_hashes())

    def gather(self, indices_B: Tensor, size: int, randomness: Randomness | None = None) -> Tensor:
        """Cut a square from each of some images, by one index operation over the whole batch."""
        rows = indices_B.to(self.device)
        offsets, heights, widths = self.offsets[rows], self.heights[rows], self.widths[rows]
        if randomness is None:
            top, left = (heights - size) // 2, (widths - size) // 2
        else:
            # Drawn even where nothing is to be cropped: the stream must not depend on which images meet in a batch.
            places = randomness.uniform(2).to(self.device)
            top = (places[:, 0] * (heights - size + 1)).long()
            left = (places[:, 1] * (widths - size + 1)).long()
        channel = torch.arange(self.channels, device=self.device)
        pixel = torch.arange(size, device=self.device)
        planes_BC = offsets[:, None] + channel * (heights * widths)[:, None]
        lines_BS = (top[:, None] + pixel) * widths[:, None]
        columns_BS = left[:, None] + pixel
        # Positions split into a line start and a column keep the int64 index small until the last, broadcast sum.
        starts_BCS = planes_BC[:, :, None] + lines_BS[:, None, :]
        return self.flat[starts_BCS[..., None] + columns_BS[:, None, None, :]]


def _numbered(recipe: str, count: int) -> Tensor:
    """Return (count,) different int64 numbers, others for another recipe."""
    first = int.from_bytes(hashlib.blake2b(recipe.encode(), digest_size=8).digest(), "little", signed=True)
    return torch.arange(count) + first  # beyond the largest number come the smallest ones


def content_hash(image_CHW: Tensor) -> int:
    """Hash an image's size and pixels.

    Args:
        image_CHW: (C, H, W) uint8 image on the CPU.

    Returns:
        A signed 64-bit number; equal images have equal hashes.
    """
    digest = hashlib.blake2b(str(tuple(image_CHW.shape)).encode(), digest_size=8)
    digest.update(image_CHW.contiguous().numpy().data)
    return int.from_bytes(digest.digest(), "little", signed=True)


def pad_to(images_NCHW: Tensor, size: int) -> Tensor:
    """Pad images with black to a square, centred.

    Args:
        images_NCHW: (N, C, H, W) images, no larger than ``size``.
        size: Side S of the square in pixels.

    Returns:
        (N, C, S, S) images.
    """
    height, width = images_NCHW.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return torch.nn.functional.pad(images_NCHW, (left, size - width - left, top, size - height - top))
