"""Draws docs/assets/paradigms.png, single test images of three runs, out of the grids kept in benchmarks/results/.

A grid is kept by copying it from its run: images/test/step=*.png, images/label_sets_test/step=*.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from files.grids import read_grid  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
TARGET = ROOT / "docs" / "assets" / "paradigms.png"
CELL, GAP, MARGIN, TITLE, LABEL = 240, 12, 18, 76, 46
LABELS = 108  # height of three lines of labels
DRAWN = "objects by name; ✗ the classifier misses it"
INK, FAINT, HOLE = "#1f2328", "#59636e", (255, 0, 110)


def row(file: str, caption: str | int, columns: list[int]) -> tuple[list[Image.Image], list[str]]:
    """Return images of a row of a grid, which is named or counted, and the notes under them."""
    rows = read_grid(RESULTS / file)
    found = rows[caption] if isinstance(caption, str) else list(rows.values())[caption]
    return [found[column][0] for column in columns], [found[column][1] for column in columns]


def with_hole(clean: Image.Image, masked: Image.Image) -> Image.Image:
    """Paint the missing pixels, grey in the grid, in a colour that no image has."""
    clean_HWC, image_HWC = np.array(clean, dtype=int), np.array(masked)
    changed_HW = np.abs(clean_HWC - image_HWC).sum(-1)
    grey = image_HWC.reshape(-1, 3)[changed_HW.argmax()]
    outside = np.pad(changed_HW > 0, 1)
    height, width = changed_HW.shape
    neighbours_HW = sum(outside[y : y + height, x : x + width].astype(int) for y, x in ((0, 1), (1, 0), (1, 2), (2, 1)))
    image_HWC[(image_HWC == grey).all(-1) & ((changed_HW > 0) | (neighbours_HW > 1))] = HOLE
    return Image.fromarray(image_HWC)


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of matplotlib, which every installation has."""
    found = font_manager.findfont(
        font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    )
    return ImageFont.truetype(found, size)


def draw(panels: list[tuple[str, list[tuple[str, list[Image.Image]]]]], labels: list[str], target: Path) -> None:
    """Draw panels under each other: a title, and rows of a name and images; labels stand under the images of DRAWN."""
    columns = max(len(images) for _, rows in panels for _, images in rows)
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    height = MARGIN + sum(TITLE + len(rows) * (LABEL + CELL + GAP) for _, rows in panels) + LABELS
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    top = 0
    for title, rows in panels:
        pen.text((MARGIN, top + 26), title, INK, font(38, bold=True))
        top += TITLE
        for name, images in rows:
            pen.text((MARGIN, top + 6), name, FAINT, font(30))
            top += LABEL
            for column, image in enumerate(images):
                large = image.resize((CELL, CELL), Image.Resampling.NEAREST)
                canvas.paste(large, (MARGIN + column * (CELL + GAP), top))
            top += CELL + GAP
            if name == DRAWN:
                for column, text in enumerate(labels):
                    pen.multiline_text((MARGIN + column * (CELL + GAP), top - 4), text, INK, font(25), spacing=6)
                top += LABELS
    target.parent.mkdir(exist_ok=True)
    canvas.save(target, optimize=True)


def main() -> None:
    """Read the grids and write the picture."""
    digits = [0, 2, 3, 7]
    degraded, sample, mean = (row("meanflow_dit_mnist.png", name, digits)[0] for name in ("degraded", "sample", "mean"))
    drawn, labels = row("ddpm_scenes_test.png", -1, [0, 1, 2, 3])
    scenes = [1, 4, 5, 7]
    clean, masked, filled = (
        row("maskgit_scenes_test.png", name, scenes)[0] for name in ("clean", "degraded", "sample")
    )
    holes = [with_hole(*pair) for pair in zip(clean, masked, strict=True)]
    panels = [
        ("MeanFlow restores", [("degraded", degraded), ("sample, one step", sample), ("mean, one network call", mean)]),
        ("DDPM draws from labels", [(DRAWN, drawn)]),
        ("MaskGIT fills holes", [("missing pixels in pink", holes), ("sample", filled)]),
    ]
    draw(panels, labels, TARGET)


if __name__ == "__main__":
    main()
