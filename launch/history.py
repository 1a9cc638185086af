"""The one history of a run: with which settings, on what, and with which code its steps were made, and how it ended.

``run.json`` lists an entry for each start of training; ``.hydra/`` holds the config in force, which is that of the last entry.
An entry is written at the first step, so that a resume that is refused leaves no trace.
"""

from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from torch import nn

from callbacks.checkpoint import Interrupted, LastCheckpoint, asked_stop
from callbacks.watching import EarlyStop
from files.held import FolderGoneError
from files.whole import WriteError
from launch.build import plain_config
from launch.errors import UserError, one_line
from launch.former import renewed
from launch.output import as_typed
from launch.record import history_of, now
from launch.run_folder import RunFolder, identity, is_main_process, write_json
from launch.trained_parts import TRAINED
from lightning_modules import TrainingModule

# Where a run lies, what it reports to, how it was begun, and parts that are known by their content.
NOT_SETTINGS = {"hydra", "paths", "logger", "resume", "data_changed", "sweep", "name", *TRAINED, "classifier"}
# What trained weights mean: another value makes another network of them.
FIXED = re.compile(
    r"(network|bottleneck|schedule|init)(\.(?!dropout$)|$)|module\.(_target_|task|labels|output|source|source_std|sees_degraded|sees_regression)$"
)
CONDITIONS = ("git_revision", "versions", "hardware")  # entries of the record on which the bits of a run depend
ENDINGS = {
    "max_time": None,
    "max_epochs": None,
    "limit_train_batches": 1.0,
}  # trainer's keys, and where they end nothing
SHOWN = 8  # changes in the line that a resume prints; run.json has all
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_ABSENT = object()

Changes = dict[str, dict[str, Any]]


def changes_of(before: dict[str, Any], config: DictConfig) -> Changes:
    """Compare settings with those that a checkpoint was trained with.

    Args:
        before: The checkpoint's resolved config.

    Returns:
        ``{"from": ..., "to": ...}`` by dotted key, without the keys that follow another one; None stands for a key that is
        not there.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    old, new = flat(before), flat(plain_config(config))
    found = {}
    for key in {**old, **new}:
        if key.partition(".")[0] in NOT_SETTINGS or _follows(raw, key, old):
            continue
        if old.get(key) != new.get(key):
            found[key] = {"from": old.get(key), "to": new.get(key)}
    return found


def flat(node: Any, key: str = "") -> dict[str, Any]:
    """Write nested containers out as one value for each dotted key."""
    if isinstance(node, dict) and node:
        return {
            k: v for name, value in node.items() for k, v in flat(value, f"{key}.{name}" if key else str(name)).items()
        }
    return {key: list(node) if isinstance(node, tuple) else node}


def _follows(raw: Any, key: str, old: dict[str, Any]) -> bool:
    """Say whether a key's value is taken from another key, and was before."""
    parts = key.split(".")
    for number, part in enumerate(parts):
        raw = raw.get(part) if isinstance(raw, dict) else None
        if isinstance(raw, str) and "${" in raw:
            reference = _REFERENCE.fullmatch(raw)
            source = ".".join([reference.group(1), *parts[number + 1 :]]) if reference else None
            return source is None or old.get(source, _ABSENT) == old.get(key, _ABSENT)
    return False


def check_changes(run: RunFolder, changes: Changes) -> None:
    """Check that a run can continue with changed settings.

    Args:
        changes: What was changed.

    Raises:
        UserError: A setting makes another network or needs another optimiser state.
    """
    for key, change in changes.items():
        if FIXED.match(key) or key == "optimizer._target_":
            what = "its optimiser's state" if key.startswith("optimizer") else "its trained weights"
            raise UserError(
                f"{key}={_short(change['to'])} cannot be changed at resume={run.path}: {what} were made with "
                f"{_short(change['from'])}; leave it out, or start a new run."
            )


def check_steps_left(run: RunFolder, step: int, max_steps: int) -> None:
    """Check that a run to resume is not beyond its end.

    Args:
        step: Where it stands.
        max_steps: Where it is to end, at or below that.

    Raises:
        UserError: It has finished, or was to end earlier.
    """
    if max_steps < step:
        raise UserError(
            f"trainer.max_steps={max_steps} lies before step {step}, which resume={run.path} has reached: set a larger one."
        )
    if run.record.get("finished"):
        raise UserError(f"resume={run.path} has finished at step {step}: set a larger trainer.max_steps to continue.")


