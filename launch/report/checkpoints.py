"""The checkpoints that a run has kept beside its last one: the best by a metric, and milestones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks.kept_checkpoints import BEST, KEPT, LIST
from generative.metrics.catalogue import metric_of, split_name
from launch.record_files import NUMBER, DamagedRecordError, check_shape, read_json

KeptTable = tuple[list[str], list[list[str]]]
ENTRY: dict[str, type | tuple[type, ...]] = {"file": str, "step": int, "value": NUMBER}


def kept_checkpoints(folder: Path, curves: Mapping[str, Sequence[tuple[int, float]]]) -> KeptTable:
    """List what was kept and is there still: the best by their rank, then the milestones by their step.

    Args:
        folder: ``checkpoints/`` of a run.
        curves: What was logged: the metric of a milestone is that of a validation at its step.

    Returns:
        The headings, the last one the metric that the best were chosen by, and a row for each file.

    Raises:
        DamagedRecordError: ``best.json`` is damaged.
    """
    name, best = _best(folder / LIST)
    key, output = split_name(name.removeprefix("val/"))
    metric, measured = metric_of(key), dict(curves.get(name, ()))
    rows = []
    for rank, entry in enumerate(best, start=1):
        if KEPT.fullmatch(entry["file"]) and (folder / entry["file"]).is_file():
            place = f"best of {len(best)}, also {BEST}" if rank == 1 else f"place {rank} of {len(best)}"
            rows.append([entry["file"], place, f"{entry['step']:,}", metric.text(entry["value"])])
    files = [path.name for path in folder.glob("step_*.ckpt") if KEPT.fullmatch(path.name)]
    for step, file in sorted((int(file[5:-5]), file) for file in files):
        rows.append([file, "milestone", f"{step:,}", metric.text(measured.get(step))])
    heading = f"{metric.name} {output} {metric.arrow}" if name else ""
    return ["file", "kept as", "step", " ".join(heading.split())], rows


def _best(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Read the list of the best; no metric and no entry where there is none."""
    if not path.is_file():
        return "", []
    content = read_json(path)
    entries = content.get("best")
    if not isinstance(content.get("metric"), str) or not isinstance(entries, list):
        raise DamagedRecordError(path, "metric or best is missing or of another kind")
    check_shape(
        path, {"best": dict(enumerate(entries))}, {"best.*": dict, **{f"best.*.{k}": v for k, v in ENTRY.items()}}
    )
    if any(entry.get(key) is None for entry in entries for key in ENTRY):
        raise DamagedRecordError(path, "an entry of best is not whole")
    return content["metric"], entries
