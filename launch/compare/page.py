"""The page and the CSV file: everything that was read, laid out in one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from files.words import count
from generative.metrics import bootstrap
from generative.metrics.catalogue import metric_of, split_name
from launch import results
from launch.compare.pictures import sheets_of
from launch.compare.plane import NOTE, plane_charts
from launch.compare.reading import Found, LeftOut, Measured
from launch.compare.rows import Row, Table
from launch.compare.series import (
    COSTS,
    TRAINING_COSTS,
    charted,
    cost_charts,
    loss_charts,
    rank_charts,
    trade_charts,
    training_charts,
)
from launch.compare.tables import case_grids, main_grid, whole_grid, without_empty
from launch.compare.trainings import (
    COST_HEADINGS,
    costs_of,
    settings_table,
    training_choices,
    training_text,
    trainings_of,
)
from launch.judge import differing_judges
from launch.page import html
from launch.page.html import Panels
from launch.paths import without_folders
from launch.record import hardware_text, now
from launch.sampling_time import DEFINITION as TIMING

HERE = Path(__file__).parent
OVER_SEEDS = "Means over the training seeds; bands are one standard deviation."
MEASURED_SPEED = (
    "Training steps alone, at the images per second that were measured; a study's at those of its plan. What was trained for "
    "another task is a horizontal line, measured on test images."
)
RANKS = "A right sampler is at 1 everywhere; high ends are of one that is too sure, a high middle of one that is too unsure."
MANY = 6  # last values of a run, rows in a sentence
PICTURE_SIZE = 96  # px: small images are enlarged to about this side, by whole pixels


def render_page(found: Found, tables: list[Table], left_out: list[LeftOut], options: dict[str, Any]) -> str:
    """Write the page; ``options`` are ``title``, ``command``, the chosen ``metrics`` and a study's ``board`` or None."""
    rows = [row for table in tables for row in table.rows]
    trainings = trainings_of(rows)
    with_metrics = [table for table in tables if table.names]
    chosen = options["metrics"]
    sheets = [{**vars(sheet), "scale": _picture_size(sheet.size)} for sheet in sheets_of(tables)]
    return html.render(
        HERE / "page.html.j2",
        title=options["title"],
        board=options["board"],
        script=Markup((HERE / "page.js").read_text()),
        summary=_summary(found, rows),
        legend=[
            {"name": r.name, "choices": training_choices(r, trainings), "color": r.color, "text": training_text(r)}
            for r in trainings.values()
        ],
        alarms=_alarms(left_out),
        alarm_kind="alarm" if any(each.state in ("failed", "unfinished") for each in left_out) else "note",
        last_values=last_values,
        tables=[
            {**_section(table, with_metrics[:number], chosen), "short": _short_name(table, with_metrics)}
            for number, table in enumerate(with_metrics)
        ],
        sheets=sheets,
        costs={
            "headings": COST_HEADINGS,
            "numeric": (0, 1, 2, 3),
            "rows": [
                {"name": r.name, "choices": training_choices(r, trainings), "color": r.color, "cells": costs_of(r)}
                for r in trainings.values()
            ],
        },
        timing=TIMING if any(e.record.get("sampling", {}).get("seconds_per_image") for e in found.measured) else "",
        folders=[found.place_of(run.path) for run in found.runs],
        place_of=found.place_of,
        intervals=bootstrap.WORDS,
        settings=settings_table(list(trainings.values()), trainings),
        left_out=left_out,
        definitions=_definitions(found.measured),
        made=f"Made {datetime.fromisoformat(now()):%d %B %Y, %H:%M} UTC",
        command=options["command"],
    )


def _picture_size(size: int) -> int:
    return max(1, round(PICTURE_SIZE / size)) * size if size else PICTURE_SIZE


def _short_name(table: Table, tables: Sequence[Table]) -> str:
    """Name a table by what tells it from the others."""
    differing = [word for place, word in enumerate(table.words) if len({each.words[place] for each in tables}) > 1]
    if table.task and sum(each.task == table.task for each in tables) == 1:
        return table.task.capitalize()
    return " · ".join(filter(None, differing)) or table.title


def _section(table: Table, earlier: Sequence[Table], chosen: Sequence[str]) -> dict[str, Any]:
    shown = {row.training for each in earlier for row in each.rows}  # the curves of their training stand above
    fresh = Table(table.conditions, [row for row in table.rows if row.training not in shown])
    rows = table.rows
    grid, cases, metrics = main_grid(table, chosen), case_grids(table), charted(table, chosen)
    drawn = metrics if len(rows) > 1 else []  # a single row is in the table
    by_calls, by_seconds = (cost_charts([grid, *cases], drawn, cost) for cost in COSTS)
    by_images, by_minutes = (training_charts(table, metrics, cost, shown) for cost in TRAINING_COSTS)
    hardware = sorted({hardware_text(entry.record.get("hardware", {})) for row in rows for entry in row.entries})
    return {
        "title": table.title,
        "anchor": table.anchor,
        "why": _why(table, earlier[0] if earlier else table),
        "known_pixels": results.known_pixels_note(
            [(row.label, entry.record.get("sampling", {})) for row in rows for entry in row.entries], table.names
        ),
        "merged": list(dict.fromkeys(key for row in rows for key in row.merged)),
        "grid": grid,
        "whole": whole_grid(table),
        "cases": [without_empty(each) for each in cases],
        "case_caption": "Mean over the seeds ± standard deviation; with one seed, ± is over the evaluation's own draws.",
        "charts": [
            (
                "Quality against network calls",
                "A mark is a row of the table; bars are ± over its seeds.",
                Panels.of(by_calls),
            ),
            ("Quality against seconds", _measured_on(hardware), Panels.of(by_seconds)),
            ("What guidance gains and gives up", "A mark is a setting.", Panels.of(trade_charts(table, metrics))),
            ("Error against likeness", NOTE, Panels.of(plane_charts(table))),
            ("Ranks of the truth among samples", RANKS, Panels.of(rank_charts(table))),
            ("Validation over training images", OVER_SEEDS, Panels.of(by_images)),
            ("Validation over the time of training", MEASURED_SPEED, Panels.of(by_minutes)),
            ("Loss", "Losses of different objectives have no common scale.", Panels.of(loss_charts(fresh))),
        ],
        "no_seconds": _without_seconds(rows),
        "no_images": sorted({row.label for row in rows if not all(entry.by_image for entry in row.entries)})[:MANY],
    }


