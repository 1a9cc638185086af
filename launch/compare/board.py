"""The board that opens a study's page: a cell for each paradigm and task, who is ahead, and what became of the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from generative.metrics.catalogue import Metric
from launch.compare.pictures import Cell as Picture
from launch.compare.pictures import small_pictures
from launch.compare.reading import Found, LeftOut, Measured
from launch.compare.rows import Table, conditions_of
from launch.compare.verdicts import Competitor, Outcome, Verdict, main_metrics, outcome_of, verdict_on
from launch.record import duration_text
from launch.study.record import BASELINE, CELL, Prediction, Study, StudyRun

Column = tuple[str, str]  # task and data


@dataclass(frozen=True)
class Score:
    """A main metric of a cell.

    Attributes:
        interval: Its interval in words; empty where it is not known.
        is_ahead: Whether it is told to be better than those of all other paradigms.
        mark: Of a metric whose right value is known, what the interval says of it.
    """

    metric: Metric
    text: str
    interval: str
    is_ahead: bool = False
    mark: str = ""


@dataclass
class Cell:
    """A paradigm in a task.

    Attributes:
        color: Number of its colour.
        state: Why it has no results; empty where it has.
        pictures: Rows of small images of its first test images.
        scores: Its main metrics, the first of all first.
        cost: Network calls, seconds an image and of training, in words.
        reasons: Why it is behind, by the words of the metric.
    """

    paradigm: str
    color: int
    state: str = ""
    pictures: list[list[Picture]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    cost: str = ""
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """What stands above the tables.

    Attributes:
        about: What was equal for all.
        paradigms: Names of its rows.
        columns: Headings of its columns, with the anchor of the table below; empty where there is none.
        cells: Row by row.
        verdicts: By column who is ahead in what.
        predictions: Claim, outcome and what was measured.
    """

    about: str
    paradigms: list[str]
    columns: list[tuple[str, str]]
    cells: list[list[Cell]]
    verdicts: list[tuple[str, list[Verdict]]]
    predictions: list[tuple[str, Outcome, str]]


def named_by_study(found: Found, study: Study, folder: Path) -> None:
    """Call the runs of a study by their places in it, and note what was planned for them."""
    planned = {(folder / run.run).resolve(): run for run in study.runs}
    several = len({run.data for run in study.runs}) > 1
    for number, entry in enumerate(found.measured):
        if (run := planned.get(entry.run.path)) is not None:
            found.measured[number] = replace(entry, name=_name(run, several), planned=run)
    for number, each in enumerate(found.left_out):
        if (run := planned.get(each.folder)) is not None:
            found.left_out[number] = replace(each, name=_name(run, several))


def _name(run: StudyRun, several: bool) -> str:
    return " · ".join([run.paradigm, run.task, *([run.data] if several else [])])


def arranged_by_study(tables: list[Table], study: Study, found: Found) -> None:
    """Give all rows of a paradigm the colour of its cells, and the tables their tasks and the order of these."""
    rivals_first = sorted(study.runs, key=lambda run: (run.role not in (CELL, BASELINE), run.role == BASELINE))
    colors = {name: number for number, name in enumerate(dict.fromkeys(run.paradigm for run in rivals_first))}
    tasks = list(dict.fromkeys(run.task for run in rivals_first if run.role in (CELL, BASELINE)))
    of = {str(conditions_of(e)): e.planned.task for e in found.measured if e.planned and e.folder == e.run.path}
    for table in tables:
        table.task = of.get(str(table.conditions), "") if table.names else ""
    tables.sort(key=lambda table: tasks.index(table.task) if table.task else len(tasks))
    for row in (row for table in tables for row in table.rows):
        if (run := row.entries[0].planned) is not None:
            row.color = colors[run.paradigm]


def board_of(study: Study, found: Found, tables: Sequence[Table]) -> Board:
    """Lay out a study, also one that is not finished."""
    runs = [run for run in study.runs if run.role == CELL]
    paradigms = list(dict.fromkeys(run.paradigm for run in runs))
    columns = list(dict.fromkeys((run.task, run.data) for run in runs))
    several = len({data for _, data in columns}) > 1
    competitors = {(p, *column): _competitor(found, p, column) for p in paradigms for column in columns}
    verdicts: dict[Column, list[Verdict]] = {}
    for column in columns:
        there = [each for p in paradigms if (each := competitors[p, *column]) is not None]
        metrics = main_metrics(column[0], [entry for each in there for entry in each.entries])
        verdicts[column] = [verdict_on(metric, there) for metric in metrics if metric.sign]
    return Board(
        _about(study, runs),
        paradigms,
        [(" · ".join([task, *([data] if several else [])]), _anchor(tables, (task, data))) for task, data in columns],
        [
            [_cell(number, p, column, competitors[p, *column], verdicts[column], found) for column in columns]
            for number, p in enumerate(paradigms)
        ],
        [(" · ".join([task, *([data] if several else [])]), verdicts[task, data]) for task, data in columns],
        [(p.claim, *outcome_of(p, (_side(found, p, 0), _side(found, p, 1)))) for p in study.predictions],
    )


def _about(study: Study, runs: Sequence[StudyRun]) -> str:
    sizes = [run.parameters for run in runs if run.parameters]
    trials = sorted({run.tuning_trials for run in runs})
    parts = [
        f"{duration_text(study.seconds)} of one thread for each cell, its tokenizer's share included",
        f"{_range(sizes)} M parameters" if sizes else "",
        f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}",
        f"{' or '.join(map(str, trials))} tuning trials each" if trials != [0] else "no tuning trials for any",
    ]
    return f"Study {study.study}, budget {study.budget}: {', '.join(filter(None, parts))}."


def _range(sizes: Sequence[int]) -> str:
    return " to ".join(dict.fromkeys(f"{size / 1e6:.2f}" for size in (min(sizes), max(sizes))))


def _competitor(found: Found, paradigm: str, column: Column) -> Competitor | None:
    own = [e for e in found.measured if e.planned and (e.planned.paradigm, e.planned.role) == (paradigm, CELL)]
    of_task = [entry for entry in own if entry.planned and (entry.planned.task, entry.planned.data) == column]
    final = [entry for entry in of_task if entry.folder == entry.run.path]
    return Competitor(paradigm, final, [e for e in of_task if e not in final]) if final else None


def _side(found: Found, prediction: Prediction, number: int) -> list[Measured]:
    side = (prediction.above, prediction.below)[number]
    return [e for e in found.measured if e.planned and side.matches(e.planned) and e.folder == e.run.path]


def _anchor(tables: Sequence[Table], column: Column) -> str:
    own = (t for t in tables for row in t.rows for e in row.entries if e.planned and (t.task, e.planned.data) == column)
    return next((table.anchor for table in own), "")


def _cell(
    color: int, paradigm: str, column: Column, competitor: Competitor | None, verdicts: Sequence[Verdict], found: Found
) -> Cell:
    if competitor is None:
        return Cell(paradigm, color, _state(found.left_out, paradigm, column))
    entry = competitor.entries[0]
    metrics = main_metrics(column[0], competitor.entries)
    ahead = {verdict.metric.key for verdict in verdicts if verdict.winner == paradigm}
    scores = [score for metric in metrics if (score := _score(competitor, metric, metric.key in ahead)) is not None]
    reasons = {v.metric.words: v.reasons[paradigm] for v in verdicts if paradigm in v.reasons}
    return Cell(paradigm, color, "", small_pictures(entry), scores, _cost(entry), reasons)


def _state(left_out: Sequence[LeftOut], paradigm: str, column: Column) -> str:
    names = (f"{paradigm} · {column[0]}", f"{paradigm} · {column[0]} · {column[1]}")
    return next((each.state for each in left_out if each.name in names), "not begun")


def _score(competitor: Competitor, metric: Metric, is_ahead: bool) -> Score | None:
    value, interval = competitor.value(metric), competitor.interval(metric)
    if value is None:
        return None
    words = f"{metric.text(interval.low)} to {metric.text(interval.high)}" if interval else ""
    mark = ""
    if metric.nominal is not None and interval:
        low, high = interval.low > metric.nominal, interval.high < metric.nominal
        mark = metric.sides[1] if low else metric.sides[0] if high else "calibrated"
    return Score(metric, " ".join(filter(None, [metric.text(value), metric.unit])), words, is_ahead, mark)


def _cost(entry: Measured) -> str:
    sampling: dict[str, Any] = entry.record.get("sampling", {})
    calls, seconds = sampling.get("num_network_calls", {}), sampling.get("seconds_per_image", {})
    parts = [
        f"{output}: {n:g} call{'' if n == 1 else 's'}" + _milliseconds(seconds.get(output))
        for output, n in calls.items()
    ]
    planned = entry.planned
    trained = f"{duration_text(planned.seconds + planned.shared_seconds)} of training" if planned else ""
    steps = f"{entry.record.get('step') or 0:,} steps"
    return " · ".join(filter(None, [*parts, trained, steps]))


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f", {1000 * seconds:.3g} ms"