def check_early_stop(run: RunFolder, changes: Changes) -> None:
    """Check that a run which early stopping has ended is to go on under other conditions.

    Raises:
        UserError: It would end again at its next validation.
    """
    record = run.record
    if record.get("finished") and record.get("early_stop") and not any("early_stop" in key for key in changes):
        raise UserError(
            f"resume={run.path} has finished at step {record.get('step')} ({record['early_stop']}): to go on, set a larger "
            "callbacks.early_stop.patience, or callbacks.early_stop=null."
        )


def check_optimizer_state(module: TrainingModule, run: RunFolder, checkpoint: dict[str, Any]) -> None:
    """Check that the composed optimiser can continue with the state of a checkpoint.

    Raises:
        UserError: It keeps other values for each weight.
    """
    weights = [nn.Parameter(torch.zeros(1, 1)) for _ in range(2)]  # a hidden matrix and another weight
    optimizer = module.optimizer_factory([{"params": weights, "matrices": [1, 0]}])
    for weight in weights:
        weight.grad = torch.zeros(1, 1)
    optimizer.step()
    kinds = [set(optimizer.state[weight]) for weight in weights]
    for state in (each for saved in checkpoint["optimizer_states"] for each in saved["state"].values()):
        own = min(kinds, key=lambda kind: len(kind ^ set(state)))
        if own != set(state):
            differing = ", ".join(sorted(own ^ set(state)))
            raise UserError(
                f"the optimiser of the composed config cannot continue with the state in resume={run.path}, from which it "
                f"differs in {differing}: leave out the changed optimizer= settings, or start a new run."
            )


def unfinished_reason(config: DictConfig, trainer: Trainer) -> str | None:
    """Say why a training that ended in peace is not the whole one.

    Args:
        trainer: The trainer, behind its fit.

    Returns:
        The reason; None where ``trainer.max_steps`` were made.
    """
    settings = config.trainer
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return f"trainer.fast_dev_run={settings.fast_dev_run} makes trial steps only"
    if settings.max_steps < 1:
        return f"trainer.max_steps={settings.max_steps} asks for no steps"
    if trainer.global_step >= settings.max_steps:
        return None
    causes = [
        f"trainer.{key}={settings.get(key)}" for key, idle in ENDINGS.items() if settings.get(key) not in (None, idle)
    ]
    return " or ".join(causes) or "a callback ended it"


def early_stop(trainer: Trainer) -> str:
    """Say why a callback ended a training that has nothing more to learn; empty where none did."""
    return next((c.reason for c in trainer.callbacks if isinstance(c, EarlyStop) and c.reason), "")  # type: ignore[attr-defined]


