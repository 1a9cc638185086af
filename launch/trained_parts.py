"""Finds the trained networks that a run is built with: the label classifier and the tokenizer, ``auto`` among the runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra.utils import get_class

from launch.errors import UserError
from launch.record_files import passed_over
from launch.run_folder import RunFolder, readable_record


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
    return _trained("classifier", value, Path(outputs), (data_name, image_size))


def trained_tokenizer(value: str | None, outputs: str, data_name: str, image_size: int) -> str | None:
    """Find the checkpoint that the config key ``tokenizer`` means; see ``trained_classifier``."""
    return _trained("tokenizer", value, Path(outputs), (data_name, image_size))


def _trained(key: str, value: str | None, outputs: Path, data: tuple[str, int]) -> str | None:
    if value is None:
        return None
    if value != "auto":
        return str(Path(value).resolve()) if Path(value).is_file() else str(RunFolder.existing(value, key).checkpoint)
    finished = []
    for record_path in outputs.rglob("run.json"):
        run = RunFolder(record_path.parent)
        record = readable_record(run) or {}
        trained_on = record.get("data") or {}
        same_data = (trained_on.get("name"), trained_on.get("image_size")) == data
        if record.get("finished") and same_data and run.checkpoint.exists():
            finished.append((str(record.get("ended", "")), str(run.checkpoint.resolve()), run))
    for _, checkpoint, run in sorted(finished, key=lambda each: each[:2], reverse=True):
        try:
            if _serves_as(key, run, debug=outputs.name == "debug"):
                return checkpoint
        except UserError as error:  # this run only is damaged, or is not to be trusted
            passed_over(str(run.path), error)
    return None


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
