"""A trained model as a person uses it: pictures in, pictures out, as ``generate.py`` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from files.images import DECODING_ERRORS, Picture, picture_of, read_picture, reason
from files.masks import HoleRule, MaskError, hole_rule, mask_of
from files.pixels import drawn, fill, seen, to_pixels
from launch.errors import UserError, as_user_error
from launch.use.drawing import Drawing, draw_images, read_labels
from launch.use.restorer import Restorer, tiling_of
from lightning_modules import GenerativeModule, TrainingModule
from lightning_modules.contract import Task

PictureLike = str | Path | Image.Image | np.ndarray | Tensor
Kind = Literal["pil", "numpy", "torch"]
BATCH_SIZE = 64  # drawings at a time
ANOTHER_SAMPLE = 1_000_000  # between the numbers of one picture's samples; the first one's is that of the command


class Restored(NamedTuple):
    """What a restorer makes of a picture.

    Attributes:
        samples: Plausible pictures, one or more; none of a model that knows the mean alone.
        mean: The answer of least squared error, or None where the model has none.
    """

    samples: list[Any]
    mean: Any | None


class Model:
    """A trained model.

    Pictures are files, images of Pillow, arrays (H, W) or (H, W, C) as ``Image.fromarray`` takes them, or tensors (C, H, W) of
    floats in [-1, 1]. Answers have the size, bits and opacity of the picture. They are images of Pillow, or with
    ``kind="numpy"`` their arrays, or with ``kind="torch"`` (C, H, W) float tensors in [-1, 1] before they are rounded.

    Args:
        module: The trained module.
        image_size: Height and width that it was trained at.
        channels: Channels that it was trained with.
        label_names: What the labels of its data are called, in order.

    Attributes:
        module: The module itself, with ``sample(batch, randomness)`` on tensors.
    """

    def __init__(self, module: TrainingModule, image_size: int, channels: int, label_names: Sequence[str]) -> None:
        self.module = module
        self.image_size = image_size
        self.channels = channels
        self.label_names = tuple(label_names)

    @property
    def tasks(self) -> frozenset[Task]:
        """What it does: ``restore``, ``inpaint``, ``generate``, ``reconstruct``, ``judge``."""
        return self.module.current_tasks

    def restore(
        self,
        picture: PictureLike,
        num_samples: int = 1,
        *,
        seed: int | None = None,
        tile: str | int = "auto",
        overlap: int | None = None,
        kind: Kind = "pil",
    ) -> Restored:
        """Restore a degraded picture of any size.

        Args:
            picture: The picture.
            num_samples: Plausible pictures, each drawn by itself; 0 for the mean alone.
            seed: Another one gives other samples; None is the run's ``evaluation_seed``, as the command draws.
            tile: ``auto``: a larger picture goes through the network in tiles; ``none``: it is resized to the training size.
            overlap: Pixels that tiles share; None for a quarter of a tile.
            kind: What the answers are.

        Raises:
            UserError: The model restores nothing, or a picture or setting cannot be used.
        """
        module = self._must("restore", "restore")
        return self._restored(module, _picture(picture), None, num_samples, seed, tile, overlap, kind)

    def fill(
        self,
        picture: PictureLike,
        hole: PictureLike,
        num_samples: int = 1,
        *,
        marked: HoleRule = "auto",
        seed: int | None = None,
        tile: str | int = "auto",
        overlap: int | None = None,
        kind: Kind = "pil",
    ) -> Restored:
        """Fill a hole; all other pixels stay as they are.

        Args:
            hole: A mask of the picture's size, white where pixels are missing; or (H, W) bool, True there.
            marked: What marks the hole in the mask; ``auto`` takes the transparent parts where there are some.

        Raises:
            UserError: The model fills no holes, or a picture or setting cannot be used.
        """
        module, own = self._must("inpaint", "fill"), _picture(picture)
        with as_user_error():
            missing = _missing(hole, marked)
        if missing.shape != own.pixels.shape[:2]:
            height, width = missing.shape
            raise UserError(
                f"the hole has {width}x{height} pixels and the picture {own.size[0]}x{own.size[1]}: give both one size."
            )
        return self._restored(module, own, missing, num_samples, seed, tile, overlap, kind)

    def reconstruct(self, picture: PictureLike, *, tile: str | int = "auto", kind: Kind = "pil") -> Any:
        """Return the picture as an autoencoder gives it back.

        Raises:
            UserError: The model is no autoencoder, or the picture cannot be used.
        """
        module, own = self._must("reconstruct", "reconstruct"), _picture(picture)
        _check(kind)
        return self._made(module, "reconstruction", own, None, 0, tile, None, kind)

    def draw(
        self, labels: str | None = None, num_images: int = 1, *, seed: int | None = None, kind: Kind = "pil"
    ) -> list[Any]:
        """Draw pictures.

        Args:
            labels: Such as ``red cube, blue sphere``; None for a model that was trained without labels.
            num_images: How many.
            seed: Another one gives other pictures; None is the run's ``evaluation_seed``, as the command draws.
            kind: What the answers are.

        Raises:
            UserError: The model draws nothing, or does not know a label.
        """
        module = self._must("generate", "draw")
        _check(kind, num_images)
        labels_L = read_labels(labels, list(self.label_names) if module.uses_labels else [])
        drawing = Drawing(None if labels_L is None else labels_L.expand(num_images, -1), num_images, labels or "")
        shape = (self.channels, self.image_size, self.image_size)
        with self._seeded(seed):
            images = [image for batch in draw_images(module, drawing, shape, BATCH_SIZE) for image in batch]
        return [_answer(Picture(to_pixels(image, np.uint8)), image[None], None, kind) for image in images]

    def _restored(
        self,
        module: GenerativeModule,
        own: Picture,
        missing: Tensor | None,
        num_samples: int,
        seed: int | None,
        tile: str | int,
        overlap: int | None,
        kind: Kind,
    ) -> Restored:
        _check(kind, num_samples)

        def made(name: str, number: int) -> Any:
            return self._made(module, name, own, missing, number, tile, overlap, kind)

        with self._seeded(seed):
            numbers = range(num_samples if "sample" in module.outputs else 0)
            samples = [made("sample", i * ANOTHER_SAMPLE) for i in numbers]
            return Restored(samples, made("mean", 0) if "mean" in module.outputs else None)

    def _made(
        self,
        module: GenerativeModule,
        name: str,
        own: Picture,
        missing: Tensor | None,
        number: int,
        tile: str | int,
        overlap: int | None,
        kind: Kind,
    ) -> Any:
        tiling = tiling_of(module, self.image_size, str(tile), None if overlap is None else str(overlap))
        restorer = Restorer(module, None, self.image_size, self.channels, name, module.device, tiling)
        request = restorer.request(number, own, missing)
        image = restorer.one(request)
        keeps = missing is not None and restorer.puts_back_known
        return _answer(own, image.cpu(), restorer.replaced(missing) if missing is not None and keeps else None, kind)

    @contextmanager
    def _seeded(self, seed: int | None) -> Iterator[None]:
        before = self.module.evaluation_seed
        self.module.evaluation_seed = before if seed is None else seed
        try:
            yield
        finally:
            self.module.evaluation_seed = before

    def _must(self, task: Task, verb: str) -> GenerativeModule:
        if task not in self.tasks or not isinstance(self.module, GenerativeModule):
            able = ", ".join(sorted(VERBS[each] for each in self.tasks if each in VERBS)) or "module.network(images)"
            raise UserError(f"this model cannot {verb}: use {able}.")
        return self.module


VERBS: dict[Task, str] = {
    "restore": "restore(picture)", "inpaint": "fill(picture, hole)", "generate": "draw(labels)",
    "reconstruct": "reconstruct(picture)",
}  # fmt: skip


def _check(kind: str, number: int = 0) -> None:
    if kind not in get_args(Kind):
        raise UserError(f"kind={kind} must be one of {', '.join(get_args(Kind))}.")
    if number < 0:
        raise UserError(f"{number} images cannot be made: ask for 0 or more.")


def _picture(given: PictureLike) -> Picture:
    if isinstance(given, Tensor):
        image = given.detach().cpu()
        if image.ndim != 3 or len(image) not in (1, 3) or not image.is_floating_point():
            raise UserError(
                f"a tensor of shape {tuple(image.shape)} is no picture: give (C, H, W) floats in [-1, 1], C 1 or 3."
            )
        return Picture(to_pixels(image, np.uint16 if len(image) == 1 else np.uint8))
    name = str(given) if isinstance(given, str | Path) else "the picture"
    try:
        if isinstance(given, str | Path):
            return read_picture(Path(given).expanduser())
        return picture_of(given if isinstance(given, Image.Image) else Image.fromarray(given))
    except (*DECODING_ERRORS, TypeError) as error:
        raise UserError(f"{name} cannot be used: {reason(error)}.") from error


def _missing(hole: PictureLike, rule: HoleRule) -> Tensor:
    if isinstance(hole, np.ndarray | Tensor) and np.asarray(hole).dtype == bool:
        missing = torch.from_numpy(np.asarray(hole))
        if not missing.any() or missing.ndim != 2:
            raise MaskError("the hole must be (H, W) bool, True where pixels are missing, and somewhere it must be.")
        return missing
    return torch.from_numpy(mask_of(_picture(hole), "the hole", hole_rule(rule)).missing)


def _answer(own: Picture, image_RCHW: Tensor, missing: Tensor | None, kind: Kind) -> Any:
    if kind == "torch":
        known_RCHW = image_RCHW if missing is None else seen(own, image_RCHW.shape[1])
        return (image_RCHW if missing is None else torch.where(missing, image_RCHW, known_RCHW)).flatten(0, 1)
    result = drawn(own, image_RCHW) if missing is None else fill(own, missing.numpy(), image_RCHW)
    return result.image if kind == "pil" else np.asarray(result.image)
