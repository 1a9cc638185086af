"""Files of tensors in the user's cache folder: written atomically, made again when they cannot be read."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from files.whole import WriteError, whole_file

Tensors = dict[str, Tensor]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return the folder for generated, decoded and downloaded data.

    Args:
        cache_dir: The folder, or None for ``$TRIPTYCH_CACHE`` or else the user's cache folder of the system.

    Returns:
        The folder, which need not exist yet.
    """
    return Path(cache_dir or os.environ.get("TRIPTYCH_CACHE") or platformdirs.user_cache_dir("triptych"))


def cached(path: Path, build: Callable[[], Tensors], memory_map: bool = False) -> Tensors:
    """Load tensors from a file, or build them and write the file.

    A file that is truncated or damaged is built anew, with a warning. Where the folder cannot be written, the tensors
    are built each time, with a warning.

    Args:
        memory_map: Leave the tensors on disk and read what is used. The content is then not checked, only that the
            file is whole.

    Returns:
        Tensors by name.
    """
    if path.exists():
        try:
            return _read(path, memory_map)
        except Exception as error:  # torch.load has no common error for damaged files
            _warn(f"the cache file {path} is damaged ({error}); it is made again")
    tensors = build()
    try:
        _write(path, tensors)
    except WriteError as error:
        _warn(
            f"{str(error).rstrip('.')}; it is made again each time: set paths.cache_dir to a writable folder with room"
        )
        return tensors
    return _read(path, memory_map) if memory_map else tensors


def _warn(message: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the ranks of a machine share the folder
        warnings.warn(message, stacklevel=3)


def _checksum(tensors: Tensors) -> Tensor:
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return torch.tensor(int.from_bytes(digest.digest(), "little", signed=True))


def _read(path: Path, memory_map: bool) -> Tensors:
    content = torch.load(path, weights_only=True, mmap=memory_map)
    tensors, checksum = content["tensors"], content["checksum"]
    if not memory_map and _checksum(tensors) != checksum:
        raise ValueError("its checksum is wrong")
    return tensors


def _write(path: Path, tensors: Tensors) -> None:
    with whole_file(path, size=sum(tensor.nbytes for tensor in tensors.values())) as file:
        torch.save({"tensors": tensors, "checksum": _checksum(tensors)}, file)
