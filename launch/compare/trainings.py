"""What was trained: size, cost, and the settings in which the trainings differ."""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from files.words import count
from launch.compare.reading import BATCH_KEYS, Measured, logged_curve
from launch.compare.rows import Row
from launch.record import duration_text, hardware_text, images_seen, revision_text, training_seconds
from launch.settings import ABSENT, BEFORE, TARGET, distinguishing, value_at

COST_HEADINGS = ("parameters", "steps", "images seen", "time", "seeds", "sampling", "hardware", "revision")


def trainings_of(rows: Sequence[Row]) -> dict[int, Row]:
    """Join the rows of the same weights: by its number what was trained, however it was evaluated."""
    found: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: row.training):
        known = found.setdefault(row.training, Row(row.name, {}, [], row.training, row.color))
        known.entries.extend(row.entries)
    return found


def runs_of(row: Row) -> list[Measured]:
    """Return one entry for each run of a row."""
    return list({entry.run.path: entry for entry in row.entries}.values())


def training_cost(entry: Measured, in_minutes: bool) -> Callable[[int], float] | None:
    """Return what a training had cost at an optimiser step, in images, or in minutes by its measured images per second.

    Minutes are those of its training steps alone; of a study, at the speed that its budget was counted with, its share of a
    tokenizer's included. None where no speed is known.
    """
    batch, accumulated = (int(entry.trained.get(key, 1)) for key in BATCH_KEYS)

    def images(step: int) -> int:
        return images_seen(entry.run_record, batch, accumulated, step)

    if not in_minutes:
        return images
    if entry.planned and entry.planned.images_per_second:
        shared, rate = entry.planned.shared_seconds, entry.planned.images_per_second
        return lambda step: (shared + images(step) / rate) / 60
    logged = [(s, rate) for s, rate in logged_curve(entry.run.path, "throughput/images_per_second") if rate > 0]
    steps, ends = [0, *(step for step, _ in logged)], [0.0]
    for (begin, end), (_, rate) in zip(itertools.pairwise(steps), logged, strict=True):
        ends.append(ends[-1] + (images(end) - images(begin)) / rate / 60)
    return (lambda step: ends[max(0, bisect.bisect_right(steps, step) - 1)]) if logged else None


def training_text(row: Row) -> str:
    """Describe one of ``trainings_of`` in a few words: size, steps and seeds."""
    runs = runs_of(row)
    parameters = runs[0].run_record.get("parameters")
    seeds = count(len(runs), "seed") if len(runs) > 1 else f"seed {runs[0].seed}"
    size = [f"{parameters / 1e6:.1f} M parameters"] if parameters else []
    before = [f"first with {text}"] if (text := runs[0].trained.get(BEFORE)) else []
    return ", ".join([*size, count(runs[0].record.get("step", 0), "step"), seeds, *before])


def training_choices(row: Row, trainings: dict[int, Row]) -> dict[str, str]:
    """Return what tells a training from others of its name."""
    same = [each.entries[0].trained for each in trainings.values() if each.name == row.name]
    return {key: value_at(row.entries[0].trained, key, same) for key in distinguishing(same)}


def costs_of(row: Row) -> list[str]:
    """Say what a training took, a cell for each of ``COST_HEADINGS``."""
    runs = runs_of(row)
    first = runs[0]
    steps = first.record.get("step") or 0
    batch, accumulated = (int(first.trained.get(key, 1)) for key in BATCH_KEYS)
    images = images_seen(first.run_record, batch, accumulated, steps)
    seconds = [s for s in (training_seconds(entry.run_record) for entry in runs) if s is not None]
    parameters = first.run_record.get("parameters")
    sampling = [entry.record.get("sampling", {}) for entry in row.entries]
    samplers = sorted({str(each["sampler"]).partition("(")[0] for each in sampling if "sampler" in each})
    calls = sorted({float(n) for each in sampling for n in each.get("num_network_calls", {}).values()})
    revisions = sorted({revision_text(entry.run_record.get("git_revision")) for entry in runs})
    return [
        f"{parameters:,}" if parameters else "",
        f"{steps:,}",
        f"{images:,}",
        duration_text(statistics.fmean(seconds)) if seconds else "",
        ", ".join(map(str, row.training_seeds)),
        " ".join([*samplers, *([f"{'/'.join(f'{n:g}' for n in calls)} calls"] if calls else [])]),
        hardware_text(first.run_record.get("hardware", {})),
        ", ".join(revisions),
    ]


def settings_table(trainings: Sequence[Row], by_color: dict[int, Row]) -> dict[str, Any]:
    """Sort settings into those in which the trainings differ, those that one kind of run has alone, and the common ones."""
    several = [{_object_key(k): _class_name(k, v) for k, v in row.entries[0].trained.items()} for row in trainings]
    keys = list(dict.fromkeys(key for settings in several for key in settings))
    present = {key: [settings.get(key) for settings in several] for key in keys}
    holders = {
        key: [row.name for row, value in zip(trainings, values, strict=True) if value is not None]
        for key, values in present.items()
    }
    shared, single, common = [], [], []
    for key, values in present.items():
        if len(set(values)) == 1:
            common.append((key, values[0]))
        elif len(set(holders[key])) > 1 or len({row.name for row in trainings}) == 1:
            shared.append((key, [ABSENT if value is None else value for value in values]))
        else:
            single.append((key, holders[key][0], ", ".join(dict.fromkeys(v for v in values if v is not None))))
    columns = [{"name": r.name, "choices": training_choices(r, by_color), "color": r.color} for r in trainings]
    return {"columns": columns, "shared": shared, "single": single, "common": common}


def _object_key(key: str) -> str:
    return key.removesuffix(f".{TARGET}")


def _class_name(key: str, value: str) -> str:
    return value.rpartition(".")[2] if key.endswith(TARGET) else value
