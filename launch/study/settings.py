"""What a study is: its file in ``conf/study``, its budget in ``conf/budget``, and what the command line changes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from generative.checks import checked
from generative.metrics.catalogue import listed
from generative.ranges import BelowOne, Count, Positive, PositiveShare, WholeNumber
from launch.command_line import taken
from launch.compose import parse
from launch.errors import UserError, as_user_error, near_matches, one_line
from launch.history import flat
from launch.names import checked_name
from launch.options import options_of
from launch.paths import typed_path
from launch.received import CONF_DIR, STUDIES
from launch.study.record import BASELINE, CELL, Prediction, read_prediction

Overrides = list[str]


@checked("budget")
@dataclass(frozen=True)
class Budget:
    """What each training is given.

    Attributes:
        seconds: Seconds of one thread for the training of a cell, its share of a tokenizer's included.
        judge_seconds: Those of the judge.
        seeds: Seeds of the trainings of cells and baselines.
        validations: Validations during each training.
        settings: Overrides of every run that has their key.
    """

    seconds: Positive
    judge_seconds: Positive
    seeds: list[WholeNumber]
    validations: Count
    settings: Overrides


@checked("study.paradigms")
@dataclass(frozen=True)
class Row:
    """A paradigm, or a baseline.

    Attributes:
        overrides: Its experiment, and what it sets in it.
        tasks: Which of the study's tasks it does; None: all.
        needs_tokenizer: Whether it works on a tokenizer, whose seconds are then a part of its own.
        evaluations: By task, command lines of ``evaluate.py -m`` for its runs once they are trained.
    """

    overrides: Overrides
    tasks: Overrides | None = None
    needs_tokenizer: bool = False
    evaluations: dict[str, Overrides] = field(default_factory=dict)


@dataclass(frozen=True)
class StudySettings:
    """A study with its budget.

    Attributes:
        study: Name of the study.
        budget_name: Name of the budget.
        folder: Where all of it lies.
        side_by_side: Processes at a time, of one thread each.
        seconds_share: Share of the budget's seconds that its cells are given.
        tokenizer_share: Share of the seconds of a row with a tokenizer that are the tokenizer's.
        data: Overrides of each data set, by name.
        tasks: Overrides of each task, by name.
        judge: Overrides of the judge's training; None: nothing is judged.
        tokenizer: Overrides of the tokenizer's training.
        rows: Paradigms and baselines, by role and name.
        predictions: What was said before.
        record: All of it as plain values.
    """

    study: str
    budget_name: str
    budget: Budget
    folder: Path
    side_by_side: int
    seconds_share: float
    tokenizer_share: float
    data: dict[str, Overrides]
    tasks: dict[str, Overrides]
    judge: Overrides | None
    tokenizer: Overrides | None
    rows: dict[tuple[str, str], Row]
    predictions: tuple[Prediction, ...]
    record: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Seconds of one thread that a cell is given."""
        return self.budget.seconds * self.seconds_share


@checked("study")
@dataclass(frozen=True)
class _File:
    """A file of ``conf/study``."""

    data: dict[str, Overrides | None]
    tasks: dict[str, Overrides | None]
    judge: Overrides | None
    tokenizer: Overrides | None
    seconds_share: PositiveShare
    tokenizer_share: BelowOne
    paradigms: dict[str, Any]
    baselines: dict[str, Any] | None
    predictions: list[dict[str, Any]] | None


@checked("the study")
@dataclass(frozen=True)
class _Whole:
    """What ``conf/study.yaml`` has besides both groups."""

    name: str | None
    output: str
    side_by_side: Count


def read_settings(arguments: list[str]) -> StudySettings:
    """Read the command line of a study.

    Args:
        arguments: ``study=NAME budget=NAME``, and overrides of ``conf/study.yaml``.

    Raises:
        UserError: A name or a setting is wrong.
    """
    chosen: dict[str, str] = {}
    for group in STUDIES:
        chosen[group] = str(taken(arguments, group)[0] or "")
        if chosen[group] not in options_of(group):
            said = (
                f"{group}={chosen[group]} does not exist" if chosen[group] else f"say which {group} with {group}=NAME"
            )
            raise UserError(f"{said}: {near_matches(chosen[group], options_of(group))}")
    plain = _composed(arguments)
    whole = _composed([f"{group}={name}" for group, name in chosen.items()])["study"]
    with as_user_error():
        try:
            return _settings(chosen["study"], chosen["budget"], plain, whole)
        except TypeError as error:  # a key that there is not, or one too few
            raise UserError(f"conf/study/{chosen['study']}.yaml or conf/budget: {one_line(error)}.") from error


