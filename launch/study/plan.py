"""The runs of a study: what each is trained with, what is evaluated of it, and that this can work before anything starts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig, OmegaConf

from launch import build
from launch.checking import check_values
from launch.compose import compose_config, merged, parse, quoted
from launch.errors import UserError, near_matches
from launch.study.record import BASELINE, CELL, JUDGE, TOKENIZER, Side, StudyRun
from launch.study.settings import Overrides, Row, StudySettings
from lightning_modules import TrainingModule

LARGEST_DIFFERENCE = 0.05  # of the networks' parameters
DOES = {JUDGE: "judge", TOKENIZER: "reconstruct"}


@dataclass(frozen=True)
class Planned:
    """A run before its steps are known.

    Attributes:
        entry: What the study's record says of it.
        overrides: What it is composed of, but for the number of its steps.
        evaluations: Further command lines of ``evaluate.py -m``.
        has_grids: Whether it draws grids of images in between.
    """

    entry: StudyRun
    overrides: Overrides
    evaluations: tuple[Overrides, ...] = ()
    has_grids: bool = True

    def command(self, entry: StudyRun, validations: int) -> Overrides:
        """Return what it is composed of, with its steps.

        Args:
            entry: What is known of it by now.
        """
        assert entry.steps is not None
        steps = [f"trainer.max_steps={entry.steps}", f"trainer.val_check_interval={entry.steps // validations}"]
        grids = [f"callbacks.image_grid.every_n_steps={entry.steps}"] if self.has_grids else []
        return merged(self.overrides, steps + grids)


def planned_runs(settings: StudySettings) -> list[Planned]:
    """Lay out the runs of a study, judges and tokenizers first, and check that their configs can be composed.

    Raises:
        UserError: A setting is wrong, or a prediction names no run.
    """
    drafts = [draft for data in settings.data for draft in _of_data(settings, data)]
    on_tokenizer = {name for (_, name), row in settings.rows.items() if row.needs_tokenizer}
    missing = dict.fromkeys(parse(setting)[0] for setting in settings.budget.settings)
    planned: list[Planned] = []
    for entry, overrides, evaluations in sorted(drafts, key=lambda each: each[0].role in (CELL, BASELINE)):
        like = next((each for each in planned if _but_for_seed(each.entry) == _but_for_seed(entry)), None)
        if like:
            entry = replace(entry, parameters=like.entry.parameters)
            planned.append(replace(like, entry=entry, overrides=merged(like.overrides, overrides)))
            continue
        config = compose_config(overrides)
        own = [setting for setting in settings.budget.settings if _has(config, parse(setting)[0])]
        for key, value in map(parse, own):
            OmegaConf.update(config, key, value)
            missing.pop(key, None)
        _check_labels(config, entry)
        check_values(config)
        has_grids = OmegaConf.select(config, "callbacks.image_grid") is not None
        if (
            entry.role in (CELL, BASELINE) and entry.paradigm not in on_tokenizer
        ):  # that network is its tokenizer's to size
            entry = replace(entry, parameters=num_parameters(build.build_module(config)))
        planned.append(Planned(entry, merged(own, overrides), tuple(map(shlex.split, evaluations)), has_grids))
    for key in missing:
        print(f"budget.settings: no run of this study has the key {key}", flush=True)  # noqa: T201
    _check_predictions(settings, [each.entry for each in planned])
    check_parameters([each.entry for each in planned])
    return planned


def _but_for_seed(entry: StudyRun) -> StudyRun:
    return replace(entry, seed=0, run="", parameters=None)


def num_parameters(module: TrainingModule) -> int:
    """Count the parameters of what a module trains to draw or restore."""
    return sum(parameter.numel() for parameter in module.network.parameters())


def _of_data(settings: StudySettings, data: str) -> Iterable[tuple[StudyRun, Overrides, Overrides]]:
    """Yield the runs on a data set: what is known of each, its overrides, and its further evaluations."""
    several = f"_{data}" if len(settings.data) > 1 else ""
    common = [
        *settings.data[data],
        "trainer=cpu",
        "compile=false",  # a minute that only long trainings have
        f"paths.outputs={quoted(settings.folder)}",  # where judge and tokenizer are found
    ]
    for role, overrides in ((JUDGE, settings.judge), (TOKENIZER, settings.tokenizer)):
        if overrides is not None:
            seconds = settings.budget.judge_seconds if role == JUDGE else _tokenizer_seconds(settings)
            name = f"{role}{several}"
            entry = StudyRun(role, DOES[role], role, data, 0, name, seconds)
            yield entry, [*merged(common, overrides), f"name={name}", "seed=0"], []
    for (role, paradigm), row in settings.rows.items():
        for task in _tasks(settings, row):
            for seed in settings.budget.seeds:
                name = f"{paradigm}_{task}{several}"
                shared = _tokenizer_seconds(settings) / len(_tasks(settings, row)) if row.needs_tokenizer else 0.0
                run = f"{name}_{seed}" if len(settings.budget.seeds) > 1 else name
                entry = StudyRun(paradigm, task, role, data, seed, run, settings.seconds - shared, shared)
                own = merged(row.overrides, [*common, f"name={name}", f"seed={seed}", *settings.tasks[task]])
                yield entry, own, row.evaluations.get(task, [])


def _tasks(settings: StudySettings, row: Row) -> list[str]:
    return [task for task in settings.tasks if row.tasks is None or task in row.tasks]


def _tokenizer_seconds(settings: StudySettings) -> float:
    """Return the seconds of a tokenizer: a share of those of the row that is built on it, the smallest of several."""
    tasks = [len(_tasks(settings, row)) for row in settings.rows.values() if row.needs_tokenizer]
    return settings.tokenizer_share * settings.seconds * min(tasks, default=1)


def _has(config: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return OmegaConf.is_dict(node) and leaf in node


def _check_labels(config: DictConfig, entry: StudyRun) -> None:
    if config.data.num_classes == 0 and (entry.role == JUDGE or config.module.get("labels")):
        key = "study.judge" if entry.role == JUDGE else "module.labels"
        remedy = "set study.judge=null" if entry.role == JUDGE else "leave it out"
        raise UserError(f"{key} of {entry.run}: the images of data={config.data.name} have no labels; {remedy}.")


def _check_predictions(settings: StudySettings, runs: list[StudyRun]) -> None:
    for prediction in settings.predictions:
        for side in (prediction.above, prediction.below):
            if side.value is None and not any(side.matches(run) for run in runs):
                raise UserError(
                    f"study={settings.study}: the prediction '{prediction.claim}' names {_named(side)}, which the study does "
                    f"not run: {near_matches(side.paradigm, {run.paradigm for run in runs})}"
                )


def _named(side: Side) -> str:
    return " ".join(filter(None, [side.role, side.paradigm, side.task, side.data]))


def timed(
    settings: StudySettings, entry: StudyRun, seconds_per_step: float, batch_size: int, parameters: int
) -> StudyRun:
    """Turn the seconds of a run into steps.

    Args:
        seconds_per_step: Those of one thread.
        batch_size: Training images of a step.
        parameters: Of its network.

    Returns:
        What is known of the run by now.

    Raises:
        UserError: There is no time for a single validation.
    """
    steps, wanted = math.floor(entry.seconds / seconds_per_step), settings.budget.validations
    if steps < wanted:
        key = "judge_seconds" if entry.role == JUDGE else "seconds"
        least = getattr(settings.budget, key) * wanted * seconds_per_step / entry.seconds
        raise UserError(
            f"budget.{key}={getattr(settings.budget, key):g} is too little for one validation: {entry.run} makes {steps} steps "
            f"in its {entry.seconds:.3g} seconds, and budget.validations={wanted} asks for as many; give {least:.2g} or more."
        )
    rate = float(f"{batch_size / seconds_per_step:.6g}")
    return replace(entry, steps=steps, images_per_second=rate, parameters=parameters)


def check_parameters(runs: Sequence[StudyRun]) -> None:
    """Check that the networks of all cells and baselines of a data set have about equally many parameters.

    Raises:
        UserError: Two differ by more than ``LARGEST_DIFFERENCE``.
    """
    for data in dict.fromkeys(run.data for run in runs):
        sizes = {
            run.run: run.parameters
            for run in runs
            if run.data == data and run.role in (CELL, BASELINE) and run.parameters is not None
        }
        if sizes and max(sizes.values()) > min(sizes.values()) * (1 + LARGEST_DIFFERENCE):
            most, least = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
            raise UserError(
                f"{most} has {sizes[most]:,} parameters and {least} has {sizes[least]:,}: the networks of a study are within "
                f"{LARGEST_DIFFERENCE:.0%} of each other; choose their network.* settings so."
            )
