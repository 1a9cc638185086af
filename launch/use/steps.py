"""The way to a restored picture, with one or several values of a setting: what is still unknown, and the picture."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from files.animations import shown, write_animation
from files.grids import BACKGROUND, render_grid, write_png
from files.pixels import write_image
from files.words import named
from generative.types import State
from launch.errors import UserError
from launch.use.drawing import enlarged
from launch.use.messages import SOFTWARE, say

FOLDER, FIGURE, NUM_COLUMNS = "steps", "steps.png", 10
MASKS = "masks"
OWN = re.compile(rf"{re.escape(FIGURE)}|[^/]+\.(gif|webp)|{MASKS}/[^/]*\d\d\.png")  # what is written, within the folder
CURVES_INCHES, CURVES_DPI = (5.2, 3.2), 110


def read_variants(text: str | None) -> tuple[str, list[str]]:
    """Read ``vary=KEY=VALUE,VALUE``.

    Returns:
        The key and its values; an empty key and one empty value where nothing is varied.

    Raises:
        UserError: There is no key, or no value.
    """
    if text is None:
        return "", [""]
    key, _, values = text.partition("=")
    found = list(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
    if not re.fullmatch(r"[\w.]+", key) or not found:
        raise UserError(
            f"vary={text} must be a setting and its values, as in vary=sampler.schedule=linear,cosine,square."
        )
    return key, found


def earlier_ways(target: Path, results: Sequence[Path], overwrite: bool) -> list[Path]:
    """Find what would be mixed with a new way.

    Args:
        target: Folder of the results.
        results: Their names.
        overwrite: Whether an earlier way may be replaced.

    Returns:
        The files of the earlier way.

    Raises:
        UserError: There is one and it may not be replaced, or the folder has something else.
    """
    folder = target / FOLDER
    if any(result.parts[0] == FOLDER for result in results):
        raise UserError(
            f"steps=true writes to {folder}, where results would go, too: give input= another name than {FOLDER}."
        )
    there = sorted(path for path in folder.rglob("*") if not path.is_dir())
    if strangers := [path for path in there if not OWN.fullmatch(path.relative_to(folder).as_posix())]:
        raise UserError(
            f"{folder} holds files that are no steps ({named(path.relative_to(folder) for path in strangers)}): choose another "
            "output=."
        )
    if there and not overwrite:
        raise UserError(
            f"output={target} holds steps already ({named(path.relative_to(target) for path in there)}): choose another "
            "folder, or replace them with overwrite=true."
        )
    return there


def write_ways(ways: Mapping[str, Sequence[State]], title: str, folder: Path, animation: str, frame_ms: int) -> None:
    """Write the figure, an animation for each way, and what was unknown after each step as black and white pictures.

    Args:
        ways: States of one picture by the value of the setting; an empty one where none is varied.
        title: Line above the figure.
        folder: Where to write: ``steps.png``, ``VALUE.gif``, and ``masks/VALUE_STEP.png``, white where a pixel is unknown,
            from 00, the start, to the last step.
        animation: Suffix of the animations.
        frame_ms: Milliseconds that a frame stays.
    """
    count = min(NUM_COLUMNS, max(map(len, ways.values())))
    rows: dict[str, Tensor] = {}
    for value, states in ways.items():
        columns = shown(len(states), count)
        columns += columns[-1:] * (count - len(columns))  # of a shorter way its end again
        name, masks = value or "state", masks_of(states)
        if masks:
            rows[f"{name}, unknown"] = torch.cat([masks[i + 1] for i in columns])
        rows[name] = torch.cat([states[i].z[:1] for i in columns])
        rows[f"{name}, estimate"] = torch.cat([states[i].image[:1] for i in columns])
        write_animation(
            enlarged([state.z[0] for state in states]), folder / f"{value or 'steps'}.{animation}", frame_ms
        )
        for number, mask in enumerate(masks):
            write_image(mask[0, :1], folder / MASKS / f"{value}_{number:02d}.png".lstrip("_"), True, SOFTWARE)
    lengths = {len(states) for states in ways.values()}
    captions = [f"{i + 1} of {max(lengths)}" for i in shown(max(lengths), count)] if len(lengths) == 1 else ()
    figure = render_grid(rows, title, captions)
    if all(masks_of(states) for states in ways.values()):
        figure = _below(figure, _curves(ways))
    write_png(figure, folder / FIGURE)
    say(f"the steps of the first picture written to {folder}")


def masks_of(states: Sequence[State]) -> list[Tensor]:
    """Return what was unknown at the start and after each step; nothing where the states do not say.

    Returns:
        (1, C, H, W) pictures in [-1, 1], white where a pixel was unknown.
    """
    if any(state.unknown is None for state in states):
        return []
    maps = [state.unknown[:1].float() for state in states if state.unknown is not None]
    channels = states[0].z.shape[1]
    return [(each * 2 - 1).expand(-1, channels, -1, -1) for each in [*maps, torch.zeros_like(maps[0])]]


def shares_of(states: Sequence[State]) -> list[float]:
    """Return the share of what was unknown at the start that is so there and after each step: from 1 to 0."""
    sums = [float((mask > 0).sum()) for mask in masks_of(states)]
    return [each / max(sums[0], 1.0) for each in sums]


def _curves(ways: Mapping[str, Sequence[State]]) -> Image.Image:
    """Draw the share that is unknown after each share of the steps: the schedule gamma, as it was carried out."""
    from matplotlib.figure import Figure  # imported late because it is slow to load

    figure = Figure(figsize=CURVES_INCHES, dpi=CURVES_DPI, layout="constrained")
    axes = figure.subplots()
    for value, states in ways.items():
        left = shares_of(states)
        axes.plot([i / len(states) for i in range(len(left))], left, marker="o", markersize=3, label=value or None)
    axes.set(xlabel="share of the steps", ylabel="share unknown (gamma)", xlim=(0, 1), ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    if any(ways):
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _below(upper: Image.Image, lower: Image.Image) -> Image.Image:
    both = Image.new("RGB", (max(upper.width, lower.width), upper.height + lower.height), BACKGROUND)
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height))
    return both
