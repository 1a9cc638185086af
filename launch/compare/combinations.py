"""Evaluates every combination of choices, of one run or of several, and lays the results side by side.

A choice is written as in Hydra's multirun: ``sampler.num_steps=4,8``, ``run=A,B``, ``weights=ema,raw``. Results are means
over the seeds.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from rich.console import Console

from launch.compare.evaluations import Job, datamodule_for, read_job
from launch.compose import parse, values_of
from launch.data_check import STOP
from launch.errors import UserError
from launch.judge import KEY, differing_judges, judges_in
from launch.names import checked_name, file_name
from launch.paths import is_there
from launch.received import override_parser
from launch.record_files import DamagedRecordError, passed_over, read_metrics
from launch.results import Result, known_pixels_note, print_table, write_csv
from launch.use.exported import Source, step_of

SEEDS = ("module.evaluation_seed", "evaluation_seed")  # choices of these keys are averaged over
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def combinations(arguments: list[str]) -> list[list[str]]:
    """Write out every combination of the choices on a command line, the last argument's values changing first."""
    return [list(line) for line in dict.fromkeys(itertools.product(*map(_values, arguments)))]


def _values(argument: str) -> list[str]:
    key, _, value = argument.partition("=")
    # The folders of a multirun have = and , in their names.
    if argument.startswith("-") or key == "name" or (key == "run" and is_there(key, value)):
        return [argument]
    if key != "run":
        if values := values_of(argument):
            return values
        raise UserError(f"'{argument}' is a space to search, not a list of values: write key=value,value.")
    try:
        override = override_parser().parse_override(argument)
        if not override.is_sweep_override():
            return [argument]
        return [f"run={run.text if isinstance(run, QuotedString) else run}" for run in override.sweep_iterator()]
    except HydraException as error:
        remedy = "write run=\"'FOLDER','FOLDER'\" where a name has = or , in it"
        raise UserError(f"'{argument}' is not of the form key=value,value: {remedy}") from error


def evaluate_all(arguments: list[str], evaluate: Callable[[Job], dict[str, Any]], usage: str) -> Path:
    """Evaluate every combination, one after the other, print a table and write it to a CSV file.

    What has been evaluated before is not evaluated again: the same overrides, weights and name on the same checkpoint.

    Args:
        arguments: The command line without ``-m``.
        evaluate: Evaluates one job and returns the content of its ``metrics.json``.

    Returns:
        The CSV file, ``<paths.outputs>/comparisons/<name>.csv``.
    """
    names = [checked_name(*argument.split("=", 1)) for argument in arguments if argument.startswith("name=")]
    jobs = _read_jobs(combinations([a for a in arguments if not a.startswith("name=")]), usage)
    labels = run_labels([job.run for job in jobs])
    check_comparable(jobs)
    console = Console(highlight=False)
    contents: list[dict[str, Any]] = []
    for number, (job, content) in enumerate(zip(jobs, _evaluated_before(jobs), strict=True), start=1):
        doing = "evaluating" if content is None else "evaluated before, not again:"
        text = " ".join([labels[job.run.path], *(f"{key}={value}" for key, value in job.choices.items())])
        console.print(f"{number}/{len(jobs)} {doing} {text}", soft_wrap=True, markup=False)
        if content is None:
            with _alone(job):
                content = evaluate(job)
        contents.append(content)
        _check_images(jobs, contents)

    results = [
        Result(labels[job.run.path], str(job.run.path), job.choices, content["metrics"])
        for job, content in zip(jobs, contents, strict=True)
    ]
    several = list(labels.values()) if len(labels) > 1 else [next(iter(labels)).name]
    changes = [argument for argument in arguments if not argument.startswith(("run=", "name="))]
    name = names[-1] if names else file_name([*several, *changes])
    path = _outputs(jobs[0]) / "comparisons" / f"{name}.csv"
    write_csv(results, SEEDS, path)
    print_table(results, SEEDS, path)
    shown = [
        " ".join([r.run, *(f"{key}={value}" for key, value in r.choices.items() if key not in SEEDS)]) for r in results
    ]
    sampling = [(label, content["record"].get("sampling", {})) for label, content in zip(shown, contents, strict=True)]
    note = known_pixels_note(sampling, [metric for result in results for metric in result.metrics])
    if note:
        console.print(note, soft_wrap=True, markup=False)
    return path


def _outputs(job: Job) -> Path:
    """Return the folder of all runs: not what the config of a run says that lies elsewhere, as a received one does."""
    outputs = Path(job.config.paths.outputs)
    is_own = job.run.path.is_relative_to(outputs.resolve()) or any(
        o.startswith("paths.outputs=") for o in job.overrides
    )
    return outputs if is_own else Path("outputs")


