"""Draws images with a trained generator: of the labels that a person types, or of nothing but noise."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.utils import make_grid

from datamodules.labels import parse_labels, read_label_sets
from files.animations import FRAME_MS, AnimationKind, shown, write_animation
from files.grids import CELL_SIZE, NUM_COLUMNS, picture_grid, render_grid, write_png
from files.images import software_of
from files.pixels import to_bytes, to_pixels, write_image
from files.words import count, named
from generative.judges.label_classifier import LabelClassifier
from generative.metrics.label_accuracy import label_scores, recognised_labels
from generative.types import Batch, State
from launch.command_line import is_true, whole_number
from launch.errors import UserError, as_user_error
from launch.use.memory import within_memory
from launch.use.messages import SOFTWARE, say, told_when_stopped
from launch.use.restorer import finite, finite_states
from lightning_modules import GenerativeModule

GRID, GRID_IMAGES = "grid.png", 1000
PLAIN_GRID = "grid_plain.png"  # of label sets: nothing but the images, as torchvision lays them out
STEPS_PNG, NUM_STEPS = "steps.png", 10
ANIMATIONS: tuple[str, ...] = get_args(AnimationKind)
MAX_FRAME_MS = 60_000
OWN = {GRID, PLAIN_GRID, STEPS_PNG, *(f"steps.{kind}" for kind in ANIMATIONS)}
NUMBERED = re.compile(r"\d{2,}\.png")


def read_labels(text: str | None, label_names: list[str]) -> Tensor | None:
    """Read what a person typed.

    Args:
        text: Such as ``red cube, blue sphere``, or None.
        label_names: The labels of the run's data set, in order; empty for an unconditional run.

    Returns:
        (L,) multi-hot labels; None for an unconditional run.

    Raises:
        UserError: A label is unknown, or labels are missing or of no use.
    """
    if not label_names:
        if text is not None:
            raise UserError("this run was trained without labels: leave out labels=.")
        return None
    if text is None:
        example, choice = f'"{label_names[0]}, {label_names[-1]}"', ", ".join(label_names)
        raise UserError(f"say what to draw with labels={example}, or others of: {choice}.")
    with as_user_error():
        return parse_labels(text, tuple(label_names))


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn.

    Attributes:
        labels: (N, L) multi-hot labels of the images; None of a model without labels.
        num_images: Number N of images.
        title: What is drawn, in words.
        digits: Digits of the numbers in the files' names.
        label_names: Names of the L labels.
        is_of_sets: Whether each image has labels of its own, from a file.
    """

    labels: Tensor | None
    num_images: int
    title: str
    digits: int = 4
    label_names: Sequence[str] = ()
    is_of_sets: bool = False

    def batch(self, rows: range, shape: tuple[int, int, int], device: torch.device) -> Batch:
        """Return the batch of some images: each depends on its number and the module's evaluation seed alone."""
        labels = None if self.labels is None else self.labels[rows.start : rows.stop].to(device)
        return Batch(torch.zeros(len(rows), *shape, device=device), torch.tensor(rows), labels=labels)

    @property
    def first_title(self) -> str:
        """What the first image shows, in words."""
        if self.labels is None or not self.label_names:
            return self.title
        return ", ".join(self.label_names[number] for number in self.labels[0].nonzero().flatten().tolist())

    def name(self, index: int) -> str:
        """Name of an image's file, such as ``0000.png``."""
        return f"{index:0{self.digits}d}.png"


def drawing_of_sets(path: Path, label_names: list[str]) -> Drawing:
    """Read a file of label sets, such as i-CLEVR's ``test.json``: one image of each.

    Raises:
        UserError: The model knows no labels, or the file holds no sets of them.
    """
    if not label_names:
        raise UserError("this run was trained without labels: leave out label_sets=.")
    with as_user_error():
        labels = read_label_sets(path, label_names, "check label_sets=")
    return Drawing(labels, len(labels), path.name, max(2, len(str(len(labels) - 1))), label_names, True)


def way_drawing(own: dict[str, str | None], drawing: Drawing, names: list[str]) -> Drawing:
    """Return the drawing whose way is shown: its first image, or that of the labels typed beside a file of label sets."""
    if own["label_sets"] is None or own["labels"] is None:
        return drawing
    if not is_true(own, "steps"):
        raise UserError("labels= beside label_sets= says whose steps are drawn: add steps=true, or leave it out.")
    return Drawing(read_labels(own["labels"], names)[None], 1, " ".join(own["labels"].split()))  # type: ignore[index]


def read_animation(own: dict[str, str | None]) -> tuple[str, int]:
    """Read the kind of file of an animation, and how many milliseconds a frame stays.

    Raises:
        UserError: A value says nothing, or there is nothing to animate.
    """
    for key, default in (("animation", "gif"), ("frame_ms", str(FRAME_MS)), ("vary", None)):
        if not is_true(own, "steps") and own[key] != default:
            raise UserError(f"{key}={own[key]} is about the way to the image: add steps=true, or leave it out.")
    if own["animation"] not in ANIMATIONS:
        raise UserError(f"animation={own['animation']} is unknown: choose {' or '.join(ANIMATIONS)}.")
    return str(own["animation"]), whole_number(own, "frame_ms", MAX_FRAME_MS, 10)


