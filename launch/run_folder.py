"""A run's folder: where its parts lie, how it is found again, and that only one process writes it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from callbacks.checkpoint import FILE_NAME as CHECKPOINT_NAME
from callbacks.checkpoint import PREVIOUS_NAME
from files.whole import whole_file
from generative.weights import DamagedFileError, NotLoadedError, checkpoint_fault, read_checkpoint
from launch.errors import UserError
from launch.received import checked_config, checked_overrides
from launch.record_files import DamagedRecordError, passed_over, read_run_record, read_yaml


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON whole, sync it and move it into place.

    Args:
        path: File to write.
        content: Plain values.
    """
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
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint: ``last.ckpt``, or the one before where a kill left no other."""
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
        """What ``run.json`` says; empty where there is none."""
        return read_run_record(self.record_path) if self.record_path.exists() else {}

    @classmethod
    def existing(cls, path: str | Path, key: str) -> RunFolder:
        """Open the folder of an earlier run.

        Args:
            path: The folder, or a checkpoint inside it.
            key: The command-line key that named it.

        Returns:
            The folder.

        Raises:
            UserError: There is no such folder, no config or checkpoint in it, or the checkpoint is not the newest.
        """
        folder = Path(path).expanduser()
        if folder.suffix == ".ckpt" and folder.is_file():
            if folder.name == PREVIOUS_NAME:
                raise UserError(
                    f"{key}={path} is kept for the case that {CHECKPOINT_NAME} is damaged: name the run folder instead."
                )
            folder = folder.parent.parent
        if not folder.is_dir():
            raise UserError(f"{key}={path}: there is no such run folder.")
        run = cls(folder.resolve())
        if not (run.path / ".hydra" / "config.yaml").exists():
            raise UserError(f"{key}={path} is no run folder: it has no .hydra/config.yaml.")
        if not run.checkpoint.exists():
            raise UserError(
                f"{key}={path} has no checkpoints/{CHECKPOINT_NAME}: the run ended before its first checkpoint; "
                "start it again with python train.py."
            )
        return run

    def config(self) -> DictConfig:
        """Return the run's recorded config, checked and not resolved."""
        path = self.path / ".hydra" / "config.yaml"
        return OmegaConf.create(checked_config(read_yaml(path), path))

    def overrides(self) -> list[str]:
        """Return the overrides that the run was composed from, checked."""
        path = self.path / ".hydra" / "overrides.yaml"
        return checked_overrides(read_yaml(path), path)

    def load_checkpoint(self) -> dict[str, Any]:
        """Load the newest whole checkpoint on the CPU; see ``newest_checkpoint``.

        Returns:
            The checkpoint.
        """
        return self.newest_checkpoint()[1]

    def newest_checkpoint(self, set_aside: bool = False) -> tuple[Path, dict[str, Any]]:
        """Load the newest whole checkpoint on the CPU, tensors and plain containers only.

        A damaged ``last.ckpt`` is passed over with a warning for the one before. A file that is whole but holds something
        else is refused: it is no accident.

        Args:
            set_aside: Whether the run goes on from it, so that a damaged file is renamed to ``last.ckpt.damaged``; the
                next checkpoint would else make it the one before.

        Returns:
            The file that was loaded, and its content.

        Raises:
            UserError: No file is whole, or the newest would run code when loaded or is no checkpoint of a run.
        """
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
                f"{last} is refused: {fault}; no whole {PREVIOUS_NAME} is beside it, so start the run again."
            ) from error
        rank_zero_warn(
            f"{last} is passed over: {fault}; {previous} of step {checkpoint['global_step']} is used instead"
        )
        if set_aside and last.exists() and is_main_process():
            last.replace(last.with_name(f"{CHECKPOINT_NAME}.damaged"))
        return previous, checkpoint

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; the lock goes with the process, however it ends.

        Yields:
            Nothing.

        Raises:
            UserError: Another process holds it.
        """
        if not is_main_process():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"{self.path} is being written by another process: wait for it or choose another folder "
                    "with hydra.run.dir=DIR."
                ) from error
            yield

    def is_locked(self) -> bool:
        """Say whether a live process writes the folder."""
        try:
            with self.locked():
                return False
        except UserError:
            return True


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = read_checkpoint(path)
    except DamagedFileError:
        raise
    except NotLoadedError as error:
        raise UserError(f"{path} is refused: {error}; use a checkpoint that train.py wrote.") from error
    if fault := checkpoint_fault(checkpoint):
        raise UserError(f"{path} is refused: {fault}; use a checkpoint that train.py wrote.")
    return checkpoint


def identity(overrides: list[str]) -> list[str]:
    """Return the overrides that make a run what it is, in a fixed order.

    Args:
        overrides: Task overrides.

    Returns:
        The overrides without ``resume``, ``data_changed`` and ``hydra.*``.
    """
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
    for record_path in root.glob("*/run.json"):
        run = RunFolder(record_path.parent)
        if (record := readable_record(run)) is None:
            continue
        if record.get("finished") or not run.checkpoint.exists() or record.get("overrides") != identity(overrides):
            continue
        if not run.is_locked():
            found.append((str(record.get("started", "")), run))
    return max(found, key=lambda item: item[0])[1] if found else None


def readable_record(run: RunFolder) -> dict[str, Any] | None:
    """Read ``run.json`` in a search over runs, which goes on where that of one is damaged.

    Args:
        run: The run.

    Returns:
        Its record, or None where it is damaged, which is said.
    """
    try:
        return run.record
    except DamagedRecordError as error:
        passed_over(str(run.path), error)
        return None


def trained_classifier(value: str | None, outputs: str, data_name: str, image_size: int) -> str | None:
    """Find the checkpoint that the config key ``classifier`` means.

    Args:
        value: ``auto``, a run folder, a checkpoint file, or None.
        outputs: Folder of all runs, searched for ``auto``.
        data_name: Name of the data set that the classifier must know.
        image_size: Side of its images in pixels.

    Returns:
        The checkpoint of the newest finished label classifier of the data for ``auto``, None where there is none.
    """
    return _trained("classifier", value, Path(outputs), (data_name, image_size), _is_classifier)


def trained_tokenizer(value: str | None, outputs: str, data_name: str, image_size: int) -> str | None:
    """Find the checkpoint that the config key ``tokenizer`` means.

    Args:
        value: ``auto``, a run folder, a checkpoint file, or None.
        outputs: Folder of all runs, searched for ``auto``.
        data_name: Name of the data set that the tokenizer must know.
        image_size: Side of its images in pixels.

    Returns:
        The checkpoint of the newest finished tokenizer of the data for ``auto``, None where there is none.
    """
    return _trained("tokenizer", value, Path(outputs), (data_name, image_size), _is_tokenizer)


def _trained(
    key: str, value: str | None, outputs: Path, data: tuple[str, int], fits: Callable[[DictConfig], bool]
) -> str | None:
    if value is None:
        return None
    if value != "auto":
        return str(Path(value).resolve()) if Path(value).is_file() else str(RunFolder.existing(value, key).checkpoint)
    found = []
    for record_path in outputs.rglob("run.json"):
        run = RunFolder(record_path.parent)
        record = readable_record(run) or {}
        trained_on = record.get("data") or {}
        same_data = (trained_on.get("name"), trained_on.get("image_size")) == data
        if record.get("finished") and same_data and run.checkpoint.exists():
            try:
                if fits(run.config()):
                    found.append((str(record.get("ended", "")), str(run.checkpoint.resolve())))
            except UserError as error:  # this run only is damaged, or is not to be trusted
                passed_over(str(run.path), error)
    return max(found)[1] if found else None


def _is_classifier(config: DictConfig) -> bool:
    return OmegaConf.select(config, "module._target_") == "lightning_modules.LabelClassifierModule"


def _is_tokenizer(config: DictConfig) -> bool:
    target, bottleneck = (OmegaConf.select(config, f"{key}._target_") for key in ("module", "bottleneck"))
    return target == "lightning_modules.VQGAN" and bottleneck != "generative.networks.GaussianBottleneck"
