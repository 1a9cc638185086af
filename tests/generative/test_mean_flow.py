"""Flow maps: the derivative, the objectives' identities, and closed forms on flows that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from generative.flow_map import FlowMap, per_image
from generative.networks import DiT
from generative.objectives import AdaptiveWeight, AlphaFlow, FlowMatching, ImprovedMeanFlow, MeanFlow
from generative.objectives.flow_map import FlowMapObjective
from generative.objectives.mean_flow import total_derivative
from generative.randomness import StepRandomness, generator_for
from generative.samplers import Euler, FlowMapSampler, Heun
from generative.schedules import TimeLaw
from generative.types import Condition

OBJECTIVES = [MeanFlow, ImprovedMeanFlow, AlphaFlow, FlowMatching]


def randomness(size: int = 8, seed: int = 0) -> StepRandomness:
    return StepRandomness(generator_for(seed, "test"), size)


def network(dtype: torch.dtype = torch.float32) -> DiT:
    torch.manual_seed(0)
    net = DiT(
        image_size=8, in_channels=1, condition_channels=2, num_times=2, num_outputs=2, dim=32, depth=2, num_heads=2
    )
    for parameter in net.parameters():  # zero-initialised gates would hide most of the network
        nn.init.normal_(parameter, std=0.2)
    return net.to(dtype)


def inputs(size: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Condition]:
    g = torch.Generator().manual_seed(1)
    z, v = torch.randn(2, size, 1, 8, 8, generator=g, dtype=dtype)
    t = 0.3 + 0.6 * torch.rand(size, generator=g, dtype=dtype)
    r = t * torch.rand(size, generator=g, dtype=dtype)
    return z, v, r, t, Condition(torch.randn(size, 2, 8, 8, generator=g, dtype=dtype))


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


@pytest.mark.parametrize("objective_type", OBJECTIVES)
def test_every_objective_is_flow_matching_where_r_equals_t(objective_type: type[FlowMapObjective]) -> None:
    law = TimeLaw(distinct_share=0.0)
    image, source = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    condition = Condition(torch.zeros(8, 2, 8, 8))
    flow_map = FlowMap(network())
    losses = [
        kind(time_law=law)(flow_map, image, source, condition, randomness()).loss
        for kind in (objective_type, FlowMatching)
    ]
    torch.testing.assert_close(*losses)


class LinearFlow(nn.Module):
    """The exact flow map of a data set with one image x: u = v = (z - x) / t for all r."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return (self.image.expand_as(z), self.image.expand_as(z))


@pytest.mark.parametrize("sampler", [FlowMapSampler(1), FlowMapSampler(3), Euler(1), Euler(4), Heun(3)])
def test_samplers_are_exact_on_a_linear_flow(sampler: Euler) -> None:
    image = torch.rand(1, 1, 8, 8) * 2 - 1
    source = torch.randn(5, 1, 8, 8)
    result = sampler(FlowMap(LinearFlow(image)), source, Condition())
    torch.testing.assert_close(result, image.expand_as(source), rtol=1e-4, atol=1e-4)


class LinearVelocity(LinearFlow):
    """The same flow with velocity output, exact down to t = 0."""

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        velocity = (z - self.image) / per_image(times[:, 0])
        return velocity, velocity


@pytest.mark.parametrize("objective_type", OBJECTIVES)
def test_the_exact_flow_map_is_a_fixed_point(objective_type: type[FlowMapObjective]) -> None:
    """With one image the conditional velocity is the velocity: errors and gradients vanish at the exact flow map."""
    net = LinearVelocity(torch.rand(1, 1, 8, 8) * 2 - 1)
    objective = objective_type(weight=AdaptiveWeight(power=0.0))
    clean, source = net.image.detach().expand(64, -1, -1, -1), torch.randn(64, 1, 8, 8).clamp(-2, 2)
    output = objective(FlowMap(net, "velocity"), clean, source, Condition(), randomness(64), progress=0.9)
    output.loss.backward()
    assert output.loss < 1e-4
    assert net.image.grad.abs().max() < 1e-3


class ExactGaussianFlow(nn.Module):
    """Velocity and flow map of data ~ N(0, s^2) from noise ~ N(0, 1), independent pixels: both linear in z."""

    def __init__(self, data_std: float) -> None:
        super().__init__()
        self.data_std = data_std

    def std(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * self.data_std**2 + t**2).sqrt()

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        t, r = per_image(times[:, 0]), per_image(times[:, 0] - times[:, 1])
        velocity = z * (t - (1 - t) * self.data_std**2) / self.std(t) ** 2
        gap = (t - r).clamp(min=1e-6)
        average = (z - z * self.std(r) / self.std(t)) / gap
        return torch.where(t - r > 1e-6, average, velocity), velocity


