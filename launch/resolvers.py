"""What ``conf/`` computes values with: ``${sum:a,b}``, ``${when:condition,a,b}``, ``${nearest_levels:[8]}`` and the like."""

from __future__ import annotations

import secrets
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from generative.networks.unet import nearest_levels
from launch.names import job_folder
from launch.options import register_none
from launch.trained_parts import (
    folded_channels,
    space_channels,
    space_size,
    trained_classifier,
    trained_regression,
    trained_space,
    trained_tokenizer,
)


def register_resolvers() -> None:
    """Make ``${sum:a,b}``, ``${when:condition,a,b}``, ``${run_id:}`` and the like known, and the option that is none."""
    register_none()
    OmegaConf.register_new_resolver("sum", lambda *terms: sum(terms), replace=True)
    OmegaConf.register_new_resolver("equal", lambda one, other: one == other, replace=True)
    OmegaConf.register_new_resolver("when", _when, replace=True)
    OmegaConf.register_new_resolver("nearest_levels", _nearest_levels, replace=True)
    OmegaConf.register_new_resolver("run_id", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    resolvers = (
        trained_classifier, trained_tokenizer, trained_space, trained_regression, space_size, space_channels, folded_channels,
    )  # fmt: skip
    for resolver in resolvers:
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def _when(condition: Any, this: Any, other: Any) -> Any:
    """Return one of two values; a list as a node, which a list as it is cannot become a part of a config."""
    value = this if condition else other
    return OmegaConf.create(value) if isinstance(value, list) else value


def _nearest_levels(resolutions: list[int], _parent_: DictConfig) -> ListConfig:
    """Return resolutions that the U-Net in whose config they stand has."""
    return OmegaConf.create(
        nearest_levels(resolutions, _parent_.image_size, _parent_.patch_size, _parent_.channel_multipliers)
    )
