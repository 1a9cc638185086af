"""Draws docs/assets/paradigms.png, single test images of three runs, out of the grids kept in benchmarks/results/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TARGET = ROOT / "docs" / "assets" / "paradigms.png"
PIXELS, SHOWN = 96, 32  # side of a cell in the grids, and of the image that it shows enlarged three times
CELL, GAP, MARGIN, TITLE, LABEL = 240, 12, 18, 76, 46
LABELS = 108  # height of three lines of labels
DRAWN = "objects by name; ✗ the classifier misses it"
SETS = [  # label sets 25 to 28 of test.json, as the grid names them
    "blue sphere\nyellow cylinder", "✗ cyan cube\nred sphere\ncyan cylinder", "blue cube\ngray sphere\npurple cylinder",
    "purple cube\nyellow cube\nbrown cylinder",
]  # fmt: skip
INK, FAINT, HOLE = "#1f2328", "#59636e", (255, 0, 110)


def cells(file: str, left: int, top: int, step: int, columns: list[int]) -> list[Image.Image]:
    """Return single images of a row of a grid, each at its own size."""
    grid = Image.open(RESULTS / file).convert("RGB")
    boxes = [(left + step * column, top) for column in columns]
    return [grid.crop((x, y, x + PIXELS, y + PIXELS)).resize((SHOWN, SHOWN), Image.Resampling.BOX) for x, y in boxes]


def with_hole(clean: Image.Image, masked: Image.Image) -> Image.Image:
    """Paint the missing pixels, grey in the grid, in a colour that no image has."""
    clean_HWC, image_HWC = np.array(clean, dtype=int), np.array(masked)
    changed_HW = np.abs(clean_HWC - image_HWC).sum(-1)
    grey = image_HWC.reshape(-1, 3)[changed_HW.argmax()]
    outside = np.pad(changed_HW > 0, 1)
    neighbours_HW = sum(outside[y : y + SHOWN, x : x + SHOWN].astype(int) for y, x in ((0, 1), (1, 0), (1, 2), (2, 1)))
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
    grid = "meanflow_dit_mnist.png"
    degraded, sample, mean = (cells(grid, 103, top, 102, digits) for top in (167, 287, 407))
    drawn = cells("ddpm_scenes_test.png", 75, 479, 103, [0, 1, 2, 3])
    scenes = [1, 4, 5, 7]
    grid = "maskgit_scenes_test.png"
    clean, masked, filled = (cells(grid, 103, top, 102, scenes) for top in (65, 167, 287))
    holes = [with_hole(*pair) for pair in zip(clean, masked, strict=True)]
    panels = [
        ("MeanFlow restores", [("degraded", degraded), ("sample, one step", sample), ("mean, one network call", mean)]),
        ("DDPM draws from labels", [(DRAWN, drawn)]),
        ("MaskGIT fills holes", [("missing pixels in pink", holes), ("sample, eight steps", filled)]),
    ]
    draw(panels, SETS, TARGET)


if __name__ == "__main__":
    main()
