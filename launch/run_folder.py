"""A run's folder: where its parts lie, how it is found again, and that only one process writes it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from callbacks.checkpoint import FILE_NAME as CHECKPOINT_NAME
from callbacks.checkpoint import PREVIOUS_NAME, RUN_KEY
from callbacks.kept_checkpoints import KEPT
from files.held import LOCK_NAME, InUseError, held, is_held
from files.whole import whole_file
from generative.weights import DamagedFileError, NotLoadedError, checkpoint_fault, first_not_finite, read_checkpoint
from launch.errors import UserError
from launch.paths import typed_path
from launch.received import checked_config, checked_overrides
from launch.record_files import DamagedRecordError, checked_run_record, passed_over, read_run_record, read_yaml

# What a run may write before its first step, beside what lies in its folder already.
WRITTEN = {
    *(".hydra", "checkpoints", "images", "metrics.csv", LOCK_NAME),
    *("tensorboard", "wandb", "wandb.json", "mlruns", "mlflow.json"),
}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain values as JSON, whole, and sync it."""
    with whole_file(path, "w", sync=True) as file:
        file.write(json.dumps(content, indent=2, sort_keys=False) + "\n")


def is_main_process() -> bool:
    """Say whether this process is rank 0: Lightning, or SLURM, starts the others with their rank in the environment."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run.

    Attributes:
        path: The folder.
        chosen: A checkpoint of it that was kept, the best one or a milestone, to be used rather than the newest.
    """

    path: Path
    chosen: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint: ``last.ckpt``, or the one before where a kill left no other; or the chosen one."""
        if self.chosen:
            return self.chosen
        last, previous = self._checkpoints
        return previous if previous.exists() and not last.exists() else last

    @property
    def _checkpoints(self) -> tuple[Path, Path]:
        folder = self.path / "checkpoints"
        return folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME

    @property
    def record_path(self) -> Path:
        """``run.json``."""
        return self.path / "run.json"

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` says; where there is none, what the checkpoint says of its run; else empty."""
        if self.record_path.exists():
            return read_run_record(self.record_path)
        record = self._in_checkpoint("record") if self.checkpoint.exists() else None
        return checked_run_record(self.checkpoint, record) if isinstance(record, dict) else {}

    @property
    def config_path(self) -> Path:
        """The config in force."""
        return self.path / ".hydra" / "config.yaml"

    @property
    def overrides_path(self) -> Path:
        """What the config in force was composed from."""
        return self.path / ".hydra" / "overrides.yaml"

    def _in_checkpoint(self, key: str) -> Any:
        """Return what the checkpoint says of its run: ``config``, ``overrides`` or ``record``; None for one that does not."""
        own = self.load_checkpoint().get(RUN_KEY)
        return own.get(key) if isinstance(own, dict) else None

    @classmethod
    def existing(cls, path: str | Path, key: str) -> RunFolder:
        """Open the folder of an earlier run.

        Args:
            path: The folder, or a checkpoint inside it.
            key: The command-line key that named it.

        Returns:
            The run; of a checkpoint that was kept, the run as it was then.

        Raises:
            UserError: There is no such folder, no config or checkpoint in it, or the checkpoint is not the newest.
        """
        folder = typed_path(key, path)
        chosen = folder.resolve() if KEPT.fullmatch(folder.name) and folder.is_file() else None
        if folder.suffix == ".ckpt" and folder.is_file():
            if folder.name == PREVIOUS_NAME:
                raise UserError(
                    f"{key}={path} is kept for the case that {CHECKPOINT_NAME} is damaged: name the run folder instead."
                )
            folder = folder.parent.parent
        if not folder.is_dir():
            raise UserError(f"{key}={path}: there is no such run folder.")
        run = cls(folder.resolve(), chosen)
        if not run.checkpoint.exists():
            if not run.config_path.exists():
                raise UserError(
                    f"{key}={path} is no run folder: it has neither .hydra/config.yaml nor checkpoints/{CHECKPOINT_NAME}."
                )
            raise UserError(
                f"{key}={path} has no checkpoints/{CHECKPOINT_NAME}: the run ended before its first checkpoint; "
                "start it again with python train.py."
            )
        if not run.config_path.exists() and run._in_checkpoint("config") is None:
            raise UserError(
                f"{key}={path} has no .hydra/config.yaml, and its checkpoint is of an older version, which does not hold the "
                "config: put the file back."
            )
        return run

    def config(self) -> DictConfig:
        """Return the config in force, checked and not resolved; that of the checkpoint where the file is missing."""
        if self.config_path.exists():
            return OmegaConf.create(checked_config(read_yaml(self.config_path), self.config_path))
        return OmegaConf.create(checked_config(self._in_checkpoint("config"), self.checkpoint))

    def kind_of_weights(self, asked: str | None = None) -> str:
        """Return what was asked for, or else the run's own kind: ``ema`` where it averages its weights, ``raw`` where not."""
        return asked or ("ema" if OmegaConf.select(self.config(), "callbacks.ema") else "raw")

    def overrides(self) -> list[str]:
        """Return the overrides that the config in force was composed from, checked."""
        if self.overrides_path.exists():
            return checked_overrides(read_yaml(self.overrides_path), self.overrides_path)
        recorded = self._in_checkpoint("overrides")
        if recorded is None:
            raise UserError(f"{self.overrides_path} is missing, and {self.checkpoint} does not hold it: put it back.")
        return checked_overrides(recorded, self.checkpoint)

    def write_config(self, config: DictConfig, overrides: list[str]) -> None:
        """Write the config in force, and then what it was composed from.

        In this order: where a kill parts the two, the command that was killed finds its overrides still new.

        Args:
            config: The config, interpolations not resolved.
        """
        with whole_file(self.config_path, "w", sync=True) as file:
            file.write(OmegaConf.to_yaml(config))
        with whole_file(self.overrides_path, "w", sync=True) as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(overrides)))

    def load_checkpoint(self) -> dict[str, Any]:
        """Load the newest whole checkpoint on the CPU; see ``newest_checkpoint``."""
        return self.newest_checkpoint()[1]

    def newest_checkpoint(self) -> tuple[Path, dict[str, Any]]:
        """Load the newest whole checkpoint on the CPU, tensors and plain containers only.

        A ``last.ckpt`` that is damaged, or whose weights are not finite, is passed over with a warning for the one before. A
        file that is whole but holds something else is refused: it is no accident.

        Returns:
            The file that was loaded, and its content.

        Raises:
            UserError: No file is whole, or the newest would run code when loaded or is no checkpoint of a run.
        """
        if self.chosen:
            return self.checkpoint_of(self.chosen, "checkpoint")
        last, previous = self._checkpoints
        fault = "it is missing"
        if last.exists():
            try:
                return last, _read(last)
            except DamagedFileError as error:
                fault = str(error)
        try:
            checkpoint = _read(previous)
        except (DamagedFileError, FileNotFoundError) as error:
            raise UserError(
                f"{last} is refused: {fault}; no whole {PREVIOUS_NAME} is next to it, so start the run again."
            ) from error
        rank_zero_warn(
            f"{last} is passed over: {fault}; {previous} of step {checkpoint['global_step']} is used instead"
        )
        return previous, checkpoint

    @staticmethod
    def checkpoint_of(path: str | Path, key: str) -> tuple[Path, dict[str, Any]]:
        """Load the newest whole checkpoint of a run, or the very file that is named.

        Args:
            path: A run's folder, or a checkpoint anywhere.
            key: The command-line key that named it.

        Returns:
            The file, and its content.

        Raises:
            UserError: It is missing, damaged, or would run code when loaded.
        """
        file = typed_path(key, path)
        if not file.is_file():
            return RunFolder.existing(path, key).newest_checkpoint()
        try:
            return file, _read(file)
        except DamagedFileError as error:
            raise UserError(f"{key}={path} is refused: {error}; use a checkpoint that train.py wrote.") from error

    def set_aside(self, used: Path) -> None:
        """Keep a damaged ``last.ckpt`` from becoming the one before at the next save: rename it to ``last.ckpt.damaged``.

        Args:
            used: The checkpoint that the run continues from.
        """
        last, previous = self._checkpoints
        if used == previous and last.exists():
            last.replace(last.with_name(f"{CHECKPOINT_NAME}.damaged"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; the lock goes with the process, however it ends.

        Raises:
            UserError: Another process holds it, or it cannot be written.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.path, alone=is_main_process()))
            except InUseError as error:
                raise UserError(
                    f"{self.path} is being written by another process: wait for it or choose another folder "
                    "with hydra.run.dir=DIR."
                ) from error
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be written ({error.strerror}): choose a folder that is yours with hydra.run.dir=DIR, "
                    "or continue with a copy of the run."
                ) from error
            yield

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Hold the folder for a new run, and leave it as it was found where the run ends before its first step.

        What was there before stays, and what others write there meanwhile; a folder that was made for the run goes.
        """
        found = set(self.path.iterdir()) if self.path.exists() else None
        with taken_away_if_empty(self.path), self.locked():
            try:
                yield
            except BaseException:
                if is_main_process() and not (self.record_path.exists() or self.checkpoint.exists()):
                    for path in set(self.path.iterdir()) - (found or set()):
                        if found is not None and path.name not in WRITTEN:
                            continue
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                raise

    def is_locked(self) -> bool:
        """Say whether a live process writes the folder."""
        return is_held(self.path)


@contextmanager
def taken_away_if_empty(folder: Path) -> Iterator[None]:
    """Remove a folder, and those above it, that were made for what ends with an error and has left nothing in them."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something lies there
            for path in made:
                path.rmdir()
        raise


