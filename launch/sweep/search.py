"""Optuna searches that continue where they were interrupted; Hydra's sweeper runs them."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from generative.metrics.catalogue import metric_of, split_name
from launch.errors import UserError


def check_direction(sweeper: DictConfig, metric: str | None) -> None:
    """Check that a search goes to the better side of its metric.

    Args:
        sweeper: The config of the sweeper, of whatever kind.
        metric: Name of a logged scalar, such as ``val/psnr/sample``, or None.

    Raises:
        UserError: It would look for the worst value.
    """
    direction = sweeper.get("direction")
    direction = getattr(direction, "name", direction)
    key, _ = split_name(str(metric).partition("/")[2])
    wanted = {1: "maximize", -1: "minimize", 0: None}[metric_of(key).sign]
    if metric and wanted and direction in {"maximize", "minimize"} - {wanted}:
        raise UserError(
            f"hydra.sweeper.direction={direction} looks for the worst optimized_metric={metric}: add "
            f"hydra.sweeper.direction={wanted}."
        )


def continued(sweeper: DictConfig, sweep: Path) -> list[str]:
    """Prepare a search for its start: trials that an earlier start left behind come first, finished ones count.

    Args:
        sweeper: The config of the sweeper, of whatever kind.
        sweep: Folder of the sweep, held for writing.

    Returns:
        Further overrides for Hydra: how many trials are left.

    Raises:
        UserError: None is left.
    """
    if "optuna" not in sweeper._target_ or not sweeper.storage:
        return []
    import optuna  # only searches need it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.mkdir(parents=True, exist_ok=True)
    direction = str(getattr(sweeper.direction, "name", sweeper.direction))
    study = optuna.create_study(
        study_name=sweeper.study_name, storage=sweeper.storage, direction=direction, load_if_exists=True
    )
    states = optuna.trial.TrialState
    waiting = [trial.system_attrs.get("fixed_params") for trial in study.get_trials(states=(states.WAITING,))]
    for trial in study.get_trials(states=(states.RUNNING,)):  # this process holds the sweep: nobody runs it any more
        study.tell(trial.number, state=states.FAIL)
        if trial.params and trial.params not in waiting:
            study.enqueue_trial(trial.params)
    left = sweeper.n_trials - len(study.get_trials(states=(states.COMPLETE,)))
    if left < 1:
        best = ", ".join(f"{key}={value}" for key, value in study.best_params.items())
        raise UserError(
            f"the search in {sweep} has its {sweeper.n_trials} trials (best {study.best_value:.4g}: {best}): set a larger "
            "hydra.sweeper.n_trials to continue."
        )
    return [f"hydra.sweeper.n_trials={left}"]
