"""One evaluation of one run or export, as a command line says it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from datamodules.base import ImageDataModule
from launch import build
from launch.command_line import from_here, own_arguments
from launch.data_check import KEY as DATA_CHANGED
from launch.data_check import STOP, check_answer
from launch.errors import UserError
from launch.names import checked_name, file_name
from launch.record_files import DamagedRecordError, read_metrics
from launch.use.exported import Source, evaluations_of, opened

DEFAULTS: dict[str, str | None] = {"name": None, "weights": None, DATA_CHANGED: STOP}
SETTINGS = ("overrides", "weights", "checkpoint")  # what makes an evaluation another one
_last_datamodule: dict[tuple[str, ...], ImageDataModule] = {}


@dataclass(frozen=True)
class Job:
    """One evaluation of one run or export.

    Attributes:
        run: The run, or the export.
        config: Its config with the overrides applied.
        weights: ``ema`` or ``raw``.
        overrides: What is other than in the training; paths are absolute.
        name: Name of the evaluation.
        arguments: The command line that makes the same evaluation by itself.
        data_changed: ``stop`` or ``accept``: what to do where the data are not those of the run's record.
    """

    run: Source
    config: DictConfig
    weights: str
    overrides: list[str]
    name: str
    arguments: list[str]
    data_changed: str = STOP

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.home / self.name

    @property
    def home(self) -> Path:
        """Where the results of all evaluations of the run go."""
        return evaluations_of(self.run, self.config)

    @property
    def metrics_path(self) -> Path:
        """The file of the results."""
        return self.folder / "metrics.json"

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen, by key, without the run."""
        pairs = (argument.partition("=")[::2] for argument in self.arguments)
        return {key: value for key, value in pairs if key not in ("run", "name")}

    def check_folder(self) -> None:
        """Check that the results can go where they belong.

        Raises:
            UserError: The name is that of other settings, or a link leads out of the run folder.
        """
        leaves = [path for path in (self.folder, *self.folder.rglob("*")) if not self._holds(path)]
        if leaves:
            raise UserError(f"{leaves[0]} leads out of the run folder: choose another name, or remove the link.")
        if not self.metrics_path.exists():
            return
        try:
            record = read_metrics(self.metrics_path)["record"]
        except DamagedRecordError:  # is written anew
            return
        if [record.get(key) for key in SETTINGS] != [self.identity().get(key) for key in SETTINGS]:
            old = " ".join([*map(str, record.get("overrides") or []), f"weights={record.get('weights')}"])
            raise UserError(
                f"name={self.name} is the name of another evaluation of this run ({old}): choose another name, or remove "
                f"{self.folder}."
            )

    def _holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.home.parent.resolve())

    def identity(self) -> dict[str, Any]:
        """Say what is evaluated, for the record."""
        chosen = {"checkpoint": self.run.chosen.name} if self.run.chosen else {}
        return {"name": self.name, "overrides": self.overrides, "weights": self.weights, **chosen}


def read_job(arguments: list[str], usage: str) -> Job:
    """Read the command line of one evaluation."""
    folder, own, overrides = own_arguments(arguments, DEFAULTS, usage)
    run, config = opened(folder, overrides)
    weights = run.kind_of_weights(own["weights"])
    data_changed = check_answer(own[DATA_CHANGED])
    changes = overrides if weights == run.kind_of_weights() else [*overrides, f"weights={weights}"]
    if data_changed != STOP:
        changes = [*changes, f"{DATA_CHANGED}={data_changed}"]
    if run.chosen:
        changes = [run.chosen.stem, *changes]
    name = file_name(changes) if own["name"] is None else checked_name("name", own["name"])
    return Job(run, config, weights, [from_here(override) for override in overrides], name, arguments, data_changed)


def datamodule_for(config: DictConfig) -> ImageDataModule:
    """Build the data module, or return the last one again where the settings of the data are the same.

    Reading and checking the data of each job anew may take longer than the job.
    """
    parts = [config.get(group) for group in ("data", "degradation")]
    settings = tuple(OmegaConf.to_yaml(part, resolve=True) if part else "" for part in parts)
    if settings not in _last_datamodule:
        _last_datamodule.clear()
        _last_datamodule[settings] = build.build_datamodule(config)
    return _last_datamodule[settings]
