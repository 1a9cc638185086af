"""Two groups of parameters: those that weight decay acts on, and the rest; and which of them are hidden matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from generative.networks.matrices import WEIGHT_LAYERS, hidden_matrices

ParameterGroups = list[dict[str, Any]]


def decay_groups(parameters: Sequence[nn.Parameter], module: nn.Module) -> ParameterGroups:
    """Split parameters by whether they decay: only weights of linear and convolution layers do.

    Norms, biases, embeddings and positions do not: without evidence they belong where they are, and not at zero.

    Args:
        parameters: The parameters that are trained.
        module: What holds them.

    Returns:
        The decayed group, for which the optimiser's own ``weight_decay`` holds, and the other one; ``matrices`` of a group is
        for each parameter the number of hidden matrices in it, 0 for one that is none (``generative.optimizers.Muon``).
    """
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, WEIGHT_LAYERS)}
    hidden = hidden_matrices(module)
    groups: ParameterGroups = [
        {"params": [p for p in parameters if id(p) in weights]},
        {"params": [p for p in parameters if id(p) not in weights], "weight_decay": 0.0},
    ]
    return [{**group, "matrices": [hidden.get(id(p), 0) for p in group["params"]]} for group in groups]


def split_single_group(checkpoint: dict[str, Any], parameters: Sequence[nn.Parameter], groups: ParameterGroups) -> None:
    """Bring a checkpoint from before there were two groups into their form; a newer one stays as it is.

    Args:
        checkpoint: A Lightning checkpoint with one optimiser at most; changed in place.
        parameters: The parameters in the order of the single group.
        groups: The groups they stand in now.
    """
    old_number = {id(p): i for i, p in enumerate(parameters)}
    order = [old_number[id(p)] for group in groups for p in group["params"]]
    new_number: dict[Any, int] = {old: new for new, old in enumerate(order)}
    num_decayed = len(groups[0]["params"])
    for optimizer in checkpoint.get("optimizer_states", []):
        if [group["params"] for group in optimizer["param_groups"]] != [list(range(len(order)))]:
            continue
        (single,) = optimizer["param_groups"]
        optimizer["state"] = {new_number.get(key, key): values for key, values in optimizer["state"].items()}
        optimizer["param_groups"] = [
            {**single, "params": list(range(num_decayed))},
            {**single, "params": list(range(num_decayed, len(order))), "weight_decay": 0.0},
        ]
