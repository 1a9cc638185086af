"""Drawing: rows of images with captions and notes, and PNG files that appear whole or not at all.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from files.pixels import check_numbers, to_bytes
from files.whole import whole_file

CELL_SIZE = 96  # px: small images are enlarged to about this height
NUM_COLUMNS = 8  # pictures of a row, where nothing else is asked for
MARGIN, GAP = 16, 6  # px
PLACES = "pictures"  # text of a PNG file
CAPTION_SIZE, NOTE_SIZE = 15, 12  # px, letter heights
BACKGROUND, INK, FAINT_INK = (255, 255, 255), (32, 32, 32), (112, 112, 112)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # only its fonts; imported late because it is slow to load

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _to_pil(image_CHW: Tensor, scale: int) -> Image.Image:
    check_numbers(image_CHW)
    bytes_CHW = to_bytes(image_CHW).cpu()
    if len(bytes_CHW) == 1:
        bytes_CHW = bytes_CHW.expand(3, -1, -1)
    image = Image.fromarray(bytes_CHW.permute(1, 2, 0).contiguous().numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def render_grid(
    rows: Mapping[str, Tensor],
    title: str = "",
    column_captions: Sequence[str] = (),
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Image.Image:
    """Draw rows of images with captions; small images are enlarged by whole pixels.

    Args:
        rows: (N, C, H, W) images in [-1, 1] by caption, grey or RGB, all of the same shape; top row first.
        title: Line above the grid.
        column_captions: Caption of each of the N columns; none by default.
        notes: Short text under each of the N images of a row, by the row's caption; it may have several lines.

    Returns:
        An RGB image, which tells ``read_grid`` where its pictures are.

    Raises:
        ValueError: If there is no image, the rows differ in shape, or values are no numbers.
    """
    shapes = {tuple(images.shape) for images in rows.values()}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(f"A grid needs images of one shape in all rows, got {shapes}.")
    num_columns, _, height, width = shapes.pop()
    notes = notes or {}
    scale = max(1, round(CELL_SIZE / height))
    cell_width, cell_height = width * scale, height * scale
    caption_font, note_font = _font(CAPTION_SIZE), _font(NOTE_SIZE)

    left = MARGIN + int(max(caption_font.getlength(caption) for caption in rows)) + MARGIN
    header = MARGIN + (CAPTION_SIZE + MARGIN if title else 0) + (NOTE_SIZE + GAP if column_captions else 0)
    lines = {caption: [text.split("\n") for text in texts] for caption, texts in notes.items()}
    num_lines = {caption: max(map(len, texts), default=0) for caption, texts in lines.items()}
    row_heights = [cell_height + GAP + (NOTE_SIZE + GAP) * num_lines.get(caption, 0) for caption in rows]
    note_widths = [round(note_font.getlength(line)) for texts in lines.values() for text in texts for line in text]
    pitch = max([cell_width, *note_widths]) + GAP
    width = max(left + num_columns * pitch - GAP, MARGIN + round(caption_font.getlength(title))) + MARGIN
    grid = Image.new("RGB", (width, header + sum(row_heights) - GAP + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(grid)

    if title:
        draw.text((MARGIN, MARGIN), title, INK, caption_font, anchor="lt")
    lefts = [left + column * pitch + (pitch - GAP - cell_width) // 2 for column in range(num_columns)]
    for x, text in zip(lefts, column_captions, strict=False):
        draw.text((x + cell_width // 2, header - GAP), text, FAINT_INK, note_font, anchor="ms")
    top, tops = header, {}
    for (caption, images), row_height in zip(rows.items(), row_heights, strict=True):
        draw.text((left - MARGIN, top + cell_height // 2), caption, INK, caption_font, anchor="rm")
        for x, image in zip(lefts, images, strict=True):
            grid.paste(_to_pil(image, scale), (x, top))
        for x, note in zip(lefts, lines.get(caption, ()), strict=False):
            for number, line in enumerate(note):
                y = top + cell_height + GAP // 2 + number * (NOTE_SIZE + GAP)
                draw.text((x + cell_width // 2, y), line, FAINT_INK, note_font, anchor="mt")
        tops[caption] = top
        top += row_height
    places = {"lefts": lefts, "tops": tops, "size": [cell_width, cell_height], "scale": scale, "notes": notes}
    grid.info[PLACES] = json.dumps(places, default=list)
    return grid


def read_grid(path: Path) -> dict[str, list[tuple[Image.Image, str]]]:
    """Take a grid that ``write_png`` has written apart again.

    Args:
        path: The file.

    Returns:
        By caption of a row its pictures, at their own size, each with the note under it.

    Raises:
        ValueError: The file does not tell where its pictures are.
    """
    with Image.open(path) as file:
        text, grid = getattr(file, "text", {}).get(PLACES), file.convert("RGB")
    if text is None:
        raise ValueError(f"{path} does not tell where its pictures are: draw it again.")
    places = json.loads(text)
    (width, height), scale, rows = places["size"], places["scale"], {}
    for caption, top in places["tops"].items():
        boxes = [(left, top, left + width, top + height) for left in places["lefts"]]
        pictures = [grid.crop(box).resize((width // scale, height // scale), Image.Resampling.NEAREST) for box in boxes]
        notes = [*places["notes"].get(caption, ()), *[""] * len(pictures)]
        rows[caption] = list(zip(pictures, notes, strict=False))
    return rows


def picture_grid(
    image_NCHW: Tensor,
    title: str,
    notes: Sequence[str] = (),
    num_columns: int = NUM_COLUMNS,
    max_rows: int | None = None,
) -> Image.Image:
    """Lay pictures out in rows of equal length, each captioned with the numbers of its first and last picture.

    Args:
        image_NCHW: (N, C, H, W) images in [-1, 1], at least one.
        title: Line above the grid.
        notes: Text of one or more lines under each picture; none by default.
        num_columns: Pictures of a row; fewer where there are not so many.
        max_rows: What does not fit into so many rows is left out; None for all.

    Returns:
        An RGB image.
    """
    count = len(image_NCHW) if max_rows is None else min(len(image_NCHW), num_columns * max_rows)
    columns = min(count, num_columns)
    white = image_NCHW.new_ones(-count % columns, *image_NCHW.shape[1:])  # the grid's paper completes the last row
    images = torch.cat([image_NCHW[:count], white]).split(columns)
    captions = [f"{start}-{min(start + columns, count) - 1}" for start in range(0, count, columns)]
    texts = {caption: notes[i * columns : min((i + 1) * columns, count)] for i, caption in enumerate(captions)}
    return render_grid(dict(zip(captions, images, strict=True)), title, notes=texts if notes else None)


def write_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all.

    Args:
        path: File to write; its folder is created.
    """
    told = PngImagePlugin.PngInfo()
    if PLACES in image.info:
        told.add_text(PLACES, image.info[PLACES], zip=True)
    with whole_file(path) as file:
        image.save(file, format="PNG", pnginfo=told)