def draw_images(
    module: GenerativeModule, drawing: Drawing, shape: tuple[int, int, int], batch_size: int
) -> Iterator[Tensor]:
    """Draw images.

    Args:
        module: Trained module on its device.
        shape: Channels, height and width.
        batch_size: Images at a time.

    Yields:
        (B, C, H, W) images in [-1, 1], on the CPU.
    """
    num_images = drawing.num_images
    for begin in track(range(0, num_images, batch_size), description="drawing", console=Console(stderr=True)):
        with within_memory(batch_size), torch.inference_mode():
            batch = drawing.batch(range(begin, min(begin + batch_size, num_images)), shape, module.device)
            made = module.images_of(batch, module.evaluation_randomness(batch, "generate"))["sample"]
            drawn = finite(module, "sample", made).cpu()
        yield drawn


def draw_steps(module: GenerativeModule, drawing: Drawing, shape: tuple[int, int, int]) -> list[State]:
    """Draw the first image again and keep the way to it.

    Returns:
        The sampler's states; none of a model that draws in one step.
    """
    batch = drawing.batch(range(1), shape, module.device)
    with torch.inference_mode():
        return finite_states(module, batch)


def write_steps(states: Sequence[State], title: str, target: Path, animation: str, frame_ms: int) -> None:
    """Write ``steps.png``, what the sampler held and what it made of that, and its estimates one after another.

    Args:
        states: States of one image.
        animation: One of ``ANIMATIONS``, which is the suffix of the second file, too.
        frame_ms: Milliseconds that a frame stays.
    """
    columns = shown(len(states), NUM_STEPS)
    rows = {
        "state": torch.cat([states[i].z for i in columns]),
        "estimate": torch.cat([states[i].image for i in columns]),
    }
    write_png(render_grid(rows, title, [f"{i + 1} of {len(states)}" for i in columns]), target / STEPS_PNG)
    write_animation(enlarged([state.image[0] for state in states]), target / f"steps.{animation}", frame_ms)


def enlarged(images: Sequence[Tensor]) -> list[Image.Image]:
    """Make frames of (C, H, W) images in [-1, 1], small ones enlarged by whole pixels."""
    frames = [Image.fromarray(to_pixels(image, np.uint8)).convert("RGB") for image in images]
    scale = max(1, round(CELL_SIZE / frames[0].height))
    return [frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST) for frame in frames]


def earlier_drawings(target: Path, new: Collection[str], overwrite: bool) -> list[Path]:
    """Find what would be mixed with new drawings.

    Args:
        target: Folder to write to.
        new: Names of the new drawings.
        overwrite: Whether earlier drawings may be replaced.

    Returns:
        The earlier drawings that no new one will replace.

    Raises:
        UserError: There are earlier drawings and they may not be replaced, or files of such names that are none.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"output={target} is no folder: choose another name.")
    places = sorted(target.iterdir()) if target.is_dir() else []
    there = [path for path in places if NUMBERED.fullmatch(path.name) or path.name in OWN]
    if there and not overwrite:
        raise UserError(
            f"output={target} holds drawings already ({named(p.name for p in there)}): choose another folder, or replace them "
            "with overwrite=true."
        )
    stale = [path for path in there if path.name not in new and path.name != GRID]
    if strangers := [path.name for path in stale if path.name not in OWN and software_of(path) != SOFTWARE]:
        raise UserError(
            f"output={target} holds numbered pictures that are no drawings of this script ({named(strangers)}): choose "
            "another folder."
        )
    return stale


def write_drawings(
    images: Iterable[Tensor],
    drawing: Drawing,
    target: Path,
    stale: Sequence[Path],
    overwrite: bool,
    judge: LabelClassifier | None = None,
) -> None:
    """Write each image to a file of its own, and the first ones to ``grid.png``.

    Args:
        images: Batches of (B, C, H, W) images in [-1, 1].
        target: Folder to write to.
        stale: Earlier drawings, removed before the first new one is written.
        overwrite: Whether others may be replaced.
        judge: Label classifier of whose verdict the grid's title tells.
    """
    shown_images: list[Tensor] = []
    recognised: list[Tensor] = []
    written: list[Path] = []
    with told_when_stopped(written, drawing.num_images, target):
        for batch in images:
            for path in stale:
                path.unlink(missing_ok=True)
            if judge is not None and drawing.labels is not None:
                labels = drawing.labels[len(written) : len(written) + len(batch)]
                recognised.append(recognised_labels(_likely(judge, batch), labels))
            for image in batch:
                write_image(image, target / drawing.name(len(written)), overwrite, SOFTWARE)
                written.append(target / drawing.name(len(written)))
            shown_images += [batch[: GRID_IMAGES - sum(map(len, shown_images))]]
    title = drawing.title
    if recognised and drawing.labels is not None:
        accuracy = label_scores(torch.cat(recognised), drawing.labels).pooled
        title = f"{title} · label accuracy {accuracy:.3f}"
        say(f"label accuracy {accuracy:.3f} of {count(drawing.num_images, 'image')}")
    write_png(picture_grid(torch.cat(shown_images), title), target / GRID)
    if drawing.is_of_sets:
        plain = make_grid(to_bytes(torch.cat(shown_images)).cpu(), nrow=NUM_COLUMNS)
        write_png(Image.fromarray(plain.permute(1, 2, 0).numpy()), target / PLAIN_GRID)
    few = f" (of the first {GRID_IMAGES})" if drawing.num_images > GRID_IMAGES else ""
    say(f"{count(drawing.num_images, 'image')} and {GRID}{few} written to {target}")


@torch.inference_mode()
def _likely(judge: LabelClassifier, image_BCHW: Tensor) -> Tensor:
    """(B, L) probabilities of the labels, on the CPU."""
    return judge(image_BCHW.to(next(judge.parameters()).device)).cpu()