def test_meanflow_identity_holds_on_a_gaussian_flow() -> None:
    """u + (t - r) du/dt = v on the closed-form flow map of a Gaussian."""
    flow_map = FlowMap(ExactGaussianFlow(0.5), "velocity")
    z, _, r, t, _ = inputs(dtype=torch.float32)
    r = r.clamp(max=t - 0.05)
    u, v = flow_map.velocities(z, r, t, Condition())
    dudt = total_derivative(flow_map, z, r, t, v, Condition())
    torch.testing.assert_close(u + per_image(t - r) * dudt, v, rtol=1e-3, atol=1e-4)


def test_one_step_and_many_steps_agree_on_a_gaussian_flow() -> None:
    flow_map = FlowMap(ExactGaussianFlow(0.5), "velocity")
    source = torch.randn(4, 1, 8, 8)
    one = FlowMapSampler(1)(flow_map, source, Condition())
    torch.testing.assert_close(one, 0.5 * source, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(FlowMapSampler(7)(flow_map, source, Condition()), one, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(Heun(64)(flow_map, source, Condition()), one, rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(Euler(512)(flow_map, source, Condition()), one, rtol=2e-2, atol=1e-2)


def test_mean_is_the_conditional_expectation_on_a_gaussian_flow() -> None:
    flow_map = FlowMap(ExactGaussianFlow(0.5), "velocity")
    mean = flow_map.mean(torch.randn(4, 1, 8, 8), Condition())
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-6, rtol=0)


def test_predicted_target_agrees_with_the_conditional_one_in_expectation() -> None:
    """With the exact velocity, both targets give the same mean gradient; the predicted one has less variance."""
    errors = {}
    flow = ExactGaussianFlow(0.5)
    for target in ("conditional", "predicted"):
        objective = ImprovedMeanFlow(TimeLaw(distinct_share=0.5), AdaptiveWeight(power=0.0), target=target)
        image = 0.5 * torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        source = torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(4))
        logs = objective(FlowMap(flow, "velocity"), image, source, Condition(), randomness(512)).logs
        errors[target] = logs["consistency_error"].item()
    assert errors["predicted"] < 1e-3 < errors["conditional"]


def test_adaptive_weight_closed_form() -> None:
    error = torch.tensor([0.5, 4.0], requires_grad=True)
    weighted = AdaptiveWeight(power=1.0, offset=0.1)(error)
    torch.testing.assert_close(weighted, torch.tensor([0.5 / 0.6, 4.0 / 4.1]))
    (gradient,) = torch.autograd.grad(weighted.sum(), error)
    torch.testing.assert_close(gradient, torch.tensor([1 / 0.6, 1 / 4.1]))
    torch.testing.assert_close(AdaptiveWeight(power=0.0)(error), error)


def test_alpha_goes_from_one_to_its_minimum() -> None:
    objective = AlphaFlow(midpoint=0.5, minimum=0.05)
    assert objective.alpha(0.0) == pytest.approx(1.0, abs=1e-3)
    assert objective.alpha(0.5) == pytest.approx(0.5)
    assert objective.alpha(1.0) == 0.05


def test_time_law_shares_and_order() -> None:
    pairs = TimeLaw(distinct_share=0.25, terminal_share=0.125, zero_share=1.0)(randomness(64))
    assert pairs.num_distinct == 16
    assert (pairs.r_B[:16] == 0).all()
    assert (pairs.r_B[16:] == pairs.t_B[16:]).all()
    assert (pairs.t_B[-8:] == 1).all()
    assert ((pairs.t_B >= 0) & (pairs.t_B <= 1)).all()
    assert TimeLaw()(randomness(64), distinct=False).num_distinct == 0


@pytest.mark.parametrize(
    "bad", [{"distribution": "normal"}, {"distinct_share": 1.2}, {"distinct_share": 0.9, "terminal_share": 0.2}]
)
def test_time_law_refuses_bad_values(bad: dict) -> None:
    with pytest.raises(ValueError, match="objective.time_law"):
        TimeLaw(**bad)


def test_the_mean_is_taught_at_its_own_state() -> None:
    """In the rows with r = t = 1 the network sees the mean state and its velocity head regresses the image."""
    seen: list[Tensor] = []

    class Recorder(LinearFlow):
        def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
            seen.append(z)
            return super().forward(z, times, condition)

    net = Recorder(torch.zeros(1, 1, 8, 8))
    objective = FlowMatching(TimeLaw(distinct_share=0.0, terminal_share=1.0), AdaptiveWeight(power=0.0))
    image, source = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    loss = objective(
        FlowMap(net), image, source, Condition(), randomness(4), mean_state_BCHW=torch.zeros_like(image)
    ).loss
    assert not seen[0].any()
    torch.testing.assert_close(loss, 2 * image.square().flatten(1).sum(1).mean())
