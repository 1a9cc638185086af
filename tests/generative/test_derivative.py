"""The derivative of a flow map: exact and by a difference, against numbers and against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from flow_maps import ExactGaussianFlow, inputs, network, randomness
from torch import Tensor

from generative.dual import Dual, tangent_of
from generative.flow_map import FlowMap, per_image
from generative.objectives import ImprovedMeanFlow, LagrangianSelfDistillation, MeanFlow
from generative.objectives.derivative import total_derivative, total_difference
from generative.types import Condition


@pytest.mark.parametrize("output", ["image", "velocity"])
def test_derivative_equals_a_central_difference(output: str) -> None:
    flow_map = FlowMap(network(), output)
    z, v, r, t, condition = inputs()
    exact = total_derivative(flow_map, z, r, t, v, condition)
    double = FlowMap(network(torch.float64), output)
    z, v, r, t = (x.double() for x in (z, v, r, t))
    condition = Condition(condition.image.double())
    h = 1e-5
    with torch.no_grad():
        ahead = double.velocities(z + h * v, r, t + h, condition)[0]
        behind = double.velocities(z - h * v, r, t - h, condition)[0]
    numeric = (ahead - behind) / (2 * h)
    assert not exact.requires_grad
    torch.testing.assert_close(exact.double(), numeric, rtol=2e-3, atol=2e-3 * numeric.abs().max().item())


def test_derivative_of_a_slice_equals_that_of_the_whole() -> None:
    flow_map = FlowMap(network())
    z, v, r, t, condition = inputs()
    whole = total_derivative(flow_map, z, r, t, v, condition)
    rows = torch.tensor([1, 4])
    part = total_derivative(flow_map, z[rows], r[rows], t[rows], v[rows], condition.select(rows))
    torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-4)


def test_derivative_is_float32_under_autocast() -> None:
    flow_map = FlowMap(network())
    z, v, r, t, condition = inputs()
    plain = total_derivative(flow_map, z, r, t, v, condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = total_derivative(flow_map, z, r, t, v, condition)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain)


def test_objective_with_separate_derivative_has_the_gradient_of_the_joint_one() -> None:
    """One ordinary forward plus a tangent without gradient equals torch.func.jvp kept in the graph, target detached."""
    net, (z, v, r, t, condition) = network(), inputs()
    flow_map = FlowMap(net)
    rows_velocity = v

    def gradient(compound: Tensor) -> list[Tensor]:
        loss = (compound - rows_velocity).square().sum()
        return torch.autograd.grad(loss, net.parameters(), allow_unused=True)

    u, _ = flow_map.velocities(z, r, t, condition)
    separate = gradient(u + per_image(t - r) * total_derivative(flow_map, z, r, t, v, condition))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        u, dudt = torch.func.jvp(
            lambda z, t: flow_map.velocities(z, r, t, condition)[0], (z, t), (v, torch.ones_like(t))
        )
    joint = gradient(u + per_image(t - r) * dudt.detach())
    for a, b in zip(separate, joint, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item() + 1e-6)


def test_meanflow_identity_holds_on_a_gaussian_flow() -> None:
    """u + (t - r) du/dt = v on the closed-form flow map of a Gaussian."""
    flow_map = FlowMap(ExactGaussianFlow(0.5), "velocity")
    z, _, r, t, _ = inputs(dtype=torch.float32)
    r = r.clamp(max=t - 0.05)
    u, v = flow_map.velocities(z, r, t, Condition())
    dudt = total_derivative(flow_map, z, r, t, v, Condition())
    torch.testing.assert_close(u + per_image(t - r) * dudt, v, rtol=1e-3, atol=1e-4)


def _functions() -> dict[str, Callable[..., Tensor]]:
    g = torch.Generator().manual_seed(5)
    weight, bias, plain = (torch.randn(*shape, generator=g) for shape in ((6, 8), (6,), (3, 4, 8)))
    kernel, mask = torch.randn(4, 4, 3, generator=g), torch.rand(4, 4, generator=g) < 0.7
    return {
        "sums": lambda x, y: 2 - (x + y) - plain + (3 * x - plain[0]) + torch.add(x, y, alpha=3) + (bias[0] - y[:, :1]),
        "broadcast": lambda x, y: (plain + x[:, :1]).sum(1) + torch.ones(5, 1, 1).add(x[0]).sum((0, 1)),
        "products": lambda x, y: x * y * plain / 7 + plain / (2 + x.square()) + x[:, :1] * y + x / (3 + y.abs()),
        "scaled sums": lambda x, y: (
            torch.addcmul(plain, x, y) * torch.addcmul(y, plain, plain) + torch.addcmul(x[:, :1], plain, y, value=2)
        ),
        "linear": lambda x, y: F.linear(x, weight, bias) @ weight + F.linear(plain, x[0, :2]).sum(-1, keepdim=True),
        "gates": lambda x, y: F.silu(x) * y.sigmoid() + F.gelu(x) + x.sin().exp() + x.clamp(min=0.1),
        "norms": lambda x, y: F.rms_norm(x, (8,)) + F.rms_norm(y, (8,), bias.repeat(2)[:8], 1e-3) + F.rms_norm(x, (4, 8)),
        "other norms": lambda x, y: F.layer_norm(x, (8,)) + F.group_norm(x, 2) + F.normalize(y, dim=-1),
        "attention": lambda x, y: F.scaled_dot_product_attention(x, y, x + y),
        "masked attention": lambda x, y: F.scaled_dot_product_attention(x, plain, y, attn_mask=mask, scale=0.3),
        "shapes": lambda x, y: torch.cat([x.reshape(3, 8, 4).mT, plain, y.flip(1)], 1).unflatten(2, (2, 4)).permute(2, 0, 1, 3),
        "parts": lambda x, y: torch.stack([*x.chunk(2, -1), *y.split(4, -1)]).sum(0).mean(1) + y.unbind(1)[2][..., :4],
        "convolution": lambda x, y: F.interpolate(F.conv1d(x, kernel, padding=1), scale_factor=2.0) + y.repeat(1, 1, 2),
    }  # fmt: skip


@pytest.mark.parametrize("name", _functions())
@pytest.mark.parametrize("both", [True, False])
def test_a_dual_is_value_and_directional_derivative(name: str, both: bool) -> None:
    """Against torch.func.jvp, with one argument that has a tangent and with two."""
    function = _functions()[name]
    x, y, x_tangent, y_tangent = torch.randn(4, 3, 4, 8, generator=torch.Generator().manual_seed(6))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, tangent = torch.func.jvp(function, (x, y), (x_tangent, y_tangent if both else torch.zeros_like(y)))
        dual = function(Dual.of(x, x_tangent), Dual.of(y, y_tangent) if both else y)
    torch.testing.assert_close(dual.primal, value)
    torch.testing.assert_close(tangent_of(dual), tangent, rtol=1e-4, atol=1e-5)
    assert tangent_of(dual).shape == dual.shape


def test_a_dual_refuses_what_works_in_place() -> None:
    for in_place in (torch.Tensor.add_, torch.Tensor.__iadd__, lambda x, y: F.relu(x, inplace=True)):
        with pytest.raises(NotImplementedError, match=r"objective\.derivative=difference"):
            in_place(Dual.of(torch.ones(2), torch.ones(2)), 1.0)


def test_difference_is_close_to_the_exact_derivative_and_stays_between_the_times() -> None:
    net, (z, v, r, t, condition) = network(), inputs(12)
    t[:3] = torch.tensor([1e-3, 0.5, 0.7])  # shorter than the step; at r, but for less than it; at r
    r[:3] = torch.tensor([0.0, 0.4995, 0.7])
    seen = []

    class Watched(FlowMap):
        def velocities(self, z: Tensor, r: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
            seen.append((r, t))
            return super().velocities(z, r, t, condition)

    flow_map = Watched(net)
    with torch.no_grad():
        u = flow_map.velocities(z, r, t, condition)[0]
    difference = total_difference(flow_map, u, z, r, t, v, condition, 2e-3)
    assert len(seen) == 2  # one pass beside that of the loss
    assert all(((r_now >= 0) & (t_now >= r_now)).all() for r_now, t_now in seen)
    exact = total_derivative(flow_map, z, r, t, v, condition)
    span = per_image(t - r)
    assert torch.isfinite(span * difference).all()
    error = (span * (difference - exact)).flatten(1).norm(dim=1) / (span * exact).flatten(1).norm(dim=1).clamp(min=1e-3)
    assert error.median() < 0.02
    assert error.max() < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the forward pass is then of no use
        rough = flow_map.velocities(z, r, t, condition)[0]
        reduced = total_difference(flow_map, rough, z, r, t, v, condition, 2e-3)
    torch.testing.assert_close(reduced, difference)


@pytest.mark.parametrize("objective_type", [MeanFlow, ImprovedMeanFlow, LagrangianSelfDistillation])
def test_gradients_with_difference_and_exact_derivative_agree(objective_type: type) -> None:
    net = network()
    image, source = torch.randn(2, 16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    gradients = []
    for derivative in ("exact", "difference"):
        net.zero_grad()
        objective = objective_type(derivative=derivative, difference_step=1e-3)
        objective(FlowMap(net), image, source, Condition(torch.zeros(16, 2, 8, 8)), randomness(16)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    exact, difference = gradients
    assert (difference - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("bad", [{"derivative": "central"}, {"difference_step": 1e-6}, {"difference_step": 0.5}])
def test_derivative_refuses_bad_values(bad: dict) -> None:
    for objective_type in (MeanFlow, ImprovedMeanFlow, LagrangianSelfDistillation):
        with pytest.raises(ValueError, match=rf"objective\.{next(iter(bad))}="):
            objective_type(**bad)
