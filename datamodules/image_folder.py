"""Any folder tree of images, decoded once into a memory-mapped file of uint8 pixels."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import ImageDataModule
from datamodules.damage import Policy, left_out
from datamodules.decoding import decoded, fitted, tell_notes
from datamodules.splits import Split, Splits, check_fractions, check_own_images
from datamodules.store import ImageStore, content_hash
from files.cache import Tensors, cached
from files.listing import file_state, list_images
from files.words import count, named
from generative.checks import checked
from generative.ranges import BelowOne, Channels, Count, WholeNumber

_VERSION = 2  # raised when decoding changes


def image_files(folder: Path, key: str = "data.root") -> list[Path]:
    """List the image files of a folder tree; a warning names pictures of formats that are not read.

    Args:
        key: What names it, for messages.

    Returns:
        Paths in a fixed order.

    Raises:
        FileNotFoundError: If the folder is missing or holds no image file.
        PermissionError: If a folder in it cannot be opened.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the image folder {folder.absolute()} does not exist: set {key}=FOLDER to a folder of images"
        )
    listing = list_images(folder)
    for inner, why in listing.closed.items():
        raise PermissionError(
            f"{folder.absolute() / inner} cannot be opened: {why}; set {key}=FOLDER to one that can be read"
        )
    if not listing.images:
        raise FileNotFoundError(
            f"the image folder {folder.absolute()} holds no image file: set {key}=FOLDER to a folder of images"
        )
    if listing.unread:
        rank_zero_warn(
            f"{folder} holds {count(len(listing.unread), 'picture')} of formats that are not read ({named(listing.unread)})"
        )
    return [folder / file for file in listing.images]


def read_fitted(files: list[Path], channels: int, minimum_side: int, short_side: int | None = None) -> Tensors:
    """Read image files, leaving out those that cannot be decoded.

    Returns:
        ``readable``, an (F,) mask of the files, and ``notes``, an (F, K) mask of their ``NOTES``; and of the readable ones
        ``flat``, their pixels end to end, and the (N,) ``heights``, ``widths`` and content ``hashes``.
    """
    pixels, notes = zip(
        *decoded(files, lambda picture: fitted(picture, channels, minimum_side, short_side)), strict=True
    )
    readable = torch.tensor([image is not None for image in pixels])
    images = [image for image in pixels if image is not None]
    del pixels
    tensors = {
        "readable": readable,
        "notes": torch.tensor(notes),
        "heights": torch.tensor([image.shape[1] for image in images], dtype=torch.int64),
        "widths": torch.tensor([image.shape[2] for image in images], dtype=torch.int64),
        "hashes": torch.tensor([content_hash(image) for image in images], dtype=torch.int64),
    }
    flat = torch.empty(sum(image.numel() for image in images), dtype=torch.uint8)
    filled = len(flat)
    while images:  # one at a time, so that they are not held twice
        image = images.pop()
        flat[filled - image.numel() : filled] = image.flatten()
        filled -= image.numel()
    return tensors | {"flat": flat}


def held_out(names: list[str], fractions: dict[Split, float]) -> dict[Split, list[int]]:
    """Split files by the hash of their names, so that a file added later moves hardly any other.

    Args:
        names: Names of the files, relative to their root.
        fractions: Share of the files in each split but training; a split gets at least one file.

    Returns:
        Indices of the files of each split, in the order of the names; the rest is ``train``.
    """
    order = sorted(range(len(names)), key=lambda i: hashlib.blake2b(os.fsencode(names[i])).digest())
    parts: dict[Split, list[int]] = {}
    for split, fraction in fractions.items():
        count = max(1, math.floor(fraction * len(names)))
        parts[split], order = sorted(order[:count]), order[count:]
    return parts | {"train": sorted(order)}


