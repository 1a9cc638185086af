"""Images of the same inputs under each other: a column for each test image, a row for each output of each run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files.single_images import LIST_NAME, path_of
from launch.compare.reading import Measured
from launch.compare.rows import INPUT, Row, Table, joined
from launch.page.html import embedded
from launch.record_files import DamagedRecordError, check_shape, passed_over, read_json

INPUTS = ("clean", "data", INPUT)
NUM_SMALL = 3  # images in a row, where there is little room


@dataclass(frozen=True)
class Cell:
    """An image, ready to be put into a page.

    Attributes:
        source: ``data:`` address of the file.
        note: Text under it.
    """

    source: str
    note: str = ""


@dataclass
class PictureRow:
    """Images of one kind.

    Attributes:
        color: Number of the row's colour, or None for inputs.
        cells: The image of each column; None where there is none.
        choices: What tells the row from others of the name.
        detail: More about them.
        is_minor: Whether it is shown only when asked for.
    """

    name: str
    output: str
    color: int | None
    cells: list[Cell | None]
    choices: dict[str, str] = field(default_factory=dict)
    detail: str = ""
    is_minor: bool = False


@dataclass
class Block:
    """Outputs for inputs of one degradation.

    Attributes:
        title: The conditions.
        rows: Inputs, then outputs.
    """

    title: str
    rows: list[PictureRow] = field(default_factory=list)


@dataclass
class Sheet:
    """Everything of one data set.

    Attributes:
        title: The data set.
        columns: Indices of the test images.
        captions: What stands above the columns.
        size: Side of the images in pixels.
        clean: The images themselves.
        blocks: Outputs, by degradation.
        grids: For rows without single images their captioned grid, by label.
    """

    title: str
    columns: list[int]
    captions: list[str]
    size: int
    clean: PictureRow | None = None
    blocks: list[Block] = field(default_factory=list)
    grids: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class _Images:
    """The single images of an evaluation."""

    folder: Path
    content: dict[str, Any]

    def cells(self, output: str, columns: list[int]) -> list[Cell | None]:
        psnr = dict(zip(self.content["index"], self.content["psnr"].get(output, []), strict=False))
        cells: list[Cell | None] = []
        for index in columns:
            path = path_of(self.folder, output, index)
            note = f"{psnr[index]:.1f} dB" if index in psnr else ""
            is_there = index in self.content["index"] and _is_own(path, self.folder)
            cells.append(Cell(embedded(path), note) if is_there else None)
        return cells


def sheets_of(tables: list[Table]) -> list[Sheet]:
    """Lay out the images of all rows, a sheet for each data set whose runs kept images."""
    data: dict[tuple[Any, Any, Any], list[Table]] = {}
    for table in tables:
        conditions = table.conditions
        data.setdefault((conditions["data"], conditions["size"], conditions["fingerprint"]), []).append(table)
    sheets = (_sheet(name, size or 0, members) for (name, size, _), members in data.items())
    return [sheet for sheet in sheets if sheet.blocks or sheet.grids]


def _sheet(name: str, size: int, tables: list[Table]) -> Sheet:
    found = {id(row): _images_of(row) for table in tables for row in table.rows}
    lists = [images.content for _, images in found.values() if images]
    columns = sorted({index for content in lists for index in content["index"]})
    labels = {i: words for c in lists if c.get("labels") for i, words in zip(c["index"], c["labels"], strict=True)}
    captions = [", ".join(labels[i]) if labels.get(i) else f"test {i}" for i in columns]
    sheet = Sheet(f"{name} {size}x{size}", columns, captions, size)
    shown = {row.training for table in tables for row in table.rows if found[id(row)][1]}
    for table in tables:
        block, outputs = Block(table.title), []
        for row in table.rows:
            entry, images = found[id(row)]
            if images is not None:
                _take_inputs(sheet, block, images)
                outputs += _outputs(row, entry, images, columns)
            elif row.training not in shown and (grid := _newest_grid(entry.folder)):
                sheet.grids[row.label] = Cell(embedded(grid))
        order = list(dict.fromkeys(each.output for each in outputs))
        block.rows += sorted(joined(outputs, _is_repeat), key=lambda each: (each.is_minor, order.index(each.output)))
        if outputs:
            sheet.blocks.append(block)
    return sheet


def _outputs(row: Row, entry: Measured, images: _Images, columns: list[int]) -> list[PictureRow]:
    detail = f"seed {entry.seed}" if len(row.training_seeds) > 1 else ""
    return [
        PictureRow(
            row.name,
            output,
            row.color,
            images.cells(output, columns),
            row.shown,
            detail,
            output not in row.own_outputs,
        )
        for output in images.content["outputs"]
        if output not in INPUTS
    ]


def _is_repeat(a: PictureRow, b: PictureRow) -> bool:
    return (a.name, a.output, a.cells) == (b.name, b.output, b.cells)


def _take_inputs(sheet: Sheet, block: Block, images: _Images) -> None:
    """Show inputs once: clean images on the sheet, degraded ones in their block."""
    outputs = images.content["outputs"]
    if sheet.clean is None and {"clean", "data"} & set(outputs):
        clean = "clean" if "clean" in outputs else "data"
        sheet.clean = PictureRow("test images", clean, None, images.cells(clean, sheet.columns))
    if INPUT in outputs and not block.rows:
        block.rows.append(PictureRow(INPUT, INPUT, None, images.cells(INPUT, sheet.columns)))


def small_pictures(entry: Measured) -> list[list[Cell]]:
    """Return two rows of images of an evaluation: what it was given above what it made, or what it drew."""
    images = _images_in(entry)
    if images is None:
        return []
    made = [output for output in images.content["outputs"] if output not in INPUTS]
    own = [output for output in Row("", {}, [entry]).own_outputs if output in made] or made
    index = images.content["index"]
    first, second = index[:NUM_SMALL], index[NUM_SMALL : 2 * NUM_SMALL]
    is_given = INPUT in images.content["outputs"]
    rows = (
        [(INPUT, first), (own[0], first)]
        if is_given and own
        else [(o, part) for o in own[:1] for part in (first, second)]
    )
    cells = [[cell for cell in images.cells(output, columns) if cell] for output, columns in rows]
    return [row for row in cells if row]


def _images_of(row: Row) -> tuple[Measured, _Images | None]:
    """Return the single images of the row's first seed that has some."""
    entries = sorted(row.entries, key=lambda entry: (entry.seed, str(entry.evaluation_seed)))
    for entry in entries:
        if (images := _images_in(entry)) is not None:
            return entry, images
    return entries[0], None


