"""Weights of one network as the beginning of another, which may have more inputs, more outputs or other labels.

Which layers may differ, and how each then begins, is known to the network that owns them: it marks them here. Where it can
be, the new network computes at first what the old one did.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

Layer = TypeVar("Layer", bound=nn.Module)
MAX_NAMES = 8  # in a line
TAKEN = "taken"  # the fates of tensors, as they are told
GROWN = "grown, zero for new inputs"
REPEATED = "grown, with copies of the last output"
CUT = "cut, without the last inputs"
KEPT = "taken, with what inputs that are left out gave where they are absent"
COPIED = "copies of the last output"
ZERO = "new, zero and so without effect at first"
BUILT = "new, as built"
LEFT = "left there"


class ShapeError(ValueError):
    """A tensor has another shape, and that is no growth; the message names it and both shapes."""


def more_inputs(layer: Layer, absent: Tensor | None = None) -> Layer:
    """Mark what reads the inputs; the last of them may be new, and then have weights of zero, or be left out.

    Args:
        layer: A linear or convolution layer, or a module list with a part for each input, whose results are added; a part
            ends with the bias of a linear layer.
        absent: (F,) features of an input that is absent, None for zeros. What inputs that are left out gave then goes into a
            bias.

    Returns:
        The layer.
    """
    layer.has_more_inputs, layer.absent_features = True, absent  # type: ignore[assignment]
    return layer


def more_outputs(layer: Layer, num_outputs: int) -> Layer:
    """Mark what makes the outputs of a network; new ones begin as copies of the last that there was.

    Args:
        layer: A module list with a head for each output, or a linear or convolution layer with the outputs side by side.
        num_outputs: Number of outputs.

    Returns:
        The layer.
    """
    layer.num_outputs_beside = num_outputs  # type: ignore[assignment]
    return layer


def quiet(layer: Layer, bias: float = 0.0) -> Layer:
    """Mark a layer that begins with weights of zero where it is new, so that what it adds changes nothing at first.

    Args:
        bias: Its bias then: one where its output is a factor.

    Returns:
        The layer.
    """
    layer.quiet_bias = bias  # type: ignore[assignment]
    return layer


def of_labels(layer: Layer) -> Layer:
    """Mark a layer, or list of parameters, whose sizes are numbers of labels: with other labels it begins as built.

    Returns:
        The layer.
    """
    layer.is_of_labels = True  # type: ignore[assignment]
    return layer


def begin_from(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Fill a network with the weights of another, as far as they fit.

    Args:
        network: A network with its initial weights, not sharded.
        weights: The other network's weights and buffers by its own names.

    Returns:
        What became of them, in a line for each kind of fate.

    Raises:
        ValueError: They have nothing in common, or a tensor has another type, or another shape that is no growth
            (``ShapeError``); then nothing is changed.
    """
    fault_of_weights = getattr(network, "fault_of_weights", None)
    if fault_of_weights and (fault := fault_of_weights(weights)):
        raise ValueError(fault)
    own = network.state_dict()
    copied = _copied_outputs(network, own, weights)
    of_absent = _of_absent(network, weights)
    begun: dict[str, Tensor] = {}
    fates: dict[str, list[str]] = {fate: [] for fate in (TAKEN, KEPT, GROWN, REPEATED, CUT, COPIED, ZERO, BUILT)}
    for name, value in own.items():
        layer = network.get_submodule(name.rpartition(".")[0])
        old = weights.get(copied.get(name, name))
        begun[name], fate = _new(name, value, layer) if old is None else _fitted(name, value, old, layer)
        if fate == TAKEN and name in copied:
            fate = COPIED
        elif fate == TAKEN and name in of_absent:
            begun[name], fate = begun[name] + of_absent[name].to(value), KEPT
        fates[fate].append(name)
    if not fates[TAKEN]:
        raise ValueError("none of its tensors has a counterpart in this network: name a run of such a network")
    network.load_state_dict(begun)
    numbers = {name: parameter.numel() for name, parameter in network.named_parameters()}
    taken = sum(numbers.get(name, 0) for name in fates[TAKEN])
    lines = [f"{len(fates[TAKEN])} of {len(own)} tensors taken, {taken:,} of {sum(numbers.values()):,} parameters"]
    for fate in (GROWN, REPEATED, CUT):
        fates[fate] = [f"{name} {tuple(weights[name].shape)} -> {tuple(own[name].shape)}" for name in fates[fate]]
    told = {
        fate: named(fates[fate], own) if fate in (COPIED, ZERO, BUILT) else fates[fate]
        for fate in fates
        if fate != TAKEN
    }
    told[LEFT] = named([name for name in weights if name not in own], weights)
    return lines + [f"{fate}: {_some(names)}" for fate, names in told.items() if names]


