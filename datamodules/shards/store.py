"""Images in tar shards, decoded when they are asked for: for sets larger than memory.

Shape suffixes: N images in the store, B batch, C channels, S side of the square crop, L labels, K labels of an image.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.progress import track
from torch import Tensor

from datamodules.damage import DamagedImageError
from datamodules.decoding import decode, fitted
from datamodules.shards.files import ShardError, ShardFiles
from datamodules.shards.index import ShardIndex
from datamodules.source import ImageSource
from files.cache import Tensors, cached
from files.images import DECODING_ERRORS, NOTES, Picture, read_picture, reason
from generative.randomness import Randomness

_VERSION = 2  # raised when decoding changes
_CHUNK = 256  # images
_MAX_IN_A_ROW = 1000  # damaged images, after which no replacement is looked for


@dataclass(frozen=True)
class ShardStore(ImageSource):
    """Images of shards, known by their places; some 30 bytes of memory for each.

    A damaged image is replaced by the next one in the store that is whole: a function of the image alone, so that it
    does not depend on batches, ranks or a resume.

    Attributes:
        index: Where each of the N images lies.
        pool: Threads that decode.
        channels: 1 for grey, 3 for RGB.
        classes: Length L of the labels; 0 without labels.
        minimum_side: A smaller image is enlarged until its short side has so many pixels.
        short_side: Resize every image to this short side, or None to keep sizes.
        damaged: ``stop`` or ``skip``: what becomes of an image that cannot be decoded.
        mixed_shards: Shards whose images are mixed with each other in an epoch.
        prefetch: Batches that the loaders fetch ahead.
        replaced_by: Which image each of the damaged ones met so far was replaced by.
        noted: Which ``NOTES`` were told, each at the first image that it is true of.
    """

    files: ShardFiles
    index: ShardIndex
    pool: ThreadPoolExecutor = field(repr=False)
    channels: int
    classes: int
    minimum_side: int
    short_side: int | None
    damaged: str
    mixed_shards: int
    prefetch: int
    replaced_by: dict[int, int] = field(default_factory=dict, repr=False)
    noted: set[str] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return len(self.index.offset)

    @property
    def nbytes(self) -> int:
        """Size of the encoded images in bytes."""
        return int(self.index.size.sum())

    @property
    def shortest_side(self) -> int:
        """The side that smaller images are enlarged to."""
        return self.minimum_side

    @property
    def longest_side(self) -> None:
        """None: sizes show when images are read."""
        return

    @property
    def num_classes(self) -> int:
        return self.classes

    def labels_of(self, indices_B: Tensor) -> Tensor | None:
        if not self.classes:
            return None
        numbers_BK = self.index.labels[indices_B].long()
        # Rows are filled up with -1, which becomes a last column that is cut off.
        hot = torch.zeros(len(indices_B), self.classes + 1)
        return hot.scatter_(1, numbers_BK % (self.classes + 1), 1.0)[:, : self.classes]

    def to(self, device: torch.device | str) -> ShardStore:
        """Return the store itself: images are decoded in host memory, whatever the device."""
        return self

    def select(self, rows: Tensor) -> ShardStore:
        return replace(self, index=self.index.select(rows), replaced_by={})

    def content_hashes(self) -> Tensor:
        """Return hashes of the images' files and of how they are decoded; the pixels are not compared."""
        settings = repr((_VERSION, self.channels, self.minimum_side, self.short_side)).encode()
        return self.index.hash ^ int.from_bytes(
            hashlib.blake2b(settings, digest_size=8).digest(), "little", signed=True
        )

    def hashed(self) -> ShardStore:
        """Return the store itself: the index has the hashes."""
        return self

    def permutation(self, generator: torch.Generator) -> Tensor:
        """Draw an order in which only ``mixed_shards`` shards are read at a time.

        The order of the shards is drawn, and the order of all images within each ``mixed_shards`` of them.

        Returns:
            (N,) int64 permutation of the indices.
        """
        counts = torch.bincount(self.index.shard)
        images_of = self.index.shard.argsort(stable=True).split(counts.tolist())
        shards = counts.nonzero()[:, 0]
        order = []
        for mixed in shards[torch.randperm(len(shards), generator=generator)].split(self.mixed_shards):
            images = torch.cat([images_of[shard] for shard in mixed.tolist()])
            order.append(images[torch.randperm(len(images), generator=generator)])
        return torch.cat(order)

    def name_of(self, index: int) -> str:
        shard, offset = int(self.index.shard[index]), int(self.index.offset[index])
        header = self._read(shard, tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
        return f"{tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name} in {self.files.locations[shard]}"

    def gather(self, indices_B: Tensor, size: int, randomness: Randomness | None = None) -> Tensor:
        return self.read(indices_B, size, randomness)[0]

    def read(self, indices_B: Tensor, size: int, randomness: Randomness | None = None) -> tuple[Tensor, Tensor]:
        places_B2 = torch.full((len(indices_B), 2), 0.5) if randomness is None else randomness.uniform(2)
        images = np.empty((len(indices_B), self.channels, size, size), np.uint8)  # a tensor may be of inference mode

        def read(row: int, index: int, down: float, right: float) -> int:
            shown, image = self._whole(index)
            height, width = image.shape[1:]
            if randomness is None:
                top, left = (height - size) // 2, (width - size) // 2
            else:
                top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
            images[row] = image[:, top : top + size, left : left + size].numpy()
            return shown

        shown = self.pool.map(read, range(len(indices_B)), indices_B.tolist(), *places_B2.T.tolist())
        index = torch.tensor(list(shown))
        return torch.from_numpy(images), index

    def _whole(self, index: int) -> tuple[int, Tensor]:
        """Decode an image, or the first whole one that follows."""
        first = self.replaced_by.get(index, index)
        for step in range(min(len(self), _MAX_IN_A_ROW)):
            shown = (first + step) % len(self)
            content = io.BytesIO(self._content(shown))
            try:
                picture = read_picture(content)
            except DECODING_ERRORS as error:
                if self.damaged == "stop":
                    raise DamagedImageError(
                        f"the image {self.name_of(shown)} cannot be decoded ({reason(error)}): replace it, or set "
                        "data.damaged=skip to continue without such images and count them, from the last checkpoint with "
                        "resume=RUN"
                    ) from error
                continue
            if shown != index:
                self.replaced_by[index] = shown
            self._tell_notes(picture, shown)
            return shown, fitted(picture, self.channels, self.minimum_side, self.short_side)
        raise DamagedImageError(
            f"the images from {self.name_of(index)} on cannot be decoded, {min(len(self), _MAX_IN_A_ROW)} in a row: check "
            "the shards and data.image_key"
        )

    def _tell_notes(self, picture: Picture, index: int) -> None:
        for note, holds in zip(NOTES, picture.notes, strict=True):
            if holds and note not in self.noted:
                self.noted.add(note)
                rank_zero_warn(f"images of the shards {note} (the first that was met: {self.name_of(index)})")

    def _content(self, index: int) -> bytes:
        shard, size = int(self.index.shard[index]), int(self.index.size[index])
        content = self._read(shard, size, int(self.index.offset[index]))
        if len(content) < size:
            raise ShardError(f"the shard {self.files.locations[shard]} has become shorter: start the run again")
        return content

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        file = self.files.open(shard)  # held while it is read: another thread may push it out, and so close it
        return os.pread(file.fileno(), size, offset)

    def readable(self, limit: int | None, cache_dir: Path) -> Tensor:
        """Decode images until so many have proven whole, once: the answer is kept in the cache folder.

        Args:
            limit: Number of whole images wanted, or None for all.
            cache_dir: Folder of the answers.

        Returns:
            (M,) mask of the first M images, those that were looked at.
        """

        def is_whole(index: int) -> bool:
            content = io.BytesIO(self._content(index))
            try:
                decode(content, self.channels, self.minimum_side, self.short_side)
            except DECODING_ERRORS:
                return False
            return True

        def build() -> Tensors:
            looked_at: list[bool] = []
            for chunk in track(torch.arange(len(self)).split(_CHUNK), "Checking evaluation images", transient=True):
                if limit is not None and sum(looked_at) >= limit:
                    break
                looked_at += self.pool.map(is_whole, chunk.tolist())
            return {"readable": torch.tensor(looked_at, dtype=torch.bool)}

        digest = hashlib.blake2b(repr((_VERSION, self.channels, limit)).encode(), digest_size=8)
        digest.update(self.index.hash.numpy().data)
        return cached(cache_dir / f"readable-{digest.hexdigest()}.pt", build)["readable"]