def _measured_on(hardware: Sequence[str]) -> str:
    return f"Measured on {'; '.join(hardware)}. Times of different machines cannot be compared."


def _without_seconds(rows: Sequence[Row]) -> str:
    """Name the rows whose cost in seconds is not known; empty where there is none."""
    unknown = [row.label for row in rows if all(row.sampling("seconds_per_image", o) is None for o in row.own_outputs)]
    return "these runs" if len(unknown) == len(rows) else ", ".join(unknown[:MANY])


def _why(table: Table, first: Table) -> str:
    conditions = table.conditions
    text = f"Data fingerprint {conditions['fingerprint']}."
    if table is first:
        seeds = {entry.evaluation_seed[1] for row in table.rows for entry in row.entries}
        varied = len(seeds) > 1 and len({tuple(row.evaluation_seeds) for row in table.rows}) > 1
        return text + (" Rows are of different evaluation seeds, whose degradations differ." if varied else "")
    names = {"data": "data", "size": "image size", "fingerprint": _other_images(table, first), "degradation": "degradation",
             "images": "number of images", "weights": "weights"}  # fmt: skip
    different = [name for key, name in names.items() if conditions[key] != first.conditions[key]]
    different += ["judge"] if differing_judges(table.judges, first.judges) else []
    return f"{text} Not comparable with the first table: {', '.join(different)} differ{'s' if len(different) == 1 else ''}."


def _other_images(table: Table, first: Table) -> str:
    """Name the splits whose images are others."""
    one, other = (each.rows[0].entries[0].record.get("data", {}).get("fingerprints", {}) for each in (table, first))
    words = {"train": "training", "val": "validation", "test": "test"}
    found = [word for split, word in words.items() if one.get(split) != other.get(split)]
    return f"{' and '.join(found)} images".strip()


def _summary(found: Found, rows: Sequence[Row]) -> str:
    names = {entry.name for entry in found.measured}
    trained = len({entry.run.path for entry in found.measured})
    return (
        f"{count(trained, 'run')} of {count(len(names), 'experiment')}, {count(len(found.measured), 'evaluation')} "
        f"in {count(len(rows), 'row')}; values are means over seeds."
    )


def _alarms(left_out: Sequence[LeftOut]) -> str:
    counts = {state: sum(each.state == state for each in left_out) for state in ("failed", "unfinished", "running")}
    parts = [f"{count(number, 'run')} {state}" for state, number in counts.items() if number]
    return f"Not in the tables: {', '.join(parts)}." if parts else ""


def last_values(left_out: LeftOut) -> list[str]:
    """Write the last logged values of a run that is in no table; of many those of the metrics to look at first."""
    metrics = {name: metric_of(split_name(name)[0]) for name in left_out.last}
    shown = [name for name in left_out.last if len(left_out.last) <= MANY or metrics[name].leading or "loss" in name]
    return [f"{name} {metrics[name].text(left_out.last[name])}" for name in shown]


def _definitions(measured: Iterable[Measured]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in measured:
        for part in entry.record.values():
            if isinstance(part, dict) and isinstance(part.get("definitions"), dict):
                found |= {str(key): str(text) for key, text in part["definitions"].items()}
    return found


def write_rows(tables: Sequence[Table], path: Path) -> None:
    """Write the rows as CSV, whole or not at all: one for each row and output, with means, deviations and costs."""
    keys = list(dict.fromkeys(key for table in tables for row in table.rows for key in row.choices))
    conditions = ("data", "size", "fingerprint", "degradation_name", "images", "weights")
    lines: list[tuple[dict[str, Any], results.Row[Any], str]] = []
    for number, table in enumerate(tables, start=1):
        shared = {"table": number, **{key: table.conditions[key] for key in conditions}}
        for row in table.rows:
            first = row.entries[0]
            own = {"run": row.name, **{key: row.choices.get(key, "") for key in keys}}
            counts = {
                "num_training_seeds": len(row.training_seeds),
                "num_evaluations": len(row.entries),
                "parameters": first.run_record.get("parameters"),
                "steps": first.record.get("step"),
            }
            for output in row.outputs:
                costs = {kind: row.sampling(kind, output) for kind in ("num_network_calls", "seconds_per_image")}
                lines.append(({**shared, **own, "output": output, **counts, **costs}, row, output))
    results.write_lines([(_said(labels), row, output) for labels, row, output in lines], path)


def _said(labels: dict[str, Any]) -> dict[str, Any]:
    return {key: without_folders(value) if isinstance(value, str) else value for key, value in labels.items()}
