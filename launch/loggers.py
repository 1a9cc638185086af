"""Where a run is logged besides its own files: Weights & Biases or TensorBoard, begun and ended with the run."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from callbacks.checkpoint import Interrupted
from generative.metrics.catalogue import metric_of, ordered, output_order, split_name, value_name
from launch.errors import UserError, as_user_error, exit_code, one_line
from launch.metrics_csv import MetricsCSV
from launch.mlflow import MLflowRun
from launch.record_files import read_json
from launch.run_folder import RunFolder, write_json

STEP = "trainer/global_step"  # Lightning's name of the optimiser step
RECORD_NAME = "wandb.json"
SWEEPS = "sweeps"  # outputs/sweeps/<sweep>/<job>/
ID_BYTES = 6
EXTRAS = ("tensorboard", "mlflow")  # of the package, that install a logger


class WandbRun(WandbLogger):
    """A run of Weights & Biases that is one with its run folder.

    Its id is drawn once and kept in the folder's ``wandb.json``, so that a resumed run continues as the same one, also in a
    folder that was moved. Begun at the first use, on rank 0 only. What is null is taken from the folder and the config:
    see ``conf/logger/wandb.yaml``.

    Args:
        folder: The run folder; files go to its ``wandb/``.
        entity: User or team, or None for the login's own.
        name: Name that is shown, or None for the experiment and the folder's name.
        id: Id of the run, or None for the folder's own.
        group: Group of runs, or None for the sweep that the run is a job of.
        job_type: Kind of run.
        offline: Write files only; ``wandb sync`` uploads them.
        **kwargs: More arguments of ``wandb.init``.
    """

    def __init__(
        self,
        folder: str,
        project: str,
        entity: str | None = None,
        name: str | None = None,
        id: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(project=project, save_dir=folder, offline=offline)
        if offline:  # W&B would still send its own usage figures; it reads this when it is imported or begins
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.folder = Path(folder)
        path = self.folder / RECORD_NAME
        record = read_json(path) if path.exists() else {}
        self.record: dict[str, Any] = {
            "id": id or record.get("id") or secrets.token_hex(ID_BYTES),
            "project": project,
            "entity": entity or record.get("entity"),
            "name": name or f"{job_type} {self.folder.name}",
            "group": group or (self.folder.parent.name if self.folder.parent.parent.name == SWEEPS else None),
            "url": record.get("url"),
        }
        self._defined: set[str] = set()  # scalars whose summary is settled
        self._init_arguments = {"job_type": job_type, "tags": tags, **kwargs}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun at the first use."""
        if self._experiment is None:
            self._experiment = self._begin()
        return self._experiment

    def _begin(self) -> Any:
        import wandb

        write_json(self.folder / RECORD_NAME, self.record)  # before the run exists anywhere, so that none is lost
        shown = {key: value for key, value in self.record.items() if key != "url"}
        mode: Any = "offline" if self._offline else None  # None: as WANDB_MODE says, or online
        try:
            run = wandb.init(dir=str(self.folder), resume="allow", mode=mode, **shown, **self._init_arguments)
        except wandb.errors.Error as error:
            raise UserError(_unreachable(error)) from error
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        if not run.offline:
            self.record |= {"entity": run.entity, "url": run.url}
            write_json(self.folder / RECORD_NAME, self.record)
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars; of a validation metric the summary keeps the best value next to the last."""
        for name in metrics.keys() - self._defined:
            self._defined.add(name)
            split, _, value = name.partition("/")
            best = {1: "max", -1: "min", 0: ""}[metric_of(split_name(value)[0]).sign]
            if split == "val" and best:
                escaped = name.replace(".", "\\.")  # W&B takes dots for a path of keys
                self.experiment.define_metric(escaped, step_metric=STEP, step_sync=True, summary=f"{best},last")
        super().log_metrics(metrics, step)

    def check_login(self) -> None:
        """Find out before anything is trained whether the server can be used; never asks for a key.

        Raises:
            UserError: There is no login, or the server does not answer.
        """
        import wandb

        if self._offline or wandb.setup().settings.mode != "online":
            return
        terminal = sys.stdin
        try:
            with Path(os.devnull).open() as sys.stdin:  # on a terminal wandb.login would ask
                wandb.login()
        except wandb.errors.Error as error:
            raise UserError(_unreachable(error)) from error
        finally:
            sys.stdin = terminal

    @rank_zero_only
    def log_result(self, result: dict[str, Any], step: int) -> None:
        """Log what the final test measured: in the summary, and as one table with a row per output.

        Args:
            result: The content of ``metrics.json``.
            step: Optimiser step.
        """
        metrics = result["metrics"]
        columns = ordered(metrics, has_spreads=True)
        outputs = sorted({split_name(name)[1] for name in metrics}, key=output_order)
        rows = [[output, *(metrics.get(value_name(metric.key, output)) for metric in columns)] for output in outputs]
        with self._staging():
            self.log_table("test/table", ["output", *(metric.name for metric in columns)], rows, step=step)
        self.experiment.summary.update({f"test/{name}": value for name, value in metrics.items()})
        self.experiment.config.update({"test_record": result["record"]}, allow_val_change=True)

    @contextmanager
    def _staging(self) -> Iterator[None]:
        # W&B stages tables in the user's home: the files of an offline run would not all be in its folder
        key, previous = "WANDB_DATA_DIR", os.environ.get("WANDB_DATA_DIR")
        if previous or not self.experiment.offline:
            yield
            return
        os.environ[key] = str(self.folder / "wandb")
        try:
            yield
        finally:
            del os.environ[key]

    @rank_zero_only
    def finish(self, error: BaseException | None) -> None:
        """End the run, where one has begun.

        Args:
            error: What ended it early; a run that was asked to stop by SIGTERM is marked as preempted.
        """
        if self._experiment is None:
            return
        if isinstance(error, Interrupted) and error.signal_number == signal.SIGTERM:
            self.experiment.mark_preempting()
        self.experiment.finish(exit_code=_code_of(error))
        self._experiment = None
        if len(list((self.folder / "wandb").glob("offline-run-*"))) > 1:  # W&B names the last one only
            command = f"wandb sync {shlex.quote(str(self.folder))}/wandb/offline-run-*"
            Console(stderr=True).print(
                f"W&B: all parts of this run are uploaded, in order, by {command}",
                soft_wrap=True,
                markup=False,
                emoji=False,
            )


def _unreachable(error: Exception) -> str:
    return (
        f"logger=wandb cannot use the W&B server ({one_line(error).rstrip('.')}): log in with wandb login, or keep the run on "
        "this machine with logger.offline=true and upload it later with wandb sync."
    )


def _code_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else exit_code(error) or 1


def _build(config: DictConfig) -> Logger:
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError):
            raise
        extra = next((name for name in EXTRAS if name in str(config._target_).lower()), None)
        if extra and cause.name not in (None, extra):  # Lightning's own sentence has no name
            raise UserError(f"logger={extra} is installed but broken: {one_line(cause)}.") from error
        raise UserError(
            f"logger={extra} is not installed: pip install 'triptych[{extra}]'."
            if extra
            else f"logger={config._target_} is not installed: {one_line(cause)}."
        ) from error


def build_loggers(config: DictConfig, run: RunFolder, resume_step: int | None) -> list[Logger]:
    """Build the loggers; the CSV record is always kept.

    Args:
        resume_step: Step of the checkpoint that the run continues from, or None.

    Returns:
        Loggers, the CSV record first.
    """
    with as_user_error():  # the record of a run that continues may be damaged
        loggers: list[Logger] = [MetricsCSV(str(run.path), resume_step)]
        if config.get("logger"):
            loggers.append(_build(config.logger))
    for logger in loggers:
        if isinstance(logger, WandbRun):
            rank_zero_only(logger.check_login)()
        elif isinstance(logger, MLflowRun):
            logger.check_server()
    return loggers


@contextmanager
def logged(loggers: list[Logger], config: dict[str, Any], record: dict[str, Any]) -> Iterator[None]:
    """Hand the config to the loggers, and end their runs however the block ends, with the exit code that the process gets.

    Args:
        config: The resolved config.
    """
    runs = [logger for logger in loggers if isinstance(logger, WandbRun)]
    try:
        for logger in loggers:
            logger.log_hyperparams(config | {"run": record} if logger in runs else config)
        yield
    except BaseException as error:
        for logger in runs:
            logger.finish(error)
        raise
    for logger in runs:
        logger.finish(None)


def log_result(loggers: list[Logger], result: dict[str, Any], step: int) -> None:
    """Hand the final result to the loggers that show more of it than scalars.

    Args:
        result: The content of ``metrics.json``.
        step: Optimiser step.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_result(result, step)
