"""Layers with a backward pass of their own: against PyTorch's functions and numerical derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.networks.layers import RMSNorm, gated


def _norm(affine: bool) -> RMSNorm:
    norm = RMSNorm(6, eps=1e-3, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
    return norm


def _plainly_gated(x: Tensor) -> Tensor:
    return F.silu(x[..., :3]) * x[..., 3:]


LAYERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gated": (gated, _plainly_gated),
    "norm": (norm := _norm(False), lambda x: F.rms_norm(x, (6,), None, 1e-3)),
    "norm with weights": (weighted := _norm(True), lambda x: F.rms_norm(x, (6,), weighted.weight.to(x.dtype), 1e-3)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_pytorch(name: str, dtype: torch.dtype) -> None:
    """Also of a tensor that is not contiguous, such as the queries within the layer that makes them."""
    layer, plain = LAYERS[name]
    x = torch.randn(4, 5, 2, 6, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(0, 1)[:, :, 1]
    direction = torch.randn(5, 4, 3 if name == "gated" else 6, generator=torch.Generator().manual_seed(1))
    found = []
    for function in (layer, plain):
        rows = x.detach().requires_grad_()
        inputs = [rows, *(layer.parameters() if isinstance(layer, nn.Module) else ())]
        result = function(rows)
        found.append([result, *torch.autograd.grad((result.float() * direction).sum(), inputs)])
        assert result.dtype == dtype
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-2 if dtype == torch.bfloat16 else 1e-5
        )


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_numerical_derivatives(name: str) -> None:
    layer = LAYERS[name][0]
    if isinstance(layer, nn.Module):
        layer = _norm(layer.weight is not None).double()
    assert torch.autograd.gradcheck(layer, torch.randn(3, 6, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", LAYERS)
def test_tangents_are_those_of_pytorch_with_gradients_on(name: str) -> None:
    layer, plain = LAYERS[name]
    x, tangent = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(2))
    values = [torch.func.jvp(function, (x,), (tangent,)) for function in (layer, plain)]
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_state_is_that_of_pytorchs_norm() -> None:
    assert RMSNorm(4, eps=1e-6).state_dict().keys() == nn.RMSNorm(4, eps=1e-6).state_dict().keys()
