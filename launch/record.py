"""What ``run.json`` and the record of ``metrics.json`` say about how a result came about."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from files.words import count
from launch.paths import without_paths

LIBRARIES = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "numpy", "pillow")


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on; of Triptych where no commit says more."""
    found = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    if git_revision() is None:
        with suppress(PackageNotFoundError):  # the code was unpacked and not installed
            found["triptych"] = version("triptych")
    return found


def git_revision() -> str | None:
    """Return the commit of the code, marked where the working tree differs from it; None where it is no repository's own.

    A package that was installed may lie within a repository of something else, as in a virtual environment there.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("rev-parse", "HEAD") + ("-modified" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """Describe the machine.

    Args:
        device: Device that the run uses.
        threads: Threads that each rank computes with; by default those that this process has now.

    Returns:
        Processor, threads and accelerator.
    """
    threads = threads or torch.get_num_threads()
    result: dict[str, Any] = {"device": device.type, "processor": _processor(), "threads": threads}
    if device.type == "cuda":
        result["accelerator"] = torch.cuda.get_device_name(device)
        result["accelerators"] = torch.cuda.device_count()
    return result


def config_hash(config: DictConfig) -> str:
    """Hash what determines a run's result: the config without paths, loggers and the hydra node.

    The same on every machine: data and weights that were read from paths have fingerprints of their own.

    Returns:
        12 hexadecimal digits.
    """
    left_out = ("hydra", "paths", "logger", "resume", "data_changed", "sweep")
    kept = without_paths(OmegaConf.create({k: config._get_node(k) for k in config if k not in left_out}))
    return hashlib.sha256(OmegaConf.to_yaml(kept, sort_keys=True).encode()).hexdigest()[:12]


def history_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the starts of a run's training that its record lists.

    Returns:
        Entries with ``step``, from which they hold, and ``changes`` against the settings before; none in the record of an
        older version.
    """
    entries = record.get("history")
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and _are_changes(entry.get("changes", {}))
    ]


def _are_changes(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(change, dict) for change in value.values())


def images_seen(record: dict[str, Any], batch: int, accumulated: int, steps: int) -> int:
    """Count the images of a training, also of one whose batch size was changed on the way.

    Args:
        batch: ``data.global_batch_size`` of the last steps.
        accumulated: ``trainer.accumulate_grad_batches`` of the last steps.
        steps: Optimiser steps.

    Returns:
        Images drawn.
    """
    images, end = 0, steps
    for entry in reversed(history_of(record)):
        begin, changes = min(entry["step"], end), entry.get("changes", {})
        images += (end - begin) * batch * accumulated
        batch = int(changes.get("data.global_batch_size", {}).get("from", batch))
        accumulated = int(changes.get("trainer.accumulate_grad_batches", {}).get("from", accumulated))
        end = begin
    return images + end * batch * accumulated


def hardware_text(record: dict[str, Any]) -> str:
    """Name the accelerator of ``hardware``, else the processor."""
    if record.get("accelerator"):
        return f"{record.get('accelerators', 1)} x {record['accelerator']}"
    return f"{record.get('processor', 'unknown')}, {count(record.get('threads', 1), 'thread')}"


def training_seconds(record: dict[str, Any]) -> float | None:
    """Return the wall time of a run, with its tests; of a resumed one it is not known."""
    if record.get("resumed_at_steps") or "ended" not in record:
        return None
    try:
        return (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])).total_seconds()
    except (KeyError, TypeError, ValueError):  # what is written there is no time
        return None


def duration_text(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def revision_text(revision: str | None) -> str:
    if not revision:
        return "unknown"
    commit, _, modified = revision.partition("-")
    return commit[:8] + (" (modified)" if modified else "")
