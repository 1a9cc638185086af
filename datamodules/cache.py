"""Files of tensors in the user's cache folder: written atomically, made again when they cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from files.whole import WriteError, whole_file
from generative.weight_files import cache_folder

Tensors = dict[str, Tensor]
__all__ = ["Tensors", "cache_folder", "cached"]


def cached(path: Path, build: Callable[[], Tensors], memory_map: bool = False) -> Tensors:
    """Load tensors from a file, or build them and write the file.

    A file that is truncated or damaged is built anew, with a warning. Where the folder cannot be written, the tensors
    are built each time, with a warning.

    Args:
        path: The file.
        build: Makes the tensors.
        memory_map: Leave the tensors on disk and read what is used. The content is then not checked, only that the
            file is whole.

    Returns:
        Tensors by name.
    """
    if path.exists():
        try:
            return _read(path, memory_map)
        except Exception as error:  # torch.load has no common error for damaged files
            rank_zero_warn(f"the cache file {path} is damaged ({error}); it is made again")
    tensors = build()
    try:
        _write(path, tensors)
    except WriteError as error:
        rank_zero_warn(
            f"{str(error).rstrip('.')}; it is made again each time: set paths.cache_dir to a writable folder with room"
        )
        return tensors
    return _read(path, memory_map) if memory_map else tensors


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
