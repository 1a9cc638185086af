"""MNIST and CIFAR-10, in the files and folders of torchvision."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets.utils import check_integrity

from datamodules.base import ImageDataModule
from datamodules.splits import Splits
from datamodules.store import ImageStore, pad_to
from generative.checks import checked
from generative.randomness import generator_for
from generative.ranges import Channels, Count, WholeNumber

NUM_CLASSES = 10
# Both sets come with train and test parts only; validation images are held out of one of them, the same ones whatever the
# run's seed.
NUM_HELD_OUT = 2_000
_SPLIT_SEED = 0

# An IDX file is a magic number, whose last byte is the number of axes, the axes' lengths, and uint8 data.
_IDX_HEADER = np.dtype(">u4")

ImagesAndClasses = tuple[Tensor, Tensor]


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read a uint8 IDX file, compressed or not, without extracting it: a user's root is never written to."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.exists():
        content = plain.read_bytes()
    else:
        md5 = dict(MNIST.resources)[packed.name]
        if not check_integrity(packed, md5):
            raise FileNotFoundError(packed)
        content = gzip.decompress(packed.read_bytes())
    header = 4 * (1 + content[3])
    shape = np.frombuffer(content[4:header], _IDX_HEADER).tolist()
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _read_mnist(root: Path, part: str) -> ImagesAndClasses:
    folder = root / "MNIST" / "raw"
    name = {"train": "train", "test": "t10k"}[part]
    images, classes = (_read_idx(folder, f"{name}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    return images[:, None], classes.long()


def _read_cifar10(root: Path, part: str) -> ImagesAndClasses:
    dataset = CIFAR10(root, train=part == "train")
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)


_READERS = {"MNIST": _read_mnist, "CIFAR10": _read_cifar10}
_DOWNLOADERS = {"MNIST": MNIST, "CIFAR10": CIFAR10}


@checked("data")
class TorchvisionDataModule(ImageDataModule):
    """A data set of torchvision, held in memory.

    Args:
        image_size: Side of the images; those of the data set are padded with black to more, cropped to less.
        root: A torchvision root, used as it is where it holds the data, else downloaded into; None for one in the
            cache folder.
        val_from: Part that the validation images are held out of: ``train``, or ``test`` to train on all training images.
        **settings: See ``ImageDataModule``.
    """

    def __init__(
        self,
        dataset: Literal["MNIST", "CIFAR10"],
        name: str,
        image_size: Count,
        channels: Channels,
        num_classes: WholeNumber = NUM_CLASSES,
        root: str | Path | None = None,
        val_from: Literal["train", "test"] = "train",
        **settings: Any,
    ) -> None:
        super().__init__(name, image_size, channels, num_classes, **settings)
        self.dataset = dataset
        self.val_from = val_from
        self.root = Path(root) if root else self.cache_dir / "torchvision"

    def _read(self, part: str) -> ImagesAndClasses:
        return _READERS[self.dataset](self.root, part)

    def _read_or_download(self) -> dict[str, ImagesAndClasses]:
        try:
            return {part: self._read(part) for part in ("train", "test")}
        except (OSError, RuntimeError):  # torchvision's "not found" is a RuntimeError
            deepest = self.root.absolute() / self.dataset / "raw"
            new = [folder for folder in (deepest, *deepest.parents) if not folder.exists()]
            try:
                _DOWNLOADERS[self.dataset](str(self.root), download=True)
            except (OSError, RuntimeError) as error:
                for folder in new:  # torchvision makes them before it knows whether it can fill them
                    with suppress(OSError):  # what holds something stays
                        folder.rmdir()
                reason = str(error).strip().partition("\n")[0]
                raise FileNotFoundError(
                    f"{self.dataset} is not in {self.root.absolute()} and could not be downloaded ({reason}): "
                    "set data.root=FOLDER to a torchvision root that holds it, or connect to the internet"
                ) from error
            return {part: self._read(part) for part in ("train", "test")}

    def load_splits(self) -> Splits:
        parts = self._read_or_download()
        images, classes = parts[self.val_from]
        order = torch.randperm(len(images), generator=generator_for(_SPLIT_SEED, "split"))
        held_out, kept = order[-NUM_HELD_OUT:], order[:-NUM_HELD_OUT]
        parts |= {"val": (images[held_out], classes[held_out]), self.val_from: (images[kept], classes[kept])}
        split = {
            "train": f"test: the official one; val: the last {NUM_HELD_OUT} of the official training images",
            "test": f"train: the official one; test: the official one without val; val: its last {NUM_HELD_OUT} images",
        }
        return Splits(
            train=self._store(*parts["train"]),
            val=self._store(*parts["val"]),
            test=self._store(*parts["test"]),
            source=self.dataset,
            folders={"root": str(self.root)},
            drawn=f"{split[self.val_from]} in the permutation of seed {_SPLIT_SEED}",
        )

    def _store(self, images_NCHW: Tensor, classes_N: Tensor) -> ImageStore:
        padded = pad_to(images_NCHW, max(self.image_size, images_NCHW.shape[-1]))
        return ImageStore.dense(padded, F.one_hot(classes_N, NUM_CLASSES).float())
