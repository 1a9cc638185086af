"""Finds the trained networks that a run is built with, ``auto`` among the runs: label classifier, tokenizer, autoencoder."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from hydra.utils import get_class
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from generative.export import SUFFIX
from generative.networks.autoencoder import Autoencoder
from generative.spaces import Latents
from launch.errors import UserError
from launch.paths import absolute_path, path_nodes
from launch.record_files import passed_over
from launch.run_folder import RunFolder, readable_record

PIXEL = "pixel"  # the space that needs no trained network
_ELSEWHERE = re.compile(r"\.(cache_dir|\w*(val|test)\w*)\b")  # paths of the data that training reads no images from
_NUMBER = re.compile(r"\[\d+\]")  # of an item of a list
TRAINED = ("tokenizer", "space", "regression")  # keys of the networks that modules are built from


def trained_classifier(
    value: str | None, outputs: str, data_name: str, image_size: int, _root_: DictConfig | None = None
) -> str | None:
    """Find the checkpoint that the config key ``classifier`` means.

    Args:
        value: ``auto``, a run folder, a checkpoint file, or None.
        outputs: Folder of all runs, searched for ``auto``.
        data_name: Name of the data set that the classifier must know.
        image_size: Side of its images in pixels.
        _root_: The config that asks, as OmegaConf hands it on: of data in files it says which ones.

    Returns:
        The checkpoint of the newest finished label classifier of the data for ``auto``, None where there is none.
    """
    return _trained("classifier", value, Path(outputs), (data_name, image_size), _root_)


def trained_tokenizer(
    value: str | None, outputs: str, data_name: str, image_size: int, _root_: DictConfig | None = None
) -> str | None:
    """Find the checkpoint that the config key ``tokenizer`` means; see ``trained_classifier``."""
    return _trained("tokenizer", value, Path(outputs), (data_name, image_size), _root_)


def trained_regression(
    value: str | None,
    outputs: str,
    data_name: str,
    image_size: int,
    degradation: DictConfig | None,
    _root_: DictConfig | None = None,
) -> str | None:
    """Find the checkpoint that the config key ``regression`` means; see ``trained_classifier``.

    Args:
        degradation: What it must have been trained to undo, for ``auto``.
    """
    return _trained("regression", value, Path(outputs), (data_name, image_size), _root_, degradation)


def trained_space(
    value: str | None, outputs: str, data_name: str, image_size: int, _root_: DictConfig | None = None
) -> str | None:
    """Find the checkpoint that the config key ``space`` means; see ``trained_classifier``.

    Returns:
        None for ``pixel``.

    Raises:
        UserError: There is none for ``auto``.
    """
    if value in (None, PIXEL):
        return None
    found = _trained("space", value, Path(outputs), (data_name, image_size), _root_)
    if found is None:
        raise UserError(
            f"space=auto: no finished autoencoder of {data_name} at {image_size} pixels was found: train one first, as with "
            "python train.py experiment=autoencoder_scenes, or name one with space=RUN_DIR."
        )
    return found


def space_size(space: str | None, image_size: int) -> int:
    """Return the side of what a network in a space works on.

    Args:
        space: Checkpoint of an autoencoder; None for pixels.
        image_size: Side of the images in pixels.
    """
    return _autoencoder(space).grid_size if space else image_size


def space_channels(space: str | None, channels: int) -> int:
    """Return the channels of what a network in a space works on; see ``space_size``."""
    return _autoencoder(space).bottleneck.dim if space else channels


def folded_channels(space: str | None, channels: int) -> int:
    """Return the channels of maps of pixels that are folded to the grid of a space; see ``space_size``."""
    if not space:
        return channels
    autoencoder = _autoencoder(space)
    return channels * (autoencoder.image_size // autoencoder.grid_size) ** 2


def _autoencoder(path: str) -> Autoencoder:
    return _described(path, Path(path).stat().st_mtime_ns)


@cache
def _described(path: str, *times: int) -> Autoencoder:
    """Read an autoencoder's sizes: once, until its file changes, since configs ask often."""
    return Latents.described(path)


def _trained(
    key: str,
    value: str | None,
    outputs: Path,
    data: tuple[str, int],
    asking: DictConfig | None,
    degradation: DictConfig | None = None,
) -> str | None:
    if value is None:
        return None
    if value != "auto":
        exported = Path(value) / f"model{SUFFIX}"
        file = exported if key in TRAINED and exported.is_file() else Path(value)
        return str(file.resolve()) if file.is_file() else str(RunFolder.existing(value, key).checkpoint)
    finished = []
    for record_path in outputs.rglob("run.json"):
        run = RunFolder(record_path.parent)
        record = readable_record(run) or {}
        trained_on = record.get("data") or {}
        same_data = (trained_on.get("name"), trained_on.get("image_size")) == data
        if record.get("finished") and same_data and run.checkpoint.exists():
            saved = run.checkpoint.stat().st_mtime_ns  # where two ended within a second, as records count
            finished.append((str(record.get("ended", "")), saved, str(run.checkpoint.resolve()), run))
    for *_, checkpoint, run in sorted(finished, key=lambda each: each[:3], reverse=True):
        try:
            serves = _serves_as(key, run, debug=outputs.name == "debug") and _undoes(run, degradation)
            if serves and not (others := _other_images(run, asking)):
                return checkpoint
            if serves:
                rank_zero_warn(f"{key}=auto passes {run.path} over, which was trained on {others}; {key}=RUN takes it")
        except UserError as error:  # this run only is damaged, or is not to be trusted
            passed_over(str(run.path), error)
    return None


def _other_images(run: RunFolder, asking: DictConfig | None) -> str:
    """Name the files that a run was trained on, where the config that asks for it has others; else empty.

    The name of the data does not tell them: that of a folder of images is always the same.
    """
    if asking is None or "data" not in asking:
        return ""
    own, wanted = _training_files(run.config()), _training_files(asking)
    return ", ".join(f"{name}={own.get(name)}" for name in {**wanted, **own} if own.get(name) != wanted.get(name))


def _training_files(config: DictConfig) -> dict[str, str]:
    """Return the absolute paths of the images of training, by key."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    data = OmegaConf.create({"data": plain.get("data")})
    named = ((str(node._get_full_key(key)), path) for node, key, path in path_nodes(data))
    return {
        name: str(absolute_path(_NUMBER.sub("", name), path)) for name, path in named if not _ELSEWHERE.search(name)
    }


def _undoes(run: RunFolder, degradation: DictConfig | None) -> bool:
    """Whether a run was trained on a degradation; on any where none is asked for."""
    return degradation is None or run.config().get("degradation") == degradation


def _serves_as(key: str, run: RunFolder, debug: bool) -> bool:
    """Ask the class of a run's module, which the checked config names, whether a network that trains so is what is sought.

    A run of ``debug=`` has learnt nothing: it serves its like alone, in the folder of theirs.
    """
    times = [path.stat().st_mtime_ns for path in (run.config_path, run.checkpoint) if path.exists()]
    debugged, served = _served(run.path, *times)
    return key in served and (debug or not debugged)


@cache
def _served(path: Path, *times: int) -> tuple[bool, frozenset[str]]:
    """Read whether a run is one of ``debug=``, and what it serves as: once, until its files change: configs ask often."""
    config = RunFolder(path).config()
    module = config.get("module") or {}
    serves = getattr(get_class(str(module.get("_target_"))), "serves_as", None)
    return bool(config.get("debug")), frozenset() if serves is None else serves(module)
