"""The command line of a sweep: every value of every override is checked before the first job."""

from __future__ import annotations

from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.checking import check_values
from launch.command_line import check_names, require_experiment, taken
from launch.compose import compose_config, parse, values_of, without_hydra
from launch.errors import UserError
from launch.names import tell_swept
from launch.options import groups
from launch.received import override_parser
from launch.sweep.search import check_direction


def checked_sweep(arguments: list[str]) -> DictConfig:
    """Check the command line of a sweep, and note what it varies.

    A composition is made for the first job, and one for each further value that chooses a file of ``conf/``; any other value
    is put into that of the first job.

    Args:
        arguments: The arguments without ``-m``; some with several values.

    Returns:
        The ``hydra`` node of the first job, which says how the sweep runs.

    Raises:
        UserError: A value is wrong, or ``resume=`` is given.
    """
    if taken(arguments, "resume")[0] is not None:
        raise UserError(
            "leave out resume= with -m: a sweep that is started again skips what is done and resumes the rest."
        )
    require_experiment(arguments)
    choices = [values for argument in arguments if (values := values_of(argument))]
    first = [values[0] for values in choices]
    composed = compose_config(first, with_hydra=True)
    config = without_hydra(composed)
    space = composed.hydra.sweeper.get("params") or {}
    tell_swept([*(argument.partition("=")[0] for argument in arguments if len(values_of(argument)) != 1), *space])
    check_names(first)
    check_values(config)
    check_direction(composed.hydra.sweeper, config.get("optimized_metric"))
    for position, values in enumerate(choices):
        others = [*first[:position], *first[position + 1 :]]
        for value in values[1:]:
            check_names([value])
            job = _with_value(config, value, others)
            check_values(compose_config([*first[:position], value, *first[position + 1 :]]) if job is None else job)
    return composed.hydra


def _with_value(config: DictConfig, override: str, others: list[str]) -> DictConfig | None:
    """Put a value into a composed config as Hydra does; None where it can change more than the value of its key."""
    parsed = override_parser().parse_override(override)
    key = parsed.key_or_group
    if parsed.type != OverrideType.CHANGE or parsed.package or "/" in key or key in groups():
        return None
    if any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other, _ in map(parse, others)):
        return None  # the order of the two decides
    result = config.copy()
    try:
        OmegaConf.update(result, key, parsed.value(), merge=True)
    except OmegaConfBaseException:  # composing says in our words what is wrong
        return None
    return result
