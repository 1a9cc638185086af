"""Trained weights: the fingerprint of a network for records and caches, and reading those of a run from its checkpoint."""

from __future__ import annotations

import hashlib
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ZIP_START = b"PK\x03\x04"
CODE_OPCODES = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "EXT1", "EXT2", "EXT4"}


def weights_hash(network: nn.Module) -> str:
    """Hash a network's weights and buffers.

    Args:
        network: The network.

    Returns:
        BLAKE2 digest of the names, types, shapes and values in its state dict, 16 hexadecimal digits; the same on every
        device.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.hexdigest()


class NotLoadedError(ValueError):
    """A file does not load as tensors and plain containers; the message says what it is instead."""


class DamagedFileError(NotLoadedError):
    """A file is not as it was written: empty, cut off, or with other bytes than its checksums say."""


def read_checkpoint(path: str | Path) -> Any:
    """Load a file of tensors and plain containers on the CPU; nothing else is ever unpickled.

    ``torch.save`` writes a zip archive with a CRC-32 of each tensor, which ``torch.load`` does not compare: it is done
    here, so that a file with flipped bits is no silent change of the weights.

    Args:
        path: The file, which must exist.

    Returns:
        Its content.

    Raises:
        DamagedFileError: It is damaged.
        NotLoadedError: It is whole, but holds something else, which could run code when loaded.
    """
    with Path(path).open("rb") as file:  # a file that is not there, or not for us to read, is the caller's matter
        start = file.read(len(ZIP_START))
    if start == ZIP_START and (fault := _zip_fault(path)):
        raise DamagedFileError(f"{fault}, so it does not load as tensors and plain containers")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common error for damaged files and refused pickles
        if start == ZIP_START or _names_code(path):
            raise NotLoadedError(
                "it does not load as tensors and plain containers and could run code if it were loaded otherwise"
            ) from error
        fault = "it is empty" if not start else "it is no file of torch.save"
        raise DamagedFileError(f"{fault} and does not load as tensors and plain containers") from error


def _zip_fault(path: str | Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
        return "it is cut off or overwritten"
    return f"its part {part} has other bytes than its checksum says" if part else None


def _names_code(path: str | Path) -> bool:
    """Say whether a file that is no zip archive begins with a pickle that names a function or class; nothing is run."""
    with Path(path).open("rb") as file:
        try:
            while True:  # the older layout of torch.save is several pickles, one after the other
                if any(code.name in CODE_OPCODES for code, _, _ in pickletools.genops(file)):
                    return True
        except Exception:  # not a pickle from here on; pickletools has no common error for that
            return False


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a run's network: the averaged ones where the checkpoint has them, its buffers beside them.

    Args:
        checkpoint: A checkpoint of a run.

    Returns:
        Tensors by the network's own names.
    """
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return state | checkpoint.get("callbacks", {}).get("EMA", {}).get("average", {})


def differing_names(own: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Compare two state dicts by names and shapes.

    Args:
        own: State dict of a network.
        other: Weights to fill it with.

    Returns:
        Names that only one of them has, else those of another shape; none where the weights fit.
    """
    return sorted(own.keys() ^ other.keys()) or sorted(name for name in own if own[name].shape != other[name].shape)
