"""An export where a run is asked for: its config in the places of this machine, and what its file says of its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from generative.export import ExportError, read_network
from launch.checking import check_values
from launch.command_line import overridden_run
from launch.compose import apply_overrides, compose_config, literal, merged, parse
from launch.data_check import settings_digest
from launch.errors import UserError
from launch.names import file_name
from launch.options import experiments
from launch.paths import PLACE, make_absolute, typed_path
from launch.received import checked_overrides
from launch.record_files import check_shape
from launch.resolvers import register_resolvers
from launch.run_folder import RunFolder
from launch.settled import check_use
from launch.trained_parts import TRAINED
from launch.use.load import MODEL, exported_weights, load_export, load_run, read_config
from lightning_modules import TrainingModule

EVALUATIONS = "evaluations"
SAID = {"experiment", "step", "weights", "weights_hash"}
OVERRIDES, DATA = "overrides", "data"  # metadata of the weights
GONE = f"={PLACE}"  # ends an override whose value was a place
FOUND = "${trained_"  # begins what this machine is searched for


@dataclass(frozen=True)
class ExportFolder:
    """What ``export.py`` wrote, as something to evaluate.

    Attributes:
        path: The folder.
        chosen: No checkpoint: it has one kind of weights.
    """

    path: Path
    chosen: None = None

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What its weights say of themselves."""
        metadata = read_network(self.path / MODEL)[1]
        if not metadata.keys() >= SAID or not (metadata["step"].isascii() and metadata["step"].isdecimal()):
            raise ExportError(f"{self.path / MODEL} is damaged: it does not say what it is; export the run again.")
        return metadata

    @property
    def step(self) -> int:
        """Optimiser steps behind the weights."""
        return int(self.metadata["step"])

    @property
    def name(self) -> str:
        """Its experiment and the beginning of the hash of its weights: another export has another name, wherever it lies."""
        return file_name([f"{self.metadata['experiment']}_{self.metadata['weights_hash'][:8]}"])

    @cached_property
    def overrides(self) -> list[str]:
        """What its run was composed from, as far as it does not name places; one of an earlier version says nothing of it."""
        if OVERRIDES in self.metadata:
            return checked_overrides(self._told(OVERRIDES), self.path / MODEL)
        name = self.metadata["experiment"]
        return [f"experiment={name}"] if name in experiments() else []

    @cached_property
    def record(self) -> dict[str, Any]:
        """What of ``run.json`` is handed around: the name, and the fingerprints of the data that it was trained with."""
        record: dict[str, Any] = {"name": self.metadata["experiment"], "data": {}}
        if DATA in self.metadata:
            record["data"] = {**self._told(DATA), "settings": settings_digest(self.config([]))}
            check_shape(self.path / MODEL, record["data"], {"fingerprints": dict, "images": dict})
        return record

    def _told(self, key: str) -> Any:
        try:
            return json.loads(self.metadata[key])
        except (ValueError, RecursionError) as error:
            raise ExportError(
                f"{self.path / MODEL} is damaged: its {key} cannot be read; export the run again."
            ) from error

    def config(self, overrides: list[str]) -> DictConfig:
        """Return its config, with the folders of this machine.

        Args:
            overrides: What is to be other now.

        Raises:
            UserError: A key is unknown, or says what an export has settled.
        """
        keys = [parse(override)[0] for override in overrides]
        if settled := {key.partition(".")[0] for key in keys} & {*TRAINED, "init"}:
            raise UserError(f"{min(settled)}= is settled in {self.path}, which is an export: leave it out.")
        recorded = [override for override in self.overrides if not override.endswith(GONE)]
        config = _linked(read_config(self.path), compose_config(recorded, recorded=recorded), self.path)
        if "classifier" in keys and "${classifier}" not in OmegaConf.to_yaml(config.callbacks):
            raise UserError(
                f"{self.path} does not say what it uses classifier= for: leave it out, or export the run again."
            )
        fresh = compose_config(merged(recorded, overrides), recorded=recorded)
        exported = config
        config = apply_overrides(exported, recorded, overrides, fresh)
        check_use(self.path, exported, config, overrides)
        make_absolute(config)
        check_values(fresh)
        return config

    def kind_of_weights(self, asked: str | None = None) -> str:
        """Return the kind of its weights, ``ema`` or ``raw``.

        Raises:
            UserError: Another one was asked for.
        """
        return exported_weights(self.path, asked)

    def check_data(self, overrides: list[str]) -> None:
        """Check that the command line says where the images are, where the training has read them from a folder.

        Raises:
            UserError: It does not.
        """
        given = {parse(override)[0] for override in overrides}
        keys = [parse(override)[0] for override in self.overrides if override.endswith(GONE)]
        missing = [key for key in keys if key.startswith("data.") and not given & {key, "data"}]
        if missing:
            raise UserError(
                f"{self.path} is an export, which names no folder of the machine that it was trained on: say where the "
                f"images are with {' '.join(f'{key}={PLACE}' for key in missing)}, or choose other ones with data=NAME."
            )

    def module(self, config: DictConfig) -> TrainingModule:
        """Build the module with its weights.

        Args:
            config: Its config with overrides applied.
        """
        return load_export(self.path, OmegaConf.to_container(config.module, resolve=True))


