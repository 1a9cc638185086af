"""RMS norm and the gate of SwiGLU, which on the CPU train with a backward pass of their own.

PyTorch has no fused backward pass for either: automatic differentiation takes one through a dozen small operations over all
tokens, which cost an eighth of a small transformer's training step. Where nothing is to be learnt, within
``torch.func`` and ``torch.compile``, which fuses them itself, and on GPUs, these are PyTorch's own functions.

Shape legend: ... any, D width, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _is_trained_here(x: Tensor) -> bool:
    """Say whether a plain backward pass on the CPU will follow."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor  # a subclass may carry tangents along
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


class _Normalised(torch.autograd.Function):
    """x / rms(x) over the last dimension, times a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        x_wide = x.to(wide)
        inverse = torch.linalg.vector_norm(x_wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normalised = (x_wide * inverse).to(x.dtype)
        ctx.save_for_backward(normalised, inverse, weight)
        return normalised if weight is None else normalised * weight.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normalised, inverse, weight = ctx.saved_tensors
        along = normalised * gradient
        weight_gradient = None
        if weight is not None:
            weight_gradient = along.flatten(0, -2).sum(0, dtype=weight.dtype)
            along.mul_(weight)
            gradient = gradient * weight.to(gradient.dtype)
        mean = along.mean(-1, keepdim=True, dtype=inverse.dtype)
        result = torch.addcmul(gradient.to(inverse.dtype), normalised.to(inverse.dtype), mean, value=-1)
        return result.mul_(inverse).to(gradient.dtype), weight_gradient, None


class RMSNorm(nn.RMSNorm):
    """Root mean square layer norm (arXiv 1910.07467) over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: (..., D) features.

        Returns:
            (..., D) features of the same type: a weight of another would cost the fused kernel.
        """
        if _is_trained_here(x) and self.eps is not None and len(self.normalized_shape) == 1:
            return _Normalised.apply(x, self.weight, self.eps)
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class _Gated(torch.autograd.Function):
    """silu(gate) * value."""

    @staticmethod
    def forward(ctx: Any, gate_and_value: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_value)
        gate, value = gate_and_value.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_and_value,) = ctx.saved_tensors
        gate, value = gate_and_value.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_value)
        of_gate, of_value = result.chunk(2, dim=-1)
        torch.mul(gradient, F.silu(gate), out=of_value)
        torch.ops.aten.silu_backward.grad_input(gradient * value, gate, grad_input=of_gate)
        return result


def gated(gate_and_value: Tensor) -> Tensor:
    """Return silu(gate) * value, the nonlinearity of SwiGLU (arXiv 2002.05202).

    Args:
        gate_and_value: (..., 2 H) gates, then values.

    Returns:
        (..., H) features.
    """
    if _is_trained_here(gate_and_value):
        return _Gated.apply(gate_and_value)
    gate, value = gate_and_value.chunk(2, dim=-1)
    return F.silu(gate) * value