def named(names: Collection[str], every: Collection[str]) -> list[str]:
    """Name tensors in short: a module of which all are meant stands for them.

    Args:
        every: Names of all tensors of the network.

    Returns:
        Names of modules, with the number of their tensors, and of tensors.
    """
    meant, found = set(names), dict[str, int]()
    for name in names:
        if any(name.startswith(f"{start}.") for start in found):
            continue
        parts = name.split(".")
        for start in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            below = [each for each in every if f"{each}.".startswith(f"{start}.")]
            if meant.issuperset(below):
                found[start] = len(below)
                break
    return [name if count == 1 else f"{name} ({count} tensors)" for name, count in found.items()]


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _copied_outputs(network: nn.Module, own: Collection[str], weights: Collection[str]) -> dict[str, str]:
    """Find the old tensor of each tensor of a head that the old network does not have."""
    found: dict[str, str] = {}
    for path, heads in network.named_modules():
        if isinstance(heads, nn.ModuleList) and hasattr(heads, "num_outputs_beside"):
            there = {name.removeprefix(f"{path}.").split(".")[0] for name in weights if name.startswith(f"{path}.")}
            for number in range(len(there), len(heads)) if there else ():
                start, last = f"{path}.{number}.", f"{path}.{len(there) - 1}."
                found |= {name: last + name.removeprefix(start) for name in own if name.startswith(start)}
    return found


def _of_absent(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find what the old network made of inputs that are left out where they are absent, by the bias that it goes into."""
    found: dict[str, Tensor] = {}
    for path, layer in network.named_modules():
        absent: Tensor | None = getattr(layer, "absent_features", None)
        if absent is None:
            continue
        if isinstance(layer, nn.ModuleList):
            own = layer[0].state_dict()
            bias = f"{path}.{len(layer) - 1}.{list(own)[-1]}"
            for number in itertools.count(len(layer)):
                part = {key: weights[name] for key in own if (name := f"{path}.{number}.{key}") in weights}
                if any(key not in part or part[key].shape != value.shape for key, value in own.items()):
                    break
                made = functional_call(layer[0], {key: value.to(absent) for key, value in part.items()}, absent)
                found[bias] = found.get(bias, 0) + made
        elif (weight := weights.get(f"{path}.weight")) is not None and weight.ndim == 2:
            cut = weight[:, layer.weight.shape[1] :].to(absent)
            number, rest = divmod(cut.shape[1], len(absent))
            if number and not rest:
                found[f"{path}.bias"] = cut @ absent.repeat(number)
    return found


def _new(name: str, value: Tensor, layer: nn.Module) -> tuple[Tensor, str]:
    """Begin a tensor that has no counterpart."""
    bias: float | None = getattr(layer, "quiet_bias", None)
    if bias is None:
        return value, BUILT
    return torch.full_like(value, bias if name.endswith("bias") else 0.0), ZERO


def _fitted(name: str, value: Tensor, old: Tensor, layer: nn.Module) -> tuple[Tensor, str]:
    """Begin a tensor with its counterpart."""
    if old.is_floating_point() != value.is_floating_point():
        raise ValueError(
            f"its {name} is of type {old.dtype} and here of {value.dtype}: use weights that train.py or export.py wrote"
        )
    if old.shape == value.shape:
        return old.to(value), TAKEN
    if hasattr(layer, "is_of_labels"):
        return value, BUILT
    shape, there = value.shape, old.shape
    if (
        len(shape) == len(there) > 1
        and hasattr(layer, "has_more_inputs")
        and (shape[0], *shape[2:]) == (there[0], *there[2:])
    ):
        shared = min(shape[1], there[1])
        grown = torch.zeros_like(value)
        grown[:, :shared] = old[:, :shared]
        return grown, GROWN if shape[1] > there[1] else CUT
    if len(shape) == len(there) and (num_outputs := getattr(layer, "num_outputs_beside", 0)) and shape[1:] == there[1:]:
        size = shape[0] // num_outputs
        further, rest = divmod(shape[0] - there[0], size)
        if further > 0 and not rest:
            return torch.cat([old, *[old[-size:]] * further]).to(value), REPEATED
    raise ShapeError(f"its {name} has the shape {tuple(there)} and here {tuple(shape)}, which is no growth")
