"""Which weights of a network are matrices between hidden features: those that Muon orthogonalises.

Every weight of a linear or convolution layer is one, but those at the ends of the network, which read inputs (images, times,
labels) or write outputs: a network marks these. Some layers hold several matrices in one weight, as queries, keys and values.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)
WEIGHT_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def at_end(layer: Layer) -> Layer:
    """Mark a layer, with all layers inside, as one at an end of the network.

    Returns:
        The layer.
    """
    layer.at_end = True  # type: ignore[assignment]
    return layer


def stacked(layer: Layer, num_matrices: int) -> Layer:
    """Mark a layer whose weight is so many matrices of one size, one below the other.

    Returns:
        The layer.
    """
    layer.num_matrices = num_matrices  # type: ignore[assignment]
    return layer


def hidden_matrices(network: nn.Module) -> dict[int, int]:
    """Find the weights between hidden features.

    Args:
        network: A network, or a module that holds several.

    Returns:
        By ``id`` of the weight the number of matrices stacked in it.
    """
    if getattr(network, "at_end", False):
        return {}
    found = {id(network.weight): getattr(network, "num_matrices", 1)} if isinstance(network, WEIGHT_LAYERS) else {}
    for child in network.children():
        found |= hidden_matrices(child)
    return found
