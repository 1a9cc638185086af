"""The data of a run: that they are the same when it continues or is evaluated, and what its record says where they are not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from datamodules.base import ImageDataModule
from datamodules.splits import digest_of
from launch.errors import UserError
from launch.run_folder import RunFolder

KEY = "data_changed"
STOP, ACCEPT = "stop", "accept"
SPLITS = ("train", "val", "test", "label_sets")
# Settings of the data that change no image, label or split.
ONLY_USE = frozenset(
    {
        *("_target_", "name", "seed", "evaluation_seed", "global_batch_size", "eval_batch_size"),
        *("horizontal_flip", "quarter_turns", "mirror_keeps_labels"),
        *("resident", "cache_dir", "cache_gigabytes", "mixed_shards", "num_threads", "prefetch"),
        *("damaged", "allow_missing"),  # whether files may be missing, not which ones are meant
    }
)


class Recorded(Protocol):
    """A run, or whatever else says what data it was trained with.

    Attributes:
        path: Its folder.
        record: With ``data``, as ``run.json`` has it.
    """

    @property
    def path(self) -> Path: ...

    @property
    def record(self) -> Mapping[str, Any]: ...


def settings_digest(config: DictConfig) -> str:
    """Hash the settings that say which data are meant.

    Args:
        config: A run's config, its paths absolute.

    Returns:
        16 hexadecimal digits.
    """
    settings = OmegaConf.to_container(config.data, resolve=True)
    assert isinstance(settings, dict)
    return digest_of([json.dumps({key: settings[key] for key in sorted(settings.keys() - ONLY_USE)})])


def check_answer(answer: Any) -> str:
    """Check the key ``data_changed``.

    Returns:
        ``stop`` or ``accept``.

    Raises:
        UserError: It is something else.
    """
    if answer not in (STOP, ACCEPT):
        raise UserError(f"{KEY}={answer} is unknown: choose {STOP} or {ACCEPT}.")
    return answer


def check_unchanged(
    run: Recorded, config: DictConfig, datamodule: ImageDataModule, splits: Iterable[str] = SPLITS, answer: str = STOP
) -> dict[str, dict[str, str | None]]:
    """Check that the data are those of a run's record, unless other ones were asked for.

    Args:
        config: Its config, with what was changed on the command line.
        datamodule: The data as they are now.
        splits: The splits that are used.
        answer: ``stop`` or ``accept``: what to do where they differ.

    Returns:
        The recorded and the present fingerprint of each split that differs though its settings are the same.

    Raises:
        UserError: They differ, and nobody has asked for that.
    """
    recorded, found = run.record.get("data", {}), datamodule.record()
    if "fingerprints" not in recorded:
        if recorded:
            rank_zero_warn(
                f"the record of {run.path} is older than fingerprints of splits and labels: whether its data are still "
                "the same cannot be said"
            )
        return {}
    changed = {
        split: {"recorded": recorded["fingerprints"].get(split), "found": found["fingerprints"].get(split)}
        for split in splits
        if recorded["fingerprints"].get(split) != found["fingerprints"].get(split)
    }
    if not changed:
        return {}
    counts, counts_now = recorded.get("images", {}), found["images"]
    differences = ", ".join(
        f"{split} {_with_count(one['recorded'], counts.get(split))} is now {_with_count(one['found'], counts_now.get(split))}"
        for split, one in changed.items()
    )
    where = ", ".join(dict.fromkeys(found["folders"].values())) or found["source"]
    if recorded.get("settings") != settings_digest(config):
        rank_zero_warn(f"the data are not those of {run.path}, as their settings were changed: {differences} ({where})")
        return {}
    if answer == STOP:
        raise UserError(
            f"the data of {run.path} have changed since they were recorded: {differences} ({where}); put them back, or "
            f"continue all the same with {KEY}={ACCEPT}, which is recorded."
        )
    return changed


def _with_count(fingerprint: str | None, count: int | None) -> str:
    return f"{fingerprint or 'none'}" + ("" if count is None else f" of {count} images")


def data_record(run: RunFolder, config: DictConfig, datamodule: ImageDataModule, step: int | None) -> dict[str, Any]:
    """Describe the data of a run from here on, and those of its earlier steps where they were others.

    Args:
        step: The step from which the run continues; None for a new run.

    Returns:
        ``data`` of ``run.json``: the data module's record; ``settings``, a hash of what says which data are meant; and
        ``earlier``, the data of the steps before, each until ``until_step``.
    """
    record = {**datamodule.record(), "settings": settings_digest(config)}
    before = run.record.get("data", {})
    earlier = list(before.get("earlier", []))
    if step is not None and before and before.get("fingerprints") != record["fingerprints"]:
        kept = ("name", "source", "folders", "images", "fingerprints", "fingerprint")
        earlier.append({"until_step": step, **{key: before[key] for key in kept if key in before}})
    return record | ({"earlier": earlier} if earlier else {})
