"""A trained model as a person uses it: pictures in, pictures out, as ``generate.py`` makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from torch import Tensor

from files.images import Picture
from files.masks import HoleRule
from files.pixels import as_rows, in_own_channels, to_pixels
from launch.errors import UserError, as_user_error
from launch.use.degrading import chosen, degrade
from launch.use.drawing import Drawing, draw_images, draw_steps, read_labels
from launch.use.restorer import Restorer, tiling_of
from lightning_modules import GenerativeModule, TrainingModule
from lightning_modules.contract import Task
from triptych.answers import Degraded, Restored, Step
from triptych.hub import OnHub
from triptych.pictures import Kind, PictureLike, answer, check_kind, check_seed, missing_of, plain_answer, read_given

BATCH_SIZE = 64  # drawings at a time
ANOTHER_SAMPLE = 1_000_000  # between the numbers of one picture's samples; the first one's is that of the command


class Model(OnHub):
    """A trained model.

    It answers one call at a time, also where several threads ask, and an answer depends on nothing but the call.

    Pictures are files, images of Pillow, arrays (H, W) or (H, W, C) as ``Image.fromarray`` takes them, or tensors (C, H, W) of
    floats in [-1, 1], which are used as they are, also where noise that is not clipped leads out of the range. Answers have
    the size, bits and opacity of the picture. They are images of Pillow, or with ``kind="numpy"`` their arrays, or with
    ``kind="torch"`` (C, H, W) float tensors in [-1, 1] before they are rounded.

    Args:
        module: The trained module.
        image_size: Height and width that it was trained at.
        channels: Channels that it was trained with.
        label_names: What the labels of its data are called, in order.
        degradations: Configs, by name, of what it was trained to undo.
        examples: Files of clean pictures to try it on.
        write: Writes it as an export into a folder, if its weights have a hash.

    Attributes:
        module: The module itself, with ``sample(batch, randomness)`` on tensors.
    """

    def __init__(
        self,
        module: TrainingModule,
        image_size: int,
        channels: int,
        label_names: Sequence[str],
        degradations: Mapping[str, Any] | None = None,
        examples: Sequence[Path] = (),
        write: Callable[[Path, str], object] | None = None,
    ) -> None:
        super().__init__(module, write)
        self.image_size = image_size
        self.channels = channels
        self.label_names = tuple(label_names)
        self.degradations = dict(degradations or {})
        self.examples = tuple(examples)
        self._lock = RLock()

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
            overlap: Pixels that tiles share; None for a quarter of a tile at most.
            kind: What the answers are.

        Raises:
            UserError: The model restores nothing, or a picture or setting cannot be used.
        """
        module = self._must("restore", "restore")
        return self._restored(module, read_given(picture), None, num_samples, seed, tile, overlap, kind)

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
        module, own = self._must("inpaint", "fill"), read_given(picture, is_clean=True)
        return self._restored(module, own, missing_of(own, hole, marked), num_samples, seed, tile, overlap, kind)

    def reconstruct(self, picture: PictureLike, *, tile: str | int = "auto", kind: Kind = "pil") -> Any:
        """Return the picture as an autoencoder gives it back.

        Raises:
            UserError: The model is no autoencoder, or the picture cannot be used.
        """
        module, own = self._must("reconstruct", "reconstruct"), read_given(picture, is_clean=True)
        check_kind(kind)
        with self._set(None):
            return self._made(module, "reconstruction", own, None, 1, tile, None, kind)[0]

    def degrade(
        self,
        picture: PictureLike,
        degradation: str | None = None,
        severity: float | None = None,
        *,
        seed: int | None = None,
        kind: Kind = "pil",
    ) -> Degraded:
        """Degrade a clean picture, to try the model on it.

        Args:
            picture: The picture.
            degradation: One of ``degradations``, which it was trained to undo, or of ``conf/degradation``; None is the first.
            severity: From 0, the mildest of training, to 1, the most severe; None is that of evaluation.
            seed: Another one gives other draws.

        Raises:
            UserError: There is no such degradation, or the picture does not fit it.
        """
        own = read_given(picture, is_clean=True)
        check_kind(kind)
        check_seed(seed)
        if degradation is None and not self.degradations:
            raise UserError("this model was trained without a degradation: name one, such as degradation=gaussian.")
        node = chosen(degradation or next(iter(self.degradations)), self.degradations)
        image, drawn_by = in_own_channels(own), self.module.evaluation_seed if seed is None else seed
        degraded, settings = degrade(image, node, severity, drawn_by, self.channels)
        known_HW = (degraded.validity > 0).all(0)[0]
        hole = None if not known_HW.any() or known_HW.all() else ~known_HW.numpy()
        return Degraded(answer(own, as_rows(degraded.image, self.channels), None, kind), hole, settings)

    def draw(
        self,
        labels: str | None = None,
        num_images: int = 1,
        *,
        guidance_scale: float | None = None,
        seed: int | None = None,
        kind: Kind = "pil",
    ) -> list[Any]:
        """Draw pictures.

        Args:
            labels: Such as ``red cube, blue sphere``; None for a model that was trained without labels.
            num_images: How many.
            guidance_scale: How far to go towards the labels; None as the model's ``guidance.scale`` says.
            seed: Another one gives other pictures; None is the run's ``evaluation_seed``, as the command draws.
            kind: What the answers are.

        Raises:
            UserError: The model draws nothing, or does not know a label.
        """
        module, drawing = self._drawing(labels, num_images, kind)
        with self._set(seed, guidance_scale):
            images = [image for batch in draw_images(module, drawing, self._shape, BATCH_SIZE) for image in batch]
        return [answer(Picture(to_pixels(image, np.uint8)), image[None], None, kind) for image in images]

    def steps(
        self,
        picture: PictureLike | None = None,
        hole: PictureLike | None = None,
        *,
        labels: str | None = None,
        marked: HoleRule = "auto",
        guidance_scale: float | None = None,
        seed: int | None = None,
        kind: Kind = "pil",
    ) -> list[Step]:
        """Return the way to the first picture that ``draw``, ``fill`` or ``restore`` would make.

        Args:
            picture: What is restored or filled, resized to the training size; None to draw.
            hole: See ``fill``.
            labels: See ``draw``; not with a picture, no more than ``guidance_scale``.

        Returns:
            A step for each of the sampler's, at the training size; none of a model that takes a single one.

        Raises:
            UserError: The model cannot do it, or a picture or setting cannot be used.
        """
        if picture is None:
            if hole is not None or marked != "auto":
                raise UserError("hole= and marked= are of a picture that is filled: give picture=, or leave them out.")
            module, drawing = self._drawing(labels, 1, kind)
            with self._set(seed, guidance_scale):
                states = draw_steps(module, drawing, self._shape)
        else:
            if labels is not None or guidance_scale is not None:
                raise UserError("labels= and guidance_scale= are of what is drawn without a picture: leave them out.")
            if hole is None and marked != "auto":
                raise UserError("marked= says what marks the hole of hole=: give that, too, or leave it out.")
            module = self._must("restore", "restore") if hole is None else self._must("inpaint", "fill")
            own = read_given(picture, is_clean=hole is not None)
            restorer = Restorer(module, None, self.image_size, self.channels, None, module.device)
            missing = None if hole is None else missing_of(own, hole, marked)
            with self._set(seed, None):
                states = restorer.states(restorer.request(0, own, missing))
        return [Step(*(plain_answer(image, kind) for image in (state.z, state.image))) for state in states]

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def _drawing(self, labels: str | None, num_images: int, kind: Kind) -> tuple[GenerativeModule, Drawing]:
        module = self._must("generate", "draw")
        check_kind(kind, num_images)
        labels_L = read_labels(labels, list(self.label_names) if module.uses_labels else [])
        return module, Drawing(None if labels_L is None else labels_L.expand(num_images, -1), num_images, labels or "")

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
        check_kind(kind, num_samples)
        samples, mean = num_samples if "sample" in module.outputs else 0, "mean" in module.outputs
        with self._set(seed):
            return Restored(
                self._made(module, "sample", own, missing, samples, tile, overlap, kind) if samples else [],
                self._made(module, "mean", own, missing, 1, tile, overlap, kind)[0] if mean else None,
            )

    def _made(
        self,
        module: GenerativeModule,
        name: str,
        own: Picture,
        missing: Tensor | None,
        count: int,
        tile: str | int,
        overlap: int | None,
        kind: Kind,
    ) -> list[Any]:
        """Make one output so many times, each with draws of its own."""
        tiling = tiling_of(module, self.image_size, str(tile), None if overlap is None else str(overlap))
        restorer = Restorer(module, None, self.image_size, self.channels, name, module.device, tiling)
        requests = [restorer.request(i * ANOTHER_SAMPLE, own, missing) for i in range(count)]
        if restorer.is_whole(requests[0]):
            parts = [requests[i : i + BATCH_SIZE] for i in range(0, count, BATCH_SIZE)]
            images = [image for part in parts for image in restorer.restore(part)]
        else:
            images = [restorer.restore_in_tiles(request) for request in requests]
        replaced = restorer.replaced(missing) if missing is not None and restorer.puts_back_known else None
        return [answer(own, image.cpu(), replaced, kind) for image in images]

    @contextmanager
    def _set(self, seed: int | None, guidance_scale: float | None = None) -> Iterator[None]:
        """Set the module for one call, while no other one runs."""
        module: Any = self.module
        check_seed(seed)
        with self._lock:
            before = module.evaluation_seed
            guidance: Any = getattr(module, "guidance", None)
            if guidance_scale is not None and guidance is None:
                raise UserError("this model has no guidance by labels: leave out guidance_scale.")
            try:
                if seed is not None:
                    module.evaluation_seed = seed
                if guidance_scale is not None:
                    with as_user_error():
                        module.guidance = replace(guidance, scale=guidance_scale)
                        module.check_guidance()
                yield
            finally:
                module.evaluation_seed = before
                if guidance_scale is not None:
                    module.guidance = guidance

    def _must(self, task: Task, verb: str) -> GenerativeModule:
        if task not in self.tasks or not isinstance(self.module, GenerativeModule):
            able = ", ".join(sorted(VERBS[each] for each in self.tasks if each in VERBS)) or "module.network(images)"
            raise UserError(f"this model cannot {verb}: use {able}.")
        return self.module


VERBS: dict[Task, str] = {
    "restore": "restore(picture)", "inpaint": "fill(picture, hole)", "generate": "draw(labels)",
    "reconstruct": "reconstruct(picture)",
}  # fmt: skip
