"""Trained weights: the fingerprint of a network for records and caches, and reading those of a run from its checkpoint."""

from __future__ import annotations

import errno
import hashlib
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

AVERAGES = ("EMA", "average")  # a checkpoint keeps the averaged weights in this entry of that callback's state
ZIP_START = b"PK\x03\x04"
CODE_OPCODES = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "EXT1", "EXT2", "EXT4"}

_NO_MEMORY = re.compile(
    r"(can't|cannot|not enough memory to|unable to) allocate|out of memory|bad_alloc|not enough memory", re.I
)


def weights_hash(network: nn.Module | Mapping[str, Tensor]) -> str:
    """Hash a network's weights and buffers.

    Args:
        network: The network, or its state dict.

    Returns:
        BLAKE2 digest of the names, types, shapes and values in its state dict, 16 hexadecimal digits; the same on every
        device.
    """
    digest = hashlib.blake2b(digest_size=8)
    state = network.state_dict() if isinstance(network, nn.Module) else network
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.hexdigest()


class NotLoadedError(ValueError):
    """A file does not load as tensors and plain containers; the message says what it is instead."""


class DamagedFileError(NotLoadedError):
    """A file is not as it was written: empty, cut off, or with other bytes than its checksums say."""


class LoadMemoryError(MemoryError):
    """A file does not fit into memory; the message names it and the remedy in one sentence."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether too little memory is what is behind an error.

    Args:
        error: Any exception; its causes are looked at too.

    Returns:
        True for Python's, the system's and PyTorch's ways to say it, on the CPU and on a GPU.
    """
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def read_checkpoint(path: str | Path) -> Any:
    """Load a file of tensors and plain containers on the CPU; nothing else is ever unpickled.

    ``torch.save`` writes a zip archive with a CRC-32 of each tensor, which ``torch.load`` does not compare: it is done
    here, so that a file with flipped bits is no silent change of the weights.

    Args:
        path: The file, which must exist.

    Raises:
        DamagedFileError: It is damaged.
        NotLoadedError: It is whole, but holds something else: what could run code when loaded, or tensors of other kinds.
        LoadMemoryError: It is larger than the memory that is left.
    """
    with Path(path).open("rb") as file:  # a file that is not there, or not for us to read, is the caller's matter
        return _read(file, path)


def _read(file: BinaryIO, path: str | Path) -> Any:
    """Check and load an open file, so that what is loaded is what was checked, even if another one takes its name."""
    start = file.read(len(ZIP_START))
    if start == ZIP_START and (fault := _zip_fault(file)):
        raise DamagedFileError(f"{fault}, so it does not load as tensors and plain containers")
    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common error for damaged files and refused pickles
        if is_out_of_memory(error):
            raise LoadMemoryError(
                f"{path} of {Path(path).stat().st_size / 1e6:,.0f} MB does not fit into the memory that is left: close other "
                "programs, or use a machine with more."
            ) from error
        if isinstance(error, pickle.UnpicklingError) and (start == ZIP_START or _names_code(file)):
            raise NotLoadedError(
                "it does not load as tensors and plain containers and could run code if it were loaded otherwise"
            ) from error
        if start == ZIP_START:
            raise NotLoadedError("it does not load as tensors and plain containers") from error
        fault = "it is empty" if not start else "it is no file of torch.save"
        raise DamagedFileError(f"{fault} and does not load as tensors and plain containers") from error
    if fault := _tensor_fault(content):
        raise NotLoadedError(fault)
    return content


def _tensor_fault(content: Any) -> str | None:
    """Find a tensor without plain numbers in memory, which few operations take."""
    for name, value in _leaves(content):
        if isinstance(value, Tensor):
            kinds = {
                "sparse": value.layout != torch.strided,
                "quantised": value.is_quantized,
                "without data": value.is_meta,
            }
            if kind := next((kind for kind, is_so in kinds.items() if is_so or value.is_nested), None):
                return f"its tensor {name} is {'nested' if value.is_nested else kind}, not one of plain numbers"
    return None


def _leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """Walk over nested containers; not by recursion, and through each container once: a file can have it in itself."""
    waiting, seen = [("", content)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping | list | tuple):
            if id(value) not in seen:
                seen.add(id(value))
                items = value.items() if isinstance(value, Mapping) else enumerate(value)
                waiting += [(f"{name}.{key}".lstrip("."), each) for key, each in items]
        else:
            yield name, value


def checkpoint_fault(content: Any) -> str | None:
    """Say what a loaded file lacks to be a checkpoint of a run, as far as its weights are concerned.

    Args:
        content: What ``read_checkpoint`` has returned.

    Returns:
        What is wrong with it, or None.
    """
    if not isinstance(content, dict) or not {"state_dict", "global_step"} <= content.keys():
        return "it is no checkpoint of a run"
    if not _is_count(content["global_step"]):
        return f"its global_step={str(content['global_step'])[:20]} is no number of steps"
    if not _are_tensors(content["state_dict"]):
        return "its state_dict is no dict of tensors"
    callbacks, (owner, entry) = content.get("callbacks", {}), AVERAGES
    if not isinstance(callbacks, dict) or not isinstance(ema := callbacks.get(owner, {}), dict):
        return "its callbacks are no dict of their states"
    if not _is_count(ema.get("num_updates", 0)) or not _are_tensors(ema.get(entry, {})):
        return "its averages (EMA) are not what a run saves"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _zip_fault(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
        return "it is cut off or overwritten"
    return f"its part {part} has other bytes than its checksum says" if part else None


def _names_code(file: BinaryIO) -> bool:
    """Say whether a file that is no zip archive begins with a pickle that names a function or class; nothing is run."""
    file.seek(0)
    try:
        while True:  # the older layout of torch.save is several pickles, one after the other
            if any(code.name in CODE_OPCODES for code, _, _ in pickletools.genops(file)):
                return True
    except Exception:  # not a pickle from here on; pickletools has no common error for that
        return False


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor] | None:
    """Return the averages of a run's trainable weights.

    Args:
        checkpoint: A checkpoint of a run.

    Returns:
        Tensors by the network's own names; None where the run keeps none.
    """
    owner, entry = AVERAGES
    state = checkpoint.get("callbacks", {}).get(owner)
    return None if state is None else state.get(entry, {})


def network_weights(checkpoint: dict[str, Any], averaged: bool = True) -> dict[str, Tensor]:
    """Return the weights of a run's network, with its buffers.

    Args:
        checkpoint: A checkpoint of a run.
        averaged: Whether the averaged ones are meant, where the checkpoint has them.

    Returns:
        Tensors by the network's own names.
    """
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return state | ((averaged and averaged_weights(checkpoint)) or {})


def first_not_finite(checkpoint: dict[str, Any]) -> str | None:
    """Find a value among the weights and averages of a checkpoint that is NaN or infinite.

    Args:
        checkpoint: A checkpoint of a run.

    Returns:
        Name of the first tensor that holds NaN or infinity, or None.
    """
    average = averaged_weights(checkpoint) or {}
    for name, value in (
        *checkpoint["state_dict"].items(),
        *((f"EMA {name}", value) for name, value in average.items()),
    ):
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            return name
    return None


def differing_names(own: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Compare two state dicts by names and shapes.

    Args:
        own: State dict of a network.
        other: Weights to fill it with.

    Returns:
        Names that only one of them has, else those of another shape; none where the weights fit.
    """
    return sorted(own.keys() ^ other.keys()) or sorted(name for name in own if own[name].shape != other[name].shape)