class History(Callback):
    """Keeps the history of a run; the last of the callbacks, since it begins when all others have let the training begin.

    Args:
        run: The run folder, held for writing.
        config: The config that all is built from.
        in_force: The same as it is recorded: its interpolations not resolved, nothing filled in.
        overrides: What it was composed from.
        checkpoint: File and content of what the run continues from; None for a new run.

    Attributes:
        record: The content of ``run.json``; ``train.py`` fills it.
        has_begun: Whether the entry is written.
    """

    def __init__(
        self,
        run: RunFolder,
        config: DictConfig,
        in_force: DictConfig,
        overrides: list[str],
        checkpoint: tuple[Path, dict[str, Any]] | None,
    ) -> None:
        self.run = run
        self.config = config
        self.in_force = in_force.copy()  # building a module resolves parts of its config in place
        self.overrides = overrides
        self.resumed = checkpoint
        self.step, self.changes = 0, Changes()
        self.before = run.record if checkpoint else {}
        self.record: dict[str, Any] = {}
        self.has_begun = False
        if checkpoint:
            self.step = int(checkpoint[1]["global_step"])
            self.changes = changes_of(renewed(checkpoint[1].get("config", {})), config)
            check_changes(run, self.changes)
            check_early_stop(run, self.changes)

    def settle(self, key: str, value: Any) -> None:
        """Record what a setting stands for that was left open, as by ``auto``: before the run begins."""
        OmegaConf.update(self.in_force, key, value)
        if (change := self.changes.pop(key, None)) and change["from"] != value:
            self.changes[key] = {**change, "to": value}

    def entries(self) -> list[dict[str, Any]]:
        """Return the history with the entry of this start, once the record is filled."""
        earlier = history_of(self.before)
        if not earlier and self.before:  # begun by an older version
            earlier = [
                {"step": 0, "time": self.before.get("started"), **_kept(self.before, ("overrides", *CONDITIONS))}
            ]
        entry = {"step": self.step, "time": now(), "overrides": identity(self.overrides), "changes": self.changes}
        return [*earlier, entry | _kept(self.record, CONDITIONS)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the entry."""
        self.begin(trainer)

    def begin(self, trainer: Trainer) -> None:
        """Write the entry, tell what has changed, and put the history into the checkpoints to come; once."""
        if self.has_begun:
            return
        self.has_begun = True
        config = OmegaConf.masked_copy(self.in_force, [str(key) for key in self.in_force if key != "hydra"])
        config.resume = None
        own = {
            "config": OmegaConf.to_container(config, resolve=False),
            "overrides": self.overrides,
            "record": self.record,
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LastCheckpoint):
                callback.run, callback.run_config = json.loads(json.dumps(own)), plain_config(self.config)
        if not is_main_process():
            return
        if self.resumed:
            self._tell(trainer, self.resumed[1])
            self.run.set_aside(self.resumed[0])
        self.run.write_config(config, self.overrides)
        write_json(self.run.record_path, self.record)

    def _tell(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        line = f"resumed {self.run.path} at step {self.step} of {self.config.trainer.max_steps}"
        changes = sorted(self.changes.items(), key=lambda item: item[0] != "trainer.max_steps")
        told = [f"{key} {_short(change['from'])} -> {_short(change['to'])}" for key, change in changes]
        told = told[:SHOWN] + ([f"{len(told) - SHOWN} more changes in run.json"] if len(told) > SHOWN else [])
        before, after = _rate(checkpoint["optimizer_states"][0]), _rate(trainer.optimizers[0].state_dict())
        if before != after:
            told.append(f"learning rate {before:.3g} -> {after:.3g}")
        print("; ".join([line, *told]), flush=True)  # noqa: T201
        entries = self.record["history"]
        differing = [
            f"{key} {_short(old)} -> {_short(new)}"
            for key, old, new in _differing(*(flat(_kept(entry, CONDITIONS)) for entry in entries[-2:]))
        ]
        if differing:
            rank_zero_warn(
                "from here on the run is not bit for bit what it would have been without the stop, for it continues under "
                f"other conditions: {'; '.join(differing)}"
            )

    def end(self, trainer: Trainer) -> None:
        """Write that the run has ended in peace: finished, or stopped for a reason.

        Args:
            trainer: The trainer, behind fit and test.
        """
        if early := early_stop(trainer):
            self.record["early_stop"] = early
            print(f"finished at step {trainer.global_step} of {self.config.trainer.max_steps}: {early}", flush=True)  # noqa: T201
        reason = None if early else unfinished_reason(self.config, trainer)
        self._write_end(trainer.global_step, reason)
        if reason is not None:
            command = as_typed("python train.py")
            print(  # noqa: T201
                f"stopped at step {trainer.global_step} of {self.config.trainer.max_steps}: {reason}; "
                f"{command} {shlex.quote(f'resume={self.run.path}')} continues",
                flush=True,
            )

    def interrupted(self, trainer: Trainer, error: BaseException) -> None:
        """Write why the run was stopped, where it had begun.

        Args:
            error: What ended it.
        """
        if not (self.has_begun and is_main_process()):
            return
        error = asked_stop(error) or error
        known = isinstance(error, Interrupted | KeyboardInterrupt)
        reason = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
        with suppress(WriteError, FolderGoneError, OSError):  # the error itself is what the user is to see
            self._write_end(trainer.global_step, reason)

    def _write_end(self, step: int, reason: str | None) -> None:
        stopped = None if reason is None else {"step": step, "reason": reason}
        self.record |= {"finished": reason is None, "stopped": stopped, "ended": now(), "step": step}
        write_json(self.run.record_path, self.record)


def _kept(record: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: record[key] for key in keys if key in record}


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def _rate(state: dict[str, Any]) -> float:
    return float(state["param_groups"][0]["lr"])


def _short(value: Any) -> str:
    return "null" if value is None else str(value)
