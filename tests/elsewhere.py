"""A second device for machines without one: its tensors refuse to meet those of the processor, as a GPU's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

PLACE = torch.device("meta")  # of all devices the one that PyTorch needs no hardware for, not even to pass gradients
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
# The indexed tensor alone has to be there: indices may come from the processor.
INDEXES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Elsewhere(Tensor):
    """A tensor of the processor that says it is on another device."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        tensor = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=PLACE
        )
        tensor.here = here
        return tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.tolist:
            return args[0].here.tolist()
        if func is Tensor.new_tensor:
            return away(args[0].here.new_tensor(*args[1:], **(kwargs or {})))
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("a tensor of another device has no numpy array: copy it with cpu()")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Has tensors made there that are asked for by ``device=``, which no argument tells."""

    def __init__(self) -> None:
        super().__init__()
        self._of_numbers = _OfNumbers()

    def __enter__(self) -> SecondDevice:
        self._of_numbers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._of_numbers.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _OfNumbers(TorchFunctionMode):
    """The same of ``torch.tensor``, which the dispatcher does not see."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == PLACE:
            return away(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


def away(tensor: Tensor) -> Tensor:
    """Return a tensor's values on the other device."""
    return Elsewhere(tensor.detach().clone())


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """Move a module's parameters and buffers there."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(away(parameter), parameter.requires_grad)
        part._buffers |= {name: away(buffer) for name, buffer in part._buffers.items() if buffer is not None}
    return module


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if there and func not in COPIES:
        asked = tensors[:1] if func in INDEXES else tensors
        if any(tensor.ndim and not isinstance(tensor, Elsewhere) for tensor in asked):  # numbers may come from here
            raise RuntimeError(f"{func}: tensors of the processor and of another device in one operation")
    if func is aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    elif (device := kwargs.get("device")) is not None:
        there, kwargs = device == PLACE, kwargs | {"device": torch.device("cpu")}
    own = tree_map(lambda leaf: leaf.here if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    result = func(*own[0], **own[1])
    if not there:
        return result
    result = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if tensors else result
