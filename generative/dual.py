"""Forward-mode differentiation: every tensor carries its tangent along, and one pass gives values and derivative.

``torch.func.jvp`` does the same, but takes normalisation, gates and attention apart into many small operations: for a
transformer it costs more than four forward passes. Here the functions that networks spend their time in have rules of their
own, and all others are differentiated by ``torch.func.jvp`` one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Pair = tuple[Tensor, Tensor]  # values and tangent


class Dual(Tensor):
    """A tensor with its tangent; what is computed from it carries one too.

    Attributes:
        primal: Plain tensor of the values.
        tangent: Plain tensor of the same shape: the derivative of the values along one direction.
    """

    primal: Tensor
    tangent: Tensor

    @classmethod
    def of(cls, values: Tensor, tangent: Tensor) -> Dual:
        """Join values and tangent.

        Args:
            values: Floating-point tensor.
            tangent: Tensor that broadcasts to the shape of the values.
        """
        dual = values.as_subclass(cls)
        dual.primal = values
        dual.tangent = tangent if tangent.shape == values.shape else tangent.expand_as(values)
        return dual

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute values and tangents of a function of duals.

        Raises:
            NotImplementedError: The function works in place; other references to the values would keep old tangents.
        """
        kwargs, name = kwargs or {}, func.__name__
        with torch._C.DisableTorchFunctionSubclass():
            if name in NOT_TENSORS:
                return func(*args, **kwargs)
            if name == "__get__" and not isinstance(attribute := func(*args), Tensor):
                return attribute
            if name in RULES and (pair := RULES[name](*args, **kwargs)) is not None:
                return cls.of(*pair)
            if name in LINEAR:
                values, tangents = func(*map(primal_of, args), **kwargs), func(*map(tangent_of, args), **kwargs)
            elif name in IN_PLACE or kwargs.get("inplace"):
                raise NotImplementedError(
                    f"The exact derivative does not follow the in-place operation {name} in the network: "
                    "set objective.derivative=difference."
                )
            else:
                values, tangents = _differentiated(func, args, kwargs)
            if isinstance(values, Tensor):
                return cls.of(values, tangents) if values.is_floating_point() else values
            return type(values)(map(cls.of, values, tangents))


def primal_of(value: Any) -> Any:
    """Return the values of a tensor, or of several, as plain tensors; what is no tensor as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(primal_of, value))
    return value.primal if isinstance(value, Dual) else value


def tangent_of(value: Any) -> Any:
    """Return the tangent of a tensor, which is zero for a plain one, or of several; what is no tensor as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(tangent_of, value))
    if isinstance(value, Dual):
        return value.tangent
    return torch.zeros_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def _differentiated(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    leaves, tree = tree_flatten((args, kwargs))
    duals = {place: leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Dual)}

    def of_duals(*values: Tensor) -> Any:
        given = dict(zip(duals, values, strict=True))
        inner_args, inner_kwargs = tree_unflatten([given.get(i, leaf) for i, leaf in enumerate(leaves)], tree)
        return func(*inner_args, **inner_kwargs)

    values, tangents = (tuple(getattr(dual, part) for dual in duals.values()) for part in ("primal", "tangent"))
    result: tuple[Any, Any] = torch.func.jvp(of_duals, values, tangents)  # type: ignore[assignment]
    return result


# A rule has the signature of its function and returns None where it does not know its arguments.


def _add(a: Any, b: Any, **kwargs: Any) -> Pair | None:
    tangents = [x.tangent for x in (a, b) if isinstance(x, Dual)]
    return None if kwargs else (primal_of(a) + primal_of(b), sum(tangents[1:], tangents[0]))


def _sub(a: Any, b: Any, **kwargs: Any) -> Pair | None:
    if kwargs or not isinstance(a, Dual):
        return None
    return a.primal - primal_of(b), a.tangent - b.tangent if isinstance(b, Dual) else a.tangent


def _mul(a: Any, b: Any) -> Pair:
    p, q = primal_of(a), primal_of(b)
    if isinstance(a, Dual) and isinstance(b, Dual):
        return p * q, torch.addcmul(p * b.tangent, a.tangent, q)
    return p * q, a.tangent * q if isinstance(a, Dual) else p * b.tangent


def _addcmul(x: Any, a: Any, b: Any, **kwargs: Any) -> Pair | None:
    if kwargs:
        return None
    tangents = [x.tangent] if isinstance(x, Dual) else []
    tangents += [_mul(a, b)[1]] if isinstance(a, Dual) or isinstance(b, Dual) else []
    return torch.addcmul(*map(primal_of, (x, a, b))), sum(tangents[1:], tangents[0])


def _linear(x: Any, weight: Tensor, bias: Tensor | None = None) -> Pair | None:
    if isinstance(weight, Dual) or isinstance(bias, Dual):
        return None
    return F.linear(x.primal, weight, bias), F.linear(x.tangent, weight)


def _silu(x: Any, inplace: bool = False) -> Pair | None:
    gate = x.primal.sigmoid()
    values = x.primal * gate
    return None if inplace else (values, x.tangent * torch.addcmul(gate, values, 1 - gate))


def _rms_norm(x: Any, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Pair | None:
    if len(shape) != 1 or isinstance(weight, Dual):
        return None
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    inverse = (x.primal.square().mean(-1, keepdim=True) + eps).rsqrt()
    values = x.primal * inverse
    along = (values * x.tangent).mean(-1, keepdim=True)
    tangent = torch.addcmul(x.tangent, values, along, value=-1) * inverse
    return (values, tangent) if weight is None else (values * weight, tangent * weight)


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Pair | None:
    if args or kwargs or not all(isinstance(x, Dual) for x in (q, k, v)):
        return None
    scale = 1 / math.sqrt(q.shape[-1])
    query, query_tangent = q.primal * scale, q.tangent * scale
    weights = (query @ k.primal.mT).softmax(-1)
    tangent = torch.cat([query_tangent, query], -1) @ torch.cat([k.primal, k.tangent], -1).mT
    tangent = weights * (tangent - (weights * tangent).sum(-1, keepdim=True))
    return weights @ v.primal, tangent @ v.primal + weights @ v.tangent


NOT_TENSORS = frozenset({"__len__", "dim", "size", "stride", "numel", "is_floating_point", "is_contiguous"})
LINEAR = frozenset(  # in all their tensors together; the other arguments are shapes and places
    {"__get__", "__getitem__", "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as"}
    | {"permute", "transpose", "movedim", "contiguous", "chunk", "split", "unbind", "cat", "stack", "neg", "float"}
    | {"sum", "mean", "to"}
)
IN_PLACE = frozenset(
    name for name in dir(Tensor) if name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
)
RULES: dict[str, Callable[..., Pair | None]] = {
    "add": _add,
    "sub": _sub,
    "addcmul": _addcmul,
    "mul": _mul,
    "linear": _linear,
    "silu": _silu,
    "rms_norm": _rms_norm,
    "scaled_dot_product_attention": _attention,
}
