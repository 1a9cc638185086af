"""Draws images with a trained generator: of the labels that a person types, or of nothing but noise."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from datamodules.labels import parse_labels, read_label_sets
from files.grids import CELL_SIZE, picture_grid, render_grid, write_png
from files.images import named, software_of
from files.pixels import to_pixels, write_image
from files.whole import whole_file
from generative.judges.label_classifier import LabelClassifier
from generative.metrics.label_accuracy import label_scores, recognised_labels
from generative.types import Batch, State
from launch.errors import UserError, as_user_error
from launch.use.messages import SOFTWARE, say, told_when_stopped
from launch.use.restorer import within_memory
from lightning_modules import GenerativeModule

GRID, GRID_IMAGES = "grid.png", 1000
STEPS_PNG, STEPS_GIF, NUM_STEPS = "steps.png", "steps.gif", 10
GIF_MS, GIF_LAST_MS = 120, 1500  # a frame, and the last one
OWN = {GRID, STEPS_PNG, STEPS_GIF}
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
    """

    labels: Tensor | None
    num_images: int
    title: str
    digits: int = 4
    label_names: Sequence[str] = ()

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
    return Drawing(labels, len(labels), path.name, max(2, len(str(len(labels) - 1))), label_names)


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
            drawn = module.images_of(batch, module.evaluation_randomness(batch, "generate"))["sample"].cpu()
        yield drawn


def draw_steps(module: GenerativeModule, drawing: Drawing, shape: tuple[int, int, int]) -> list[State]:
    """Draw the first image again and keep the way to it.

    Returns:
        The sampler's states; none of a model that draws in one step.
    """
    batch = drawing.batch(range(1), shape, module.device)
    with torch.inference_mode():
        states = list(module.states(batch, module.evaluation_randomness(batch, "generate")))
    return [State(state.z.cpu(), state.image.cpu()) for state in states]


def write_steps(states: Sequence[State], title: str, target: Path) -> None:
    """Write ``steps.png``, what the sampler held and what it made of that, and ``steps.gif``, its estimates one after another.

    Args:
        states: States of one image.
    """
    shown = sorted({round(i) for i in np.linspace(0, len(states) - 1, NUM_STEPS)})
    rows = {
        "state": torch.cat([states[i].z for i in shown]),
        "estimate": torch.cat([states[i].image for i in shown]),
    }
    write_png(render_grid(rows, title, [f"{i + 1} of {len(states)}" for i in shown]), target / STEPS_PNG)
    frames = [Image.fromarray(to_pixels(state.image[0], np.uint8)) for state in states]
    scale = max(1, round(CELL_SIZE / frames[0].height))
    frames = [frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST) for frame in frames]
    durations = [GIF_MS] * (len(frames) - 1) + [GIF_LAST_MS]
    with whole_file(target / STEPS_GIF) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


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
    shown: list[Tensor] = []
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
            shown += [batch[: GRID_IMAGES - sum(map(len, shown))]]
    title = drawing.title
    if recognised and drawing.labels is not None:
        accuracy = label_scores(torch.cat(recognised), drawing.labels).pooled
        title = f"{title} · label accuracy {accuracy:.3f}"
        say(f"label accuracy {accuracy:.3f} of {drawing.num_images} images")
    write_png(picture_grid(torch.cat(shown), title), target / GRID)
    few = f" (of the first {GRID_IMAGES})" if drawing.num_images > GRID_IMAGES else ""
    say(f"{drawing.num_images} images and {GRID}{few} written to {target}")


@torch.inference_mode()
def _likely(judge: LabelClassifier, image_BCHW: Tensor) -> Tensor:
    """(B, L) probabilities of the labels, on the CPU."""
    return judge(image_BCHW.to(next(judge.parameters()).device)).cpu()
