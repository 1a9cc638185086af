"""A second device for machines without one: its tensors refuse to meet those of the processor, as a GPU's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Elsewhere(Tensor):
    """A tensor of the processor that behaves as if it were on another device.

    Allowed are what CUDA allows: numbers of no dimension from here, indices from here, and copies either way.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if not isinstance(tensor, cls) and tensor.ndim]
        if func is Tensor.cpu or (func is Tensor.to and len(tensors) == 2):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {})).as_subclass(Tensor if func is Tensor.cpu else type(args[1]))
        indexed = func is Tensor.__getitem__ and isinstance(args[0], cls)
        copied = func is Tensor.copy_
        if here and not indexed and not copied:
            raise RuntimeError(f"{func.__name__}: tensors of the processor and of another device in one operation")
        return super().__torch_function__(func, types, args, kwargs or {})


def away(tensor: Tensor) -> Tensor:
    """Return a tensor's values on the other device."""
    return tensor.detach().clone().as_subclass(Elsewhere)
