"""Names of files and jobs, made of overrides."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

from launch.errors import UserError

NAME_LENGTH = 150  # bytes; file systems take 255
NOT_IN_NAMES = ("sweep", "paths.outputs", "search", "data_changed")
SWEPT_VARIABLE = "TRIPTYCH_SWEPT"  # keys in which the jobs of a sweep differ; inherited by the processes of its jobs


def file_name(parts: Iterable[str]) -> str:
    """Make a file name of overrides.

    Args:
        parts: The overrides.

    Returns:
        A name; one of more than ``NAME_LENGTH`` bytes is shortened and told apart by a hash; ``default`` without parts.
    """
    text = ",".join(parts)
    name = re.sub(r"^\.+|[^\w.=,+~-]+", "_", text) or "default"
    if len(name.encode()) <= NAME_LENGTH:
        return name
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=4).hexdigest()
    return f"{name.encode()[: NAME_LENGTH - len(digest) - 1].decode(errors='ignore')}_{digest}"


def checked_name(key: str, value: str) -> str:
    """Check that what names a file or folder is a name and no path.

    Args:
        key: The command-line key, for the message.
        value: What was typed for it.

    Raises:
        UserError: It is empty, hidden, too long, or has separators or characters that cannot be printed.
    """
    wrong = (
        "is empty"
        if not value.strip()
        else "begins with a dot"
        if value.startswith(".")
        else "has a separator of folders, and a name is no path"
        if "/" in value or "\\" in value
        else "has characters that cannot be printed, or spaces at an end"
        if not value.isprintable() or value != value.strip()
        else f"is longer than {NAME_LENGTH} bytes"
        if len(value.encode(errors="replace")) > NAME_LENGTH
        else ""
    )
    if wrong:
        raise UserError(f"{key}={value!r} {wrong}: choose a name of letters and digits, such as {key}=second_try.")
    return value


def tell_swept(keys: Iterable[str]) -> None:
    """Keep the keys in which the jobs of a sweep differ, for this process and those that it starts."""
    os.environ[SWEPT_VARIABLE] = " ".join(keys)


def swept_and_fixed(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Part a job's overrides into those in which it differs from the other jobs of its sweep and those that all have.

    Args:
        overrides: The job's overrides.

    Returns:
        Both, without what says nothing of a job.
    """
    keys = os.environ.get(SWEPT_VARIABLE, "").split()
    kept = [override for override in overrides if override.partition("=")[0] not in NOT_IN_NAMES]
    swept = [override for override in kept if override.partition("=")[0] in keys]
    return swept, [override for override in kept if override not in swept]


def job_folder(number: int, overrides: Iterable[str]) -> str:
    """Name the folder of a job: its number, then what is its own, so that a shortened name still tells it apart.

    Args:
        number: Its number in the sweep.

    Returns:
        Such as ``3_seed=2,network=dit_small``.
    """
    swept, fixed = swept_and_fixed(overrides)
    return file_name([f"{number}_{','.join(swept + fixed)}"])
