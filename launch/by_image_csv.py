"""What each test image has added to the means of an evaluation: ``by_image.csv`` beside ``metrics.json``.

A row is a test image, or a set of labels, by its index; a column the mean of its values by ``<metric>/<output>``, as means are
named before anything is made of them, and ``weight of <metric>/<output>`` where images do not count alike.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from files.whole import whole_file
from generative.metrics.by_image import ImageValues
from launch.record_files import DamagedRecordError

FILE_NAME = "by_image.csv"
WEIGHT = "weight of "
MAX_BYTES = 200_000_000


def write_by_image(folder: Path, values: dict[str, ImageValues]) -> None:
    """Write the file whole and move it into place; none where there is nothing to write."""
    if not values:
        (folder / FILE_NAME).unlink(missing_ok=True)  # of an evaluation before
        return
    rows: dict[int, dict[str, str]] = {}
    for name, parts in values.items():
        is_weighted = not bool((parts.weight == 1).all())
        means, weights = (parts.total / parts.weight).tolist(), parts.weight.tolist()
        for index, mean, weight in zip(parts.index.tolist(), means, weights, strict=True):
            row = rows.setdefault(index, {})
            row[name] = f"{mean:.7g}"
            if is_weighted:
                row[WEIGHT + name] = f"{weight:.7g}"
    columns = [column for name in sorted(values) for column in (name, WEIGHT + name)]
    present = {column for row in rows.values() for column in row}
    with whole_file(folder / FILE_NAME, "w") as file:
        writer = csv.DictWriter(file, ["index", *(c for c in columns if c in present)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"index": index, **rows[index]} for index in sorted(rows))


def read_by_image(folder: Path) -> dict[str, ImageValues]:
    """Read the file.

    Returns:
        What ``write_by_image`` was given; nothing where there is no file.

    Raises:
        DamagedRecordError: It is not what was written.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return {}
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise DamagedRecordError(path, f"it is no regular file of at most {MAX_BYTES:,} bytes")
        return _parsed(path)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        if isinstance(error, DamagedRecordError):
            raise
        raise DamagedRecordError(path, f"{type(error).__name__}: {error}") from error


def _parsed(path: Path) -> dict[str, ImageValues]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file, strict=True)
    if header[:1] != ["index"] or any(len(row) != len(header) for row in rows):
        raise ValueError("it is no table of images")
    index = torch.tensor([int(row[0]) for row in rows], dtype=torch.int64)
    if not bool((index.diff() > 0).all()):
        raise ValueError("its images are in no order")
    cells = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
    found = {}
    for name in (name for name in list(cells)[1:] if not name.startswith(WEIGHT)):
        there = [number for number, cell in enumerate(cells[name]) if cell]
        weights = cells.get(WEIGHT + name, ("1",) * len(rows))
        mean, weight = (
            torch.tensor([float(column[number]) for number in there], dtype=torch.float64)
            for column in (cells[name], weights)
        )
        found[name] = ImageValues(index[there], mean * weight, weight)
    return found