Source = RunFolder | ExportFolder


def opened(folder: str, overrides: list[str], reads_data: bool = True) -> tuple[Source, DictConfig]:
    """Open a run or an export, with its config.

    Args:
        folder: What ``run=`` names.
        overrides: What is to be other now.
        reads_data: Whether its test images are needed.

    Raises:
        UserError: It is neither, or an override cannot be applied.
        ExportError: The export is damaged.
    """
    path = typed_path("run", folder)
    if not (path / MODEL).exists():
        return overridden_run(folder, overrides)
    export = ExportFolder(path.resolve())
    if reads_data:
        export.check_data(overrides)
    return export, export.config(overrides)


def evaluations_of(source: Source, config: DictConfig) -> Path:
    """Say where evaluations go: into the run; those of an export, which is handed around, to the folder of all runs."""
    if isinstance(source, RunFolder):
        return source.path / EVALUATIONS
    return Path(config.paths.outputs).absolute() / EVALUATIONS / source.name


def step_of(source: Source) -> int:
    """Return the optimiser steps behind the weights."""
    return source.load_checkpoint()["global_step"] if isinstance(source, RunFolder) else source.step


def loaded(source: Source, config: DictConfig, weights: str) -> TrainingModule:
    """Build the module of a run or an export with its weights, in evaluation mode on the CPU."""
    return load_run(source, config, weights) if isinstance(source, RunFolder) else source.module(config)


def _linked(values: dict[str, Any], fresh: DictConfig, folder: Path) -> DictConfig:
    """Make a config of the values of an export: what follows another setting follows it again, and folders are this machine's.

    Args:
        values: The exported config.
        fresh: The same as ``conf/`` has it, not resolved.
    """
    register_resolvers()
    values["data"].pop("label_names", None)  # told, and no setting
    fresh.name, fresh.paths.run = literal(values["name"]), literal(folder)
    config = OmegaConf.create(values)
    for key in fresh.keys() - values.keys():
        config[key] = fresh._get_node(key)
    _link(config, fresh, config, fresh, "")
    return config


def _link(node: DictConfig, source: DictConfig, config: DictConfig, fresh: DictConfig, at: str) -> None:
    for key in [str(key) for key in node if key in source]:
        name, raw, value = f"{at}{key}", cast(Any, source._get_node(key)), cast(Any, node._get_node(key))
        if value is None or value._is_interpolation():
            continue
        if raw._is_interpolation():
            # Of the module's own parts the export has the files; what only measures is searched for where it was left out.
            searched = FOUND in str(raw._value())
            links = value._is_none() and not at.startswith("module.") if searched else _equal(fresh, name, node[key])
            if links:
                before = node[key]
                node[key] = raw
                if not searched and not _equal(
                    config, name, before
                ):  # it refers to what an earlier version did not have
                    node[key] = before
        elif OmegaConf.is_dict(value) and OmegaConf.is_dict(raw) and not raw._is_none() and not value._is_none():
            _link(node[key], raw, config, fresh, f"{name}.")


def _equal(fresh: DictConfig, name: str, value: Any) -> bool:
    try:
        return OmegaConf.select(fresh, name) == value
    except (OmegaConfBaseException, UserError):
        return False