def _images_in(entry: Measured) -> _Images | None:
    folder = entry.folder / "images" / "test"
    if (folder / LIST_NAME).exists():
        try:
            return _Images(folder, _list_of(folder / LIST_NAME))
        except DamagedRecordError as error:
            passed_over(f"the images of {entry.folder}", error)
    return None


def _list_of(path: Path) -> dict[str, Any]:
    content = read_json(path)
    index, outputs, labels = content.get("index"), content.get("outputs"), content.get("labels")
    check_shape(path, content, {"psnr": dict, "psnr.*": list})
    if not isinstance(index, list) or not _are(int, index) or not _are(str, outputs) or "psnr" not in content:
        raise DamagedRecordError(path, "it is no list of images")
    if labels is not None and not (
        _are(list, labels) and len(labels) == len(index) and all(_are(str, w) for w in labels)
    ):
        raise DamagedRecordError(path, "its labels are not those of its images")
    if not all(_are((int, float), values) for values in content["psnr"].values()):
        raise DamagedRecordError(path, "a PSNR is no number")
    return content


def _are(kind: type | tuple[type, ...], values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _is_own(path: Path, folder: Path) -> bool:
    """Say whether an image is a file of the folder itself: what a link there points to is not shown to others."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _newest_grid(folder: Path) -> Path | None:
    grids = sorted(path for path in (folder / "images" / "test").glob("step=*.png") if _is_own(path, folder))
    return grids[-1] if grids else None
