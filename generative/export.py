"""Networks as files to hand around: safetensors, which hold numbers and text only, with a fingerprint of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from generative.weights import differing_names, weights_hash

FORMAT, VERSION = "triptych", "1"
SUFFIX = ".safetensors"
Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BESIDE = "beside/"  # begins the names of tensors that are no part of the network
SCALE = "scale/"  # and those of the scales of weights of 8 bits
LARGEST = 127  # whole number of 8 bits


class ExportError(ValueError):
    """A file is no usable export; the message names it and the remedy in one sentence."""


def network_bytes(
    network: nn.Module,
    metadata: Mapping[str, str],
    precision: Precision = "float32",
    beside: Mapping[str, Tensor] | None = None,
) -> bytes:
    """Return the file of a network's weights and buffers; loading needs the network built alike.

    Args:
        metadata: Texts to keep with them.
        precision: ``float16`` rounds them and halves the file. ``int8`` quarters it: matrices and kernels become whole numbers
            in [-127, 127] with a scale for each row of their first axis. All are read as float32.
        beside: What else is kept in the file by name (``read_beside``), as what is costly to compute from the network.

    Returns:
        Its content, in the format of safetensors.

    Raises:
        ExportError: A number is too large for the precision.
    """
    # Each tensor gets memory of its own: safetensors refuses two names of the same memory, and views.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    tensors = _narrowed(tensors, precision)
    own = {"format": "pt", "producer": FORMAT, "version": VERSION, "precision": precision}
    own["weights_hash"] = weights_hash(_widened(tensors, precision))
    tensors |= {BESIDE + name: value.detach().cpu().contiguous().clone() for name, value in (beside or {}).items()}
    return save(tensors, metadata={**metadata, **own})


def _narrowed(tensors: dict[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    narrow: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if precision == "float32" or value.dtype != torch.float32:
            narrow[name] = value
        elif precision == "float16":
            narrow[name] = value.half()
        elif value.ndim > 1:
            scale = value.abs().flatten(1).amax(1).clamp(min=torch.finfo(value.dtype).tiny) / LARGEST
            narrow[name] = (value / scale.view(-1, *[1] * (value.ndim - 1))).round().char()
            narrow[SCALE + name] = scale
        else:
            narrow[name] = value
    if wrong := [name for name, value in narrow.items() if not torch.isfinite(value).all()]:
        raise ExportError(f"{wrong[0]} has numbers that {precision} does not hold: export with precision=float32.")
    return narrow


def _widened(tensors: Mapping[str, Tensor], precision: str | None) -> dict[str, Tensor]:
    """Return tensors as a network has them."""
    if precision not in ("float16", "int8"):
        return dict(tensors)
    wide: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if (scale := tensors.get(SCALE + name)) is not None:
            value = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        if not name.startswith(SCALE):
            wide[name] = value.float() if value.dtype == torch.float16 else value
    return wide


def read_network(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of ``network_bytes``.

    Returns:
        The tensors by the network's own names, on the CPU, and the metadata.

    Raises:
        ExportError: The file is missing, damaged or something else.
    """
    if not path.is_file():
        raise ExportError(f"{path} does not exist: name the folder that python export.py wrote.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = [name for name in file.keys() if not name.startswith(BESIDE)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} is damaged or no safetensors file ({error}): export the run again.") from error
    if metadata.get("producer") != FORMAT:
        raise ExportError(f"{path} holds weights of another program: use a file that python export.py wrote.")
    if metadata.get("version") != VERSION:
        raise ExportError(
            f"{path} is of version {metadata.get('version')} of the format and this is version {VERSION}: export the run "
            "again, or use the code that wrote it."
        )
    return _widened(tensors, metadata.get("precision")), metadata


def read_beside(path: Path) -> dict[str, Tensor]:
    """Return what is kept beside the network in a file that ``read_network`` has read."""
    with safe_open(str(path), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(BESIDE)]  # noqa: SIM118
        return {name.removeprefix(BESIDE): file.get_tensor(name) for name in names}


def check_fits(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Check that exported weights are of a network's names and shapes.

    Args:
        network: The network, which may be on the ``meta`` device.
        tensors: The weights.
        path: Their file, for messages.

    Raises:
        ExportError: They are of another network.
    """
    if differing := differing_names(network.state_dict(), tensors):
        raise ExportError(
            f"{path} is of another network than its config.yaml: {len(differing)} tensors differ, the first is "
            f"{differing[0]}; keep the files of an export together."
        )


def load_network(network: nn.Module, path: Path) -> dict[str, str]:
    """Fill a network with exported weights and compare their fingerprint.

    Args:
        network: The network, built as the exported one was.

    Returns:
        The metadata.

    Raises:
        ExportError: The file is of another network, or its numbers are not those that were written.
    """
    tensors, metadata = read_network(path)
    check_fits(network, tensors, path)
    network.load_state_dict(tensors)
    if weights_hash(network) != metadata.get("weights_hash"):
        raise ExportError(f"{path} is damaged: its weights are not those that were written; export the run again.")
    return metadata
