"""Networks as files to hand around: safetensors, which hold numbers and text only, with a fingerprint of the weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from generative.weights import differing_names, weights_hash

FORMAT, VERSION = "triptych", "1"
SUFFIX = ".safetensors"


class ExportError(ValueError):
    """A file is no usable export; the message names it and the remedy in one sentence."""


def network_bytes(network: nn.Module, metadata: dict[str, str]) -> bytes:
    """Return the file of a network's weights and buffers; loading needs the network built alike.

    Args:
        metadata: Texts to keep with them.

    Returns:
        Its content, in the format of safetensors.
    """
    # Each tensor gets memory of its own: safetensors refuses two names of the same memory, and views.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    own = {"format": "pt", "producer": FORMAT, "version": VERSION, "weights_hash": weights_hash(network)}
    return save(tensors, metadata=metadata | own)


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} is damaged or no safetensors file ({error}): export the run again.") from error
    if metadata.get("producer") != FORMAT:
        raise ExportError(f"{path} holds weights of another program: use a file that python export.py wrote.")
    if metadata.get("version") != VERSION:
        raise ExportError(
            f"{path} is of version {metadata.get('version')} of the format and this is version {VERSION}: export the run "
            "again, or use the code that wrote it."
        )
    return tensors, metadata


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