def _read(path: Path) -> dict[str, Any]:
    """Load a checkpoint; one that is damaged is for the caller to tell."""
    try:
        checkpoint = read_checkpoint(path)
    except DamagedFileError:
        raise
    except NotLoadedError as error:
        raise UserError(f"{path} is refused: {error}; use a checkpoint that train.py wrote.") from error
    if fault := checkpoint_fault(checkpoint):
        raise UserError(f"{path} is refused: {fault}; use a checkpoint that train.py wrote.")
    if name := first_not_finite(checkpoint):
        raise DamagedFileError(f"its weight {name} is not finite")
    return checkpoint


def identity(overrides: list[str]) -> list[str]:
    """Return the overrides that make a run what it is, in a fixed order: without ``resume``, ``data_changed``, ``hydra.*``."""
    others = ("resume=", "data_changed=", "hydra.", "hydra/")
    return sorted(o for o in overrides if not o.lstrip("+~").startswith(others))


def newest_unfinished(root: Path, overrides: list[str]) -> RunFolder | None:
    """Find the run that ``resume=auto`` means.

    Args:
        root: Folder that holds the runs of one experiment.
        overrides: Overrides of the new command.

    Returns:
        The newest unfinished run of the same overrides that has a checkpoint and no live process, or None.
    """
    found = []
    for run in (RunFolder(path.parent) for path in root.glob("*/run.json")):
        record = readable_record(run)
        if record is None or record.get("finished") or record.get("overrides") != identity(overrides):
            continue
        if run.checkpoint.exists() and not run.is_locked():
            saved = run.checkpoint.stat().st_mtime_ns  # where two started within a second, as records count
            found.append((str(record.get("started", "")), saved, run))
    return max(found, key=lambda item: item[:2])[-1] if found else None


def readable_record(run: RunFolder) -> dict[str, Any] | None:
    """Read ``run.json`` in a search over runs, which continues where that of one is damaged.

    Returns:
        Its record, or None where it is damaged, which is said.
    """
    try:
        return run.record
    except DamagedRecordError as error:
        passed_over(str(run.path), error)
        return None
