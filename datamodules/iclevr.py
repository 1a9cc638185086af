"""i-CLEVR in its public layout: pictures of any size and the JSON files that name their labels."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.damage import Policy, left_out
from datamodules.decoding import decoded, tell_notes
from datamodules.labels import (
    NUM_LABELS,
    check_label_factors,
    check_labels,
    multi_hot,
    read_json,
    read_label_sets,
)
from datamodules.splits import Split, Splits
from datamodules.store import ImageStore, content_hash
from files.cache import Tensors, cached
from files.images import NOTES, Picture
from files.listing import file_state
from files.pixels import to_tensor
from files.words import named
from generative.checks import checked
from generative.randomness import generator_for
from generative.ranges import Channels, Count, WholeNumber

# Validation and test each hold one scene in so many: 300 of the 6,003, with all the pictures of a scene, which show
# the same objects. The same scenes whatever the run's seed.
SCENES_PER_HELD_OUT = 20
_SPLIT_SEED = 0
_VERSION = 3  # raised when decoding changes
_FOLDERS = ("images", "iclevr", "")  # of the pictures within the root
_SET_FILES = ("test.json", "new_test.json")
_FILES = ("objects.json", "train.json", *_SET_FILES)


def scene_of(name: str) -> str:
    """Return the scene that a picture shows.

    Args:
        name: Name of the file, such as ``CLEVR_train_000341_2.png``.

    Returns:
        The name without the picture's number within the scene, ``CLEVR_train_000341``.
    """
    stem = name.rsplit(".", 1)[0]
    return stem.rsplit("_", 1)[0]


def split_scenes(names: list[str]) -> dict[Split, list[str]]:
    """Split pictures so that all those of a scene are in one split.

    Args:
        names: Names of the files.

    Returns:
        Sorted names of each split, a function of the names alone.

    Raises:
        ValueError: If there are fewer than three scenes.
    """
    scenes = sorted({scene_of(name) for name in names})
    if len(scenes) < 3:
        raise ValueError(f"data=iclevr has {len(scenes)} scenes, too few for three splits: check data.train_json")
    order = torch.randperm(len(scenes), generator=generator_for(_SPLIT_SEED, "split")).tolist()
    count = max(1, len(scenes) // SCENES_PER_HELD_OUT)
    split_of: dict[str, Split] = {scenes[i]: "val" for i in order[:count]}
    split_of |= {scenes[i]: "test" for i in order[count : 2 * count]}
    parts: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    for name in sorted(names):
        parts[split_of.get(scene_of(name), "train")].append(name)
    return parts


def squeezed(picture: Picture, size: int) -> Tensor:
    """Resize a picture plainly: 4:3 is squeezed into a square, as is usual for i-CLEVR.

    Args:
        size: Side S of the square in pixels.

    Returns:
        (3, S, S) uint8 pixels, by PIL's bilinear filter, which averages when it reduces.
    """
    return to_tensor(picture.shown(3).resize((size, size), Image.Resampling.BILINEAR))


def read_squeezed(files: list[Path], size: int) -> Tensors:
    """Read and resize pictures.

    Args:
        files: The N files.
        size: Side S in pixels.

    Returns:
        ``images``, (N, 3, S, S) uint8, black where a file cannot be decoded; their (N,) content ``hashes``; the (N,)
        mask ``readable``; and ``notes``, an (N, K) mask of their ``NOTES``.
    """
    notes = torch.zeros(len(files), len(NOTES), dtype=torch.bool)
    images = torch.zeros(len(files), 3, size, size, dtype=torch.uint8)
    readable = torch.ones(len(files), dtype=torch.bool)
    for i, (pixels, own_notes) in enumerate(decoded(files, lambda picture: squeezed(picture, size))):
        notes[i] = torch.tensor(own_notes)
        if pixels is None:
            readable[i] = False
        else:
            images[i] = pixels
    hashes = torch.tensor([content_hash(image) for image in images], dtype=torch.int64)
    return {"images": images, "hashes": hashes, "readable": readable, "notes": notes}


@checked("data")
class ICLEVRDataModule(ImageDataModule):
    """i-CLEVR: pictures of one to three objects, each object one of the labels of ``objects.json``.

    Args:
        image_size: Side of the pictures, which are resized to it.
        num_classes: Number of labels in ``objects.json``.
        root: Folder with the JSON files, and the pictures in ``images/``, in ``iclevr/`` or in itself.
        images: Folder of the pictures, where it is another.
        objects_json: File of the labels' numbers by name, where it is not in the root.
        train_json: File of the pictures' labels by file name, where it is not in the root.
        test_json: File of the label sets ``test``, where it is not in the root.
        new_test_json: File of the label sets ``new_test``, where it is not in the root.
        allow_missing: Continue without pictures that ``train.json`` names but that are not there.
        damaged: What becomes of pictures that cannot be decoded: ``stop`` or ``skip``.
        **settings: See ``ImageDataModule``.
    """

    def __init__(
        self,
        name: str = "iclevr",
        image_size: Count = 64,
        channels: Channels = 3,
        num_classes: WholeNumber = NUM_LABELS,
        root: str | Path | None = None,
        images: str | Path | None = None,
        objects_json: str | Path | None = None,
        train_json: str | Path | None = None,
        test_json: str | Path | None = None,
        new_test_json: str | Path | None = None,
        allow_missing: bool = False,
        damaged: Policy = "stop",
        **settings: Any,
    ) -> None:
        super().__init__(name, image_size, channels, num_classes, damaged=damaged, **settings)
        self.root = root
        self.images = images
        self.files = dict(zip(_FILES, (objects_json, train_json, test_json, new_test_json), strict=True))
        self.allow_missing = allow_missing

    def _read_json(self, file: str) -> Any:
        return read_json(self._path(file), _remedy(file))

    def _path(self, file: str) -> Path:
        if (own := self.files[file]) is not None:
            return Path(own)
        return self._root() / file

    def _root(self) -> Path:
        if self.root is None:
            raise FileNotFoundError(
                f"data=iclevr needs its files: set data.root=FOLDER to a folder with {', '.join(_FILES)} and images/"
            )
        if not Path(self.root).is_dir():
            raise FileNotFoundError(
                f"data.root={self.root} does not exist: set data.root=FOLDER to a folder with {', '.join(_FILES)} "
                "and images/"
            )
        return Path(self.root)

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Read from ``objects.json`` on first use."""
        path, numbers = self._path("objects.json"), self._read_json("objects.json")
        if not isinstance(numbers, dict) or sorted(map(repr, numbers.values())) != sorted(
            map(repr, range(len(numbers)))
        ):
            raise ValueError(f"{path} does not give each label name a number from 0 on: use the published objects.json")
        names = tuple(sorted(numbers, key=lambda name: numbers[name]))
        if len(names) != self.num_classes:
            raise ValueError(f"data.num_classes={self.num_classes}, but {path} has {len(names)} labels")
        check_label_factors(self.label_factors, names)
        return names

    @cached_property
    def label_sets(self) -> dict[str, Tensor]:
        """Read from ``test.json`` and ``new_test.json`` on first use."""
        return {
            Path(file).stem: read_label_sets(self._path(file), self.label_names, _remedy(file)) for file in _SET_FILES
        }

    def read_labels(self) -> dict[str, list[str]]:
        """Read which objects the pictures show.

        Returns:
            Label names by the name of the picture's file.

        Raises:
            ValueError: If ``train.json`` holds anything else, or a label that ``objects.json`` does not name.
        """
        path, labels = self._path("train.json"), self._read_json("train.json")
        if not isinstance(labels, dict) or not labels:
            raise ValueError(f"{path} does not give lists of label names by image file: use the published train.json")
        for name, names in labels.items():
            check_labels(names, self.label_names, f"{path}: {name}")
        return labels

    def _locate(self, names: list[str]) -> tuple[Path, set[str]]:
        """Return the folder that holds most of the images, and the names of those that are there."""
        folders = [Path(self.images)] if self.images else [self._root() / folder for folder in _FOLDERS]
        there = [
            {file.name for file in folder.iterdir()} & set(names) if folder.is_dir() else set() for folder in folders
        ]
        best = max(range(len(folders)), key=lambda i: len(there[i]))  # the first one of equals
        missing = sorted(set(names) - there[best])
        if missing:
            message = (
                f"{len(missing)} of the {len(names)} images that {self._path('train.json')} names "
                f"are not in {folders[best]} ({named(missing)})"
            )
            if not self.allow_missing or not there[best]:
                raise FileNotFoundError(
                    f"{message}: set data.images=FOLDER to the folder that holds them"
                    + (", or data.allow_missing=true to continue without them" if there[best] else "")
                )
            rank_zero_warn(f"{message}; they are left out")
        return folders[best], there[best]

    def load_splits(self) -> Splits:
        self.label_sets  # noqa: B018 - a bad file of label sets stops before any image is decoded
        labels = self.read_labels()
        parts = split_scenes(list(labels))
        folder, there = self._locate(list(labels))
        names = sorted(there)
        files = [folder / name for name in names]
        tensors = cached(self._cache_path(files), lambda: read_squeezed(files, self.image_size), memory_map=True)
        readable = tensors["readable"].tolist()
        damaged = [str(file) for file, good in zip(files, readable, strict=True) if not good]
        damaged_names = left_out(damaged, len(files), self.damaged)
        tell_notes(files, tensors["notes"])
        label_rows = multi_hot([labels[name] for name in names], self.label_names)
        images = replace(ImageStore.dense(tensors["images"], label_rows), hashes=tensors["hashes"])
        row_of = {name: row for row, (name, good) in enumerate(zip(names, readable, strict=True)) if good}

        def store(split: Split) -> ImageStore:
            return images.select(torch.tensor([row_of[name] for name in parts[split] if name in row_of]).long())

        return Splits(
            train=store("train"),
            val=store("val"),
            test=store("test"),
            source="i-CLEVR",
            folders={
                "images": str(folder),
                "labels": str(self._path("train.json")),
                "label_sets": ", ".join(str(self._path(file)) for file in _SET_FILES),
            },
            drawn=f"whole scenes, one in {SCENES_PER_HELD_OUT} for val and for test, in the permutation of seed "
            f"{_SPLIT_SEED} of the sorted scene names",
            damaged=damaged_names,
        )

    def _cache_path(self, files: list[Path]) -> Path:
        state = [(str(file.absolute()), *file_state(file)) for file in files]
        key = hashlib.blake2b(repr((_VERSION, self.image_size, state)).encode(), digest_size=8).hexdigest()
        return self.cache_dir / f"iclevr-{key}.pt"

    def record(self) -> dict[str, Any]:
        return super().record() | {"resize": "plain, to a square, by PIL's bilinear filter with antialiasing"}


def _remedy(file: str) -> str:
    key = file.replace(".", "_")
    return f"set data.root=FOLDER to a folder that holds {file}, or data.{key}=FILE to the file itself"