def _composed(arguments: list[str]) -> dict[str, Any]:
    for argument in arguments:
        parse(argument)  # says in our words what is malformed
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), job_name="study", version_base="1.3"):
            config = compose("study", arguments)
        plain = OmegaConf.to_container(config, resolve=False)  # interpolations are the runs'
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from error
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _settings(study: str, budget: str, plain: dict[str, Any], before: dict[str, Any]) -> StudySettings:
    """Read composed settings.

    Args:
        before: Those of the study's file alone, without what the command line has changed.
    """
    file, whole = _File(**plain["study"]), _Whole(**{k: v for k, v in plain.items() if k not in STUDIES})
    rows = {
        (role, name): Row(**row)
        for role, group in ((CELL, file.paradigms), (BASELINE, file.baselines or {}))
        for name, row in group.items()
        if row is not None
    }
    data, tasks = ({name: own for name, own in group.items() if own is not None} for group in (file.data, file.tasks))
    for (_, name), row in rows.items():
        for task in (*(row.tasks or ()), *row.evaluations):
            if task not in (known := {*file.tasks, *options_of("task")}):  # the command line may take one away
                raise UserError(f"study: {name} names the task {task}: {near_matches(task, known)}")
        if row.needs_tokenizer and file.tokenizer is None:
            raise UserError(
                f"study.tokenizer=null, and {name} works on one: leave it out with ~study.paradigms.{name}."
            )
    name = checked_name("name", whole.name or f"{study}_{budget}")
    return StudySettings(
        study,
        budget,
        Budget(**plain["budget"]),
        typed_path("output", whole.output).resolve() / name,
        whole.side_by_side,
        file.seconds_share,
        file.tokenizer_share,
        data,
        tasks,
        file.judge,
        file.tokenizer if any(row.needs_tokenizer for row in rows.values()) else None,
        rows,
        _told_of(_predictions(study, budget, file.predictions or []), _parts(plain["study"]), _parts(before)),
        {key: value for key, value in plain.items() if key != "output"},
    )


def _predictions(study: str, budget: str, entries: list[dict[str, Any]]) -> tuple[Prediction, ...]:
    path = CONF_DIR / "study" / f"{study}.yaml"
    found = []
    for entry in entries:
        if budget in entry.get("budgets", [budget]):
            found.append(read_prediction(path, {key: value for key, value in entry.items() if key != "budgets"}))
            if found[-1].metric not in listed():
                raise UserError(f"{path}: {found[-1].metric} is no metric: {near_matches(found[-1].metric, listed())}")
    return tuple(found)


def _parts(study: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the rows, tasks and data sets that a study has, each with its kind."""
    groups = {CELL: "paradigms", BASELINE: "baselines", "task": "tasks", "data": "data"}
    parts = ((kind, study.get(group) or {}) for kind, group in groups.items())
    return {(kind, name) for kind, group in parts for name, own in group.items() if own is not None}


def _told_of(
    predictions: tuple[Prediction, ...], parts: set[tuple[str, str]], before: set[tuple[str, str]]
) -> tuple[Prediction, ...]:
    """Leave out, and name, the predictions about what the command line took away from the study's file."""
    gone, kept = before - parts, []
    for prediction in predictions:
        sides = (side for side in (prediction.above, prediction.below) if side.value is None)
        named = {each for s in sides for each in ((s.role, s.paradigm), ("task", s.task), ("data", s.data))}
        if missing := sorted(name for _, name in named & gone):
            print(f"without {' and '.join(missing)} nothing is predicted of: {prediction.claim}", flush=True)  # noqa: T201
        else:
            kept.append(prediction)
    return tuple(kept)


def check_same(recorded: dict[str, Any], settings: StudySettings) -> None:
    """Check that a study continues with the settings that it was begun with.

    Args:
        recorded: Those of its folder.

    Raises:
        UserError: One differs.
    """
    for key, (before, now) in _differing(recorded, settings).items():
        raise UserError(
            f"{settings.folder} belongs to a study with other settings ({key} is {now} and was {before}): give the same ones, "
            "or begin another study with name=NAME."
        )


def is_same(recorded: dict[str, Any], settings: StudySettings) -> bool:
    """Say whether a study has the settings that it was begun with; see ``check_same``."""
    return not _differing(recorded, settings)


def _differing(recorded: dict[str, Any], settings: StudySettings) -> dict[str, tuple[Any, Any]]:
    before, now = flat(recorded), flat(settings.record)
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and key != "side_by_side"]
    return {key: (before.get(key), now.get(key)) for key in keys}