@checked("data")
class ImageFolderDataModule(ImageDataModule):
    """Images of a folder tree: random crops in training, centred crops in evaluation.

    ``root`` may have a subfolder ``train``, and next to it ``val`` and ``test``; each can also be named on its own. A
    validation or test split without a folder is drawn from the training files.

    Args:
        image_size: Side of the crops; smaller images are enlarged until they fit.
        root: Folder of images.
        train_root: Folder of the training images; by default ``root/train`` where it exists, else ``root``.
        val_root: Folder of the validation images; by default ``root/val`` where it and ``root/train`` exist.
        test_root: Folder of the test images; by default ``root/test`` where it and ``root/train`` exist.
        val_fraction: Share of the training files for validation where they have no folder.
        test_fraction: Share of the training files for test where they have no folder.
        short_side: Resize every image to this short side before cropping, or None to keep sizes.
        damaged: What becomes of files that cannot be decoded: ``stop`` or ``skip``.
        **settings: See ``ImageDataModule``.
    """

    def __init__(
        self,
        name: str,
        image_size: Count,
        channels: Channels,
        num_classes: WholeNumber = 0,
        root: str | Path | None = None,
        train_root: str | Path | None = None,
        val_root: str | Path | None = None,
        test_root: str | Path | None = None,
        val_fraction: BelowOne = 0.05,
        test_fraction: BelowOne = 0.05,
        short_side: Count | None = None,
        damaged: Policy = "stop",
        **settings: Any,
    ) -> None:
        super().__init__(name, image_size, channels, num_classes, damaged=damaged, **settings)
        self.root = root
        self.roots: dict[Split, str | Path | None] = {"train": train_root, "val": val_root, "test": test_root}
        self.fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
        self.short_side = short_side

    def _folder(self, split: Split) -> Path | None:
        if (own := self.roots[split]) is not None:
            return Path(own)
        if self.root is None:
            return None
        root = Path(self.root)
        has_train = (root / "train").is_dir()
        if has_train and (root / split).is_dir():
            return root / split
        return root if split == "train" else None

    def _key(self, split: Split) -> str:
        return "data.root" if self.roots[split] is None else f"data.{split}_root"

    def _files(self) -> dict[Split, list[Path]]:
        train_root = self._folder("train")
        if train_root is None:
            raise FileNotFoundError("data=image_folder needs images: set data.root=FOLDER to a folder of images")
        files: dict[Split, list[Path]] = {"train": image_files(train_root, self._key("train"))}
        missing: dict[Split, float] = {}
        for split, fraction in self.fractions.items():
            folder = self._folder(split)
            if folder is None:
                missing[split] = fraction
            else:
                check_own_images(split, f"{self._key(split)}={folder}", [folder], [train_root])
                files[split] = image_files(folder, self._key(split))
        names = [file.relative_to(train_root).as_posix() for file in files["train"]]
        if len(names) <= len(missing):
            raise ValueError(
                f"{train_root} holds {count(len(names), 'image')}, too few for the splits {', '.join(('train', *missing))}: "
                "set data.root to a folder with more"
            )
        check_fractions(missing)
        parts = held_out(names, missing)
        return files | {split: [files["train"][i] for i in rows] for split, rows in parts.items()}

    def load_splits(self) -> Splits:
        files = self._files()
        # One folder may serve two splits, such as validation and test; a file is decoded once.
        distinct = sorted({file for split in files.values() for file in split})
        tensors = cached(
            self._cache_path(distinct),
            lambda: read_fitted(distinct, self.channels, self.image_size, self.short_side),
            memory_map=True,
        )
        readable = tensors["readable"].tolist()
        damaged = [str(file) for file, good in zip(distinct, readable, strict=True) if not good]
        damaged_names = left_out(damaged, len(distinct), self.damaged)
        tell_notes(distinct, tensors["notes"])
        row_of = {file: row for row, file in enumerate(itertools.compress(distinct, readable))}
        images = ImageStore.ragged(
            tensors["flat"], tensors["heights"], tensors["widths"], self.channels, tensors["hashes"]
        )

        def store(split: Split) -> ImageStore:
            rows = [row_of[file] for file in files[split] if file in row_of]
            return images.select(torch.tensor(rows, dtype=torch.int64))

        origins = {split: self._folder(split) for split in files}
        return Splits(
            train=store("train"),
            val=store("val"),
            test=store("test"),
            source="image files",
            folders={split: str(folder) for split, folder in origins.items() if folder},
            drawn=", ".join(
                f"{split}: own folder"
                if origins[split]
                else f"{split}: {fraction:g} of the training files by name hash"
                for split, fraction in self.fractions.items()
            ),
            damaged=damaged_names,
        )

    def _cache_path(self, files: list[Path]) -> Path:
        state = [(str(file.absolute()), *file_state(file)) for file in files]
        settings = (_VERSION, self.channels, self.image_size, self.short_side)
        key = hashlib.blake2b(repr((settings, state)).encode(), digest_size=8).hexdigest()
        return self.cache_dir / f"image_folder-{key}.pt"
