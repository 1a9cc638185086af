"""What follows a metric of the validation; the first of its kind ends a training that has stopped improving."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer

from callbacks.measuring import SetupError
from generative.checks import checked, near_matches
from generative.metrics.catalogue import Better, metric_of, split_name
from generative.ranges import Count, NonNegative


class MetricWatcher(Callback, ABC):
    """Judges the value of one metric at each validation, once a step; a kind of watcher adds ``judge`` and its state.

    A training with one that has a ``metric`` makes a validation of some images before its first step
    (``trainer.num_sanity_val_steps``), so that a metric that is not measured is told at once. Own code rather than Lightning's
    ``EarlyStopping`` and ``ModelCheckpoint``: a run that continues from a checkpoint makes the validation of its step again,
    which they would count twice.

    Args:
        metric: Logged scalar of the validation, such as ``val/psnr/mean``; None: nothing is watched.
        better: Which side is; None: as the metric itself says.

    Attributes:
        config_key: Key of the callback in the config, for messages.
        sign: 1 where higher is better, -1 where lower is.
        judged_step: Step of the last validation that was judged.

    Raises:
        ValueError: Nobody says which side is the better one.
    """

    config_key: ClassVar[str]

    def __init__(self, metric: str | None, better: Better | None) -> None:
        self.metric = metric
        self.judged_step = -1
        self.sign = {"higher": 1, "lower": -1, None: 0}[better]
        if metric is not None and not self.sign:
            self.sign = metric_of(split_name(metric.removeprefix("val/"))[0]).sign
            if not self.sign:
                raise ValueError(
                    f"callbacks.{self.config_key}.metric={metric}: neither side of it is known to be the better one: say which "
                    f"with callbacks.{self.config_key}.better=higher or lower."
                )

    @abstractmethod
    def judge(self, trainer: Trainer, step: int, value: float) -> None:
        """Take in a finite value, the same on all ranks."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._value(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self.metric is None or trainer.sanity_checking or trainer.state.fn != "fit" or step <= self.judged_step:
            return
        self.judged_step = step
        if math.isfinite(value := self._value(trainer)):
            self.judge(trainer, step, value)

    def _value(self, trainer: Trainer) -> float:
        measured = trainer.callback_metrics
        if self.metric is None:
            return math.nan
        if self.metric not in measured:
            raise SetupError(
                f"callbacks.{self.config_key}.metric={self.metric} is not measured in this run's validation: "
                f"{near_matches(self.metric, [name for name in measured if name.startswith('val/')])}"
            )
        return float(measured[self.metric])

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "judged_step": self.judged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["metric"] == self.metric:  # what was seen of another one says nothing of this one
            self.judged_step = state_dict["judged_step"]
            self.restore(state_dict)

    @abstractmethod
    def restore(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint that watched the same metric."""


@checked("callbacks.early_stop")
class EarlyStop(MetricWatcher):
    """Ends the training where a metric of the validation has not improved for a while.

    Args:
        metric: Logged scalar of the validation; None: the training goes to its end.
        patience: Validations without an improvement after which it ends.
        min_delta: By how much a value must be better than the best one to be an improvement.
        better: ``higher`` or ``lower``; None: as the metric itself says.

    Attributes:
        best: The best value so far, at ``best_step``.
        num_without: Validations since then.
        reason: Why it has ended the training; empty where it has not.
    """

    config_key = "early_stop"

    def __init__(
        self,
        metric: str | None = None,
        patience: Count = 5,
        min_delta: NonNegative = 0.0,
        better: Better | None = None,
    ) -> None:
        super().__init__(metric, better)
        self.patience, self.min_delta = patience, min_delta
        self.best, self.best_step, self.num_without = -math.inf * (self.sign or 1), -1, 0
        self.reason = ""

    def judge(self, trainer: Trainer, step: int, value: float) -> None:
        if self.sign * (value - self.best) > self.min_delta:
            self.best, self.best_step, self.num_without = value, step, 0
            return
        self.num_without += 1
        stops = trainer.strategy.reduce_boolean_decision(self.num_without >= self.patience, all=False)
        if stops:
            trainer.should_stop = True
            self.reason = (
                f"early stop: {self.metric} has not been better than {self.best:.5g} of step {self.best_step:,} for "
                f"{self.num_without} validations"
            )

    def state_dict(self) -> dict[str, Any]:
        own = {"best": self.best, "best_step": self.best_step, "num_without": self.num_without}
        return super().state_dict() | own

    def restore(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.num_without = state_dict["num_without"]
