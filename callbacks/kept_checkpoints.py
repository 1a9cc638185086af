"""Checkpoints that are kept beside the last one: the best by a metric of the validation, and milestones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from callbacks.checkpoint import LastCheckpoint
from callbacks.measuring import SetupError
from callbacks.watching import MetricWatcher
from files.whole import second_name, whole_file
from generative.checks import checked
from generative.metrics.catalogue import Better
from generative.ranges import Count

BEST, LIST = "best.ckpt", "best.json"
KEPT = re.compile(r"(best|step)_\d{8,}\.ckpt|best\.ckpt")  # files that a run folder has beside last and previous


@checked("callbacks.kept_checkpoints")
class KeptCheckpoints(MetricWatcher):
    """Keeps ``checkpoints/best_STEP.ckpt``, ``best.ckpt``, which is the first of them, and milestones ``step_STEP.ckpt``.

    Each is the ``last.ckpt`` of its moment under a second name, so that it costs no second write, and is as whole.
    ``best.json`` lists the best with their values. A run that continues has the list of its checkpoint.

    Args:
        metric: Logged scalar of the validation, whose best checkpoints are kept; None: none is.
        num_best: How many.
        better: ``higher`` or ``lower``; None: as the metric itself says.
        every_n_steps: Optimiser steps between milestones; None: there are none.

    Attributes:
        best: (step, value) of the best validations, the best first; of equal ones the earlier.
    """

    config_key = "kept_checkpoints"

    def __init__(
        self,
        metric: str | None = None,
        num_best: Count = 1,
        better: Better | None = None,
        every_n_steps: Count | None = None,
    ) -> None:
        super().__init__(metric, better)
        self.num_best, self.every_n_steps = num_best, every_n_steps
        self.best: list[tuple[int, float]] = []
        self._last_seen = -1

    def judge(self, trainer: Trainer, step: int, value: float) -> None:
        ranked = sorted([*self.best, (step, value)], key=lambda entry: (-self.sign * entry[1], entry[0]))
        self.best = ranked[: self.num_best]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (self.metric or self.every_n_steps) and not any(isinstance(c, LastCheckpoint) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise SetupError(
                "callbacks.kept_checkpoints keeps checkpoints that callbacks.checkpoint writes: put it back."
            )
        path = LastCheckpoint.path(trainer).with_name(LIST)
        if self.metric and (listed := _metric_of(path)) not in (None, self.metric):
            raise SetupError(
                f"callbacks.kept_checkpoints.metric={self.metric} would take the place of the best by {listed}, which {path} "
                f"lists: move that file and {path.with_name('best*.ckpt')} elsewhere, or keep {listed}."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what is due between two optimiser steps, as the last checkpoint is written."""
        if trainer.global_step != self._last_seen:
            self._last_seen = trainer.global_step
            self._keep(trainer, between_steps=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer, between_steps=False)

    def _keep(self, trainer: Trainer, between_steps: bool) -> None:
        step = trainer.global_step
        names = [_name("best", step)] if step in dict(self.best) else []
        if self.every_n_steps and step and step % self.every_n_steps == 0:
            names.append(_name("step", step))
        if not names:
            return
        last: LastCheckpoint = next(c for c in trainer.callbacks if isinstance(c, LastCheckpoint))  # type: ignore[attr-defined]
        last.save(trainer, between_steps)
        if trainer.is_global_zero:
            path = last.path(trainer)
            for name in names:
                second_name(path, path.with_name(name))
            if self.best:
                self._list(path.parent)

    def _list(self, folder: Path) -> None:
        """Write the list, point ``best.ckpt`` to its first, and remove what is no more among the best."""
        entries = [{"step": step, "value": value, "file": _name("best", step)} for step, value in self.best]
        present = [entry for entry in entries if (folder / str(entry["file"])).exists()]
        if present:
            second_name(folder / str(present[0]["file"]), folder / BEST)
        for path in folder.glob("best_*.ckpt"):
            if path.name not in {entry["file"] for entry in entries}:
                path.unlink()
        with whole_file(folder / LIST, "w") as file:
            file.write(json.dumps({"metric": self.metric, "best": present}, indent=2) + "\n")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best": [list(entry) for entry in self.best]}

    def restore(self, state_dict: dict[str, Any]) -> None:
        self.best = [(int(step), float(value)) for step, value in state_dict["best"]][: self.num_best]


def _metric_of(path: Path) -> str | None:
    """Return the metric of a list of the best; None where there is no whole list."""
    try:
        return str(json.loads(path.read_text())["metric"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name(kind: str, step: int) -> str:
    return f"{kind}_{step:08d}.ckpt"