def _read_jobs(lines: list[list[str]], usage: str) -> list[Job]:
    runs = {argument for line in lines for argument in line if argument.startswith("run=")}
    jobs = []
    for line in lines:
        try:
            jobs.append(read_job(line, usage))
        except UserError as error:
            (run,) = runs & set(line) or {""}
            raise UserError(f"{error} ({run})" if len(runs) > 1 and run not in str(error) else str(error)) from error
    return jobs


def _evaluated_before(jobs: list[Job]) -> list[dict[str, Any] | None]:
    """Return the content of ``metrics.json`` of each job that was done on the run's checkpoint before, else None."""
    steps: dict[Path, int] = {}
    found = []
    for job in jobs:
        content = _content(job)
        if content is not None:
            if job.run.path not in steps:
                steps[job.run.path] = step_of(job.run)
            wanted = job.identity() | {"step": steps[job.run.path]}
            accepted = job.data_changed != STOP or content["record"]["data"].get(
                "changed"
            )  # data that may change again
            is_other = any(content["record"].get(key) != value for key, value in wanted.items())
            if accepted or is_other or not _is_of_same_data(job, content["record"]):
                content = None
        found.append(content)
    return found


def _is_of_same_data(job: Job, record: dict[str, Any]) -> bool:
    """Say whether an evaluation saw the images that are there now, as far as that is known: other ones are read for it."""
    others = any(parse(override)[0].partition(".")[0] == "data" for override in job.overrides)
    now = datamodule_for(job.config).record() if others else job.run.record.get("data") or {}
    known = [each.get("fingerprint") for each in (now, record.get("data", {}))]
    return None in known or known[0] == known[1]


def _content(job: Job) -> dict[str, Any] | None:
    try:
        return read_metrics(job.metrics_path) if job.metrics_path.exists() else None
    except DamagedRecordError as error:
        passed_over(job.name, error)
        return None


def run_labels(runs: list[Source]) -> dict[Path, str]:
    """Name runs as shortly as tells them apart: by their experiments, else their folders, else their whole paths."""
    distinct = {run.path: run for run in runs}
    for name_of in (lambda run: run.record.get("name", run.path.name), lambda run: run.path.name):
        labels = {path: str(name_of(run)) for path, run in distinct.items()}
        if len(set(labels.values())) == len(labels):
            return labels
    return {path: str(path) for path in distinct}


def check_comparable(jobs: list[Job]) -> None:
    """Check that runs of equal overrides see the same images with the same degradations."""
    for first, other in _pairs(jobs):
        _check_equal(first, other, _conditions(first), _conditions(other))


def _pairs(jobs: list[Job]) -> Iterator[tuple[Job, Job]]:
    """Pair each job with the first one that differs from it in the run alone."""
    first: dict[tuple[tuple[str, str], ...], Job] = {}
    for job in jobs:
        yield first.setdefault(tuple(job.choices.items()), job), job


def _conditions(job: Job) -> dict[str, Any]:
    config = job.config
    conditions = {f"data.{key}": config.data[key] for key in ("name", "image_size", "channels")}
    if not any(key.lstrip("+~").split(".")[0] == "data" for key in job.choices):  # else known once the data are read
        conditions["data.fingerprint"] = (job.run.record.get("data") or {}).get("fingerprint")
    conditions["evaluation_seed"] = config.data.evaluation_seed
    degradation = config.get("degradation")
    return conditions | {"degradation": degradation and OmegaConf.to_container(degradation, resolve=True)}


def _check_images(jobs: list[Job], contents: list[dict[str, Any]]) -> None:
    """Check the data that were read, which overrides may have changed, and who judged."""
    records = {tuple(job.arguments): content["record"] for job, content in zip(jobs, contents, strict=False)}
    for pair in _pairs(jobs[: len(contents)]):
        each = [records[tuple(job.arguments)] for job in pair]
        _check_equal(*pair, *({"data.fingerprint": record.get("data", {}).get("fingerprint")} for record in each))
        if differing := differing_judges(*map(judges_in, each)):
            _check_equal(*pair, *({KEY: judge} for judge in differing))


def _check_equal(first: Job, other: Job, conditions: dict[str, Any], others: dict[str, Any]) -> None:
    for key, value in conditions.items():
        if value != others[key]:
            where, a, b = _difference(key, value, others[key])
            raise UserError(
                f"{first.run.path} and {other.run.path} cannot be compared, since their {where} differs ({a} and {b}): give "
                f"the same {key.split('.')[0]}= override for all."
            )


def _difference(key: str, a: Any, b: Any) -> tuple[str, str, str]:
    """Find the first key below which two values differ, with what stands there."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(_difference(f"{key}.{name}", a[name], b[name]) for name in a if a[name] != b[name])
    return key, _short(a), _short(b)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(value.get("steps", value))
    return "none" if value is None else str(value)


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Let the processes that Lightning starts run this job only, and leave nothing of its ranks behind."""
    arguments, variables = sys.argv[1:], {name: os.environ.get(name) for name in RANK_VARIABLES}
    sys.argv[1:] = job.arguments
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        sys.argv[1:] = arguments
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
