"""Flow maps: the derivative, the objectives' identities, and closed forms on flows that are known."""

from __future__ import annotations

import math

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from generative.flow_map import FlowMap, per_image
from generative.networks import DiT
from generative.objectives import AdaptiveWeight, AlphaFlow, FlowMatching, ImprovedMeanFlow, MeanFlow
from generative.objectives.flow_map import FlowMapObjective, FlowSlice
from generative.objectives.mean_flow import total_derivative
from generative.objectives.weighting import NUM_NEIGHBOURS, neighbours_error, squared_error
from generative.randomness import StepRandomness, generator_for
from generative.samplers import Euler, FlowMapSampler, Heun
from generative.schedules import TimeDistribution
from generative.types import Condition
from launch.compose import compose_config, register_resolvers

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
    distribution = TimeDistribution(distinct_share=0.0)
    image, source = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    condition = Condition(torch.zeros(8, 2, 8, 8))
    flow_map = FlowMap(network())
    losses = [
        kind(time_distribution=distribution)(flow_map, image, source, condition, randomness()).loss
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
        objective = ImprovedMeanFlow(TimeDistribution(distinct_share=0.5), AdaptiveWeight(power=0.0), target=target)
        image = 0.5 * torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        source = torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(4))
        logs = objective(FlowMap(flow, "velocity"), image, source, Condition(), randomness(512)).logs
        errors[target] = logs["consistency_error"].item()
    assert errors["predicted"] < 1e-3 < errors["conditional"]


def test_published_weight_closed_form() -> None:
    error, time = torch.tensor([0.5, 4.0]), torch.tensor([0.3, 1.0])
    own = AdaptiveWeight(power=1.0, offset=0.1, magnitude="own")
    torch.testing.assert_close(own.factors(error, time), torch.tensor([1 / 0.6, 1 / 4.1]))
    kept = own.factors(error, time, expectation_B=torch.tensor([False, True]))
    torch.testing.assert_close(kept, torch.tensor([1 / 0.6, 1 / 0.6]))  # by the error of the only other row
    for magnitude in ("own", "time"):
        plain = AdaptiveWeight(power=0.0, magnitude=magnitude)
        torch.testing.assert_close(plain.factors(error, time), torch.ones(2))
    with pytest.raises(ValueError, match=r"objective\.weight\.magnitude=batch"):
        AdaptiveWeight(magnitude="batch")


@pytest.mark.parametrize("size", [1, 2, 5, 9, 40])
def test_neighbours_are_the_other_rows_nearest_in_time(size: int) -> None:
    g = torch.Generator().manual_seed(size)
    time, error = torch.rand(size, generator=g), 10 * torch.rand(size, generator=g)
    time[size // 2 :] = 1.0  # as the rows that teach the mean
    found = neighbours_error(error, time)
    order = sorted(range(size), key=lambda row: (time[row].item(), row))
    for place, row in enumerate(order):
        first = max(0, min(place - NUM_NEIGHBOURS // 2, size - 1 - NUM_NEIGHBOURS))
        others = [other for other in order[first : first + NUM_NEIGHBOURS + 1] if other != row]
        expected = sum(error[other].item() for other in others) / len(others) if others else 1.0
        assert found[row].item() == pytest.approx(expected, rel=1e-5)
        changed = error.clone()
        changed[row] += 5
        assert neighbours_error(changed, time)[row] == found[row]


@pytest.mark.parametrize(
    ("weight", "likelier"),
    [
        (AdaptiveWeight(0.0), (0.62, 0.68)),
        (AdaptiveWeight(0.5, magnitude="time"), (0.62, 0.68)),
        (AdaptiveWeight(1.0, magnitude="time"), (0.62, 0.68)),
        (AdaptiveWeight(0.5, magnitude="own"), (0.95, 1.0)),  # the geometric median
        (AdaptiveWeight(1.0, magnitude="own"), (0.99, 1.0)),  # nearly a mode
    ],
)
def test_the_minimiser_is_the_mean_unless_a_row_weights_itself(
    weight: AdaptiveWeight, likelier: tuple[float, float]
) -> None:
    """A free estimate of one of two images with probabilities 0.65 and 0.35; the mean is 0.65 of the way."""
    g = torch.Generator().manual_seed(0)
    estimate = nn.Parameter(torch.full((100,), 0.5))
    optimizer = torch.optim.Adam([estimate], lr=0.02)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 400)
        target = (torch.rand(64, 1, generator=g) < 0.65).float().expand(-1, 100)
        error = (estimate - target).square().sum(1)
        loss = (error * weight.factors(error, torch.ones(64))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert likelier[0] < estimate.mean().item() < likelier[1]


class Perceptron(nn.Module):
    """A two-headed flow map of points in the plane."""

    def __init__(self) -> None:
        super().__init__()
        width = 96
        self.trunk = nn.Sequential(
            nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.heads = nn.Linear(width, 4)

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        u, v = self.heads(self.trunk(torch.cat([z.flatten(1), times], dim=1))).chunk(2, dim=1)
        return u.view_as(z), v.view_as(z)


@pytest.mark.slow
def test_the_default_learns_the_mean_and_both_modes_of_a_mixture() -> None:
    """Modes at (1, 0) and (-1, 0), probabilities 0.65 and 0.35: the mean is 0.30, and samples keep the proportion."""
    register_resolvers()
    config = compose_config(["experiment=meanflow_dit"])
    objective: FlowMapObjective = instantiate(config.objective, _convert_="all")
    torch.manual_seed(0)
    net, size, steps = Perceptron(), 512, 800
    flow_map = FlowMap(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        g = generator_for(0, "data", step)
        side = (torch.rand(size, generator=g) < 0.65).float() * 2 - 1
        image = 0.15 * torch.randn(size, 2, 1, 1, generator=g)
        image[:, 0, 0, 0] += side
        source, draws = torch.randn(size, 2, 1, 1, generator=g), StepRandomness(g, size)
        loss = objective(flow_map, image, source, Condition(), draws, step / steps, torch.zeros_like(image)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    source = torch.randn(20_000, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean = flow_map.mean(torch.zeros(1, 2, 1, 1), Condition())[0, 0].item()
        right = {s: (s(flow_map, source, Condition())[:, 0] > 0).float().mean() for s in (Euler(64), FlowMapSampler(1))}
    assert mean == pytest.approx(0.30, abs=0.03)
    for share in right.values():
        assert share.item() == pytest.approx(0.65, abs=0.05)


def _consistency_gradient(objective: AlphaFlow, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the weighted consistency loss, prediction and target, at a given relative step."""
    net, (z, v, r, t, condition) = network(), inputs()
    flow_map = FlowMap(net, "velocity")
    progress = objective.midpoint + math.log(1 / alpha - 1) / objective.sharpness
    assert objective.alpha(progress) == pytest.approx(alpha)
    u, instantaneous = flow_map.velocities(z, r, t, condition)
    rows = FlowSlice(z, r, t, u, instantaneous.detach(), v, condition, progress)
    prediction, target = objective.consistency(flow_map, rows)
    error = squared_error(prediction, target)
    loss = (error * objective.consistency_factors(error, t, torch.ones_like(t), progress)).mean()
    gradients = torch.autograd.grad(loss, net.parameters(), retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None]), prediction, target


@pytest.mark.parametrize("power", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("magnitude", ["time", "own"])
def test_alpha_flow_keeps_its_consistency_loss_as_alpha_falls(power: float, magnitude: str) -> None:
    objective = AlphaFlow(weight=AdaptiveWeight(power, 1e-4, magnitude), minimum=0.005)
    norms = [_consistency_gradient(objective, alpha)[0].norm() for alpha in (0.1, 0.03, 0.01)]
    for norm in norms[1:]:
        assert 0.6 < norm / norms[0] < 1.7  # with the plain factor alpha and power 0.5 it would fall tenfold


def test_alpha_flow_with_the_published_weight_has_the_published_gradient() -> None:
    """alpha L / sg[L + c], the loss of AlphaFlow (arXiv 2510.20771) with power 1."""
    objective = AlphaFlow(weight=AdaptiveWeight(1.0, 0.01, "own"))
    for alpha in (0.9, 0.3, 0.06):
        gradient, prediction, target = _consistency_gradient(objective, alpha)
        direction = 2 * (prediction - target).detach()
        error = (prediction - target).detach().square().flatten(1).sum(1)
        weight = per_image(alpha / (error + 0.01)) / len(error)
        net = network()
        z, _, r, t, condition = inputs()
        u = FlowMap(net, "velocity").velocities(z, r, t, condition)[0]
        published = torch.autograd.grad((u * direction * weight).sum(), net.parameters(), allow_unused=True)
        published = torch.cat([g.flatten() for g in published if g is not None])
        torch.testing.assert_close(gradient, published, rtol=1e-4, atol=1e-5 * published.abs().max().item())


def test_alpha_goes_from_one_to_its_minimum() -> None:
    objective = AlphaFlow(midpoint=0.5, minimum=0.05)
    assert objective.alpha(0.0) == pytest.approx(1.0, abs=1e-3)
    assert objective.alpha(0.5) == pytest.approx(0.5)
    assert objective.alpha(1.0) == 0.05


def test_time_distribution_shares_and_order() -> None:
    pairs = TimeDistribution(distinct_share=0.25, terminal_share=0.125, zero_share=1.0)(randomness(64))
    assert pairs.num_distinct == 16
    assert (pairs.r_B[:16] == 0).all()
    assert (pairs.r_B[16:] == pairs.t_B[16:]).all()
    assert (pairs.t_B[-8:] == 1).all()
    assert ((pairs.t_B >= 0) & (pairs.t_B <= 1)).all()
    assert TimeDistribution()(randomness(64), distinct=False).num_distinct == 0


@pytest.mark.parametrize(
    "bad", [{"distribution": "normal"}, {"distinct_share": 1.2}, {"distinct_share": 0.9, "terminal_share": 0.2}]
)
def test_time_distribution_refuses_bad_values(bad: dict) -> None:
    with pytest.raises(ValueError, match="objective.time_distribution"):
        TimeDistribution(**bad)


def test_the_mean_is_taught_at_its_own_state() -> None:
    """In the rows with r = t = 1 the network sees the mean state and its velocity head regresses the image."""
    seen: list[Tensor] = []

    class Recorder(LinearFlow):
        def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
            seen.append(z)
            return super().forward(z, times, condition)

    net = Recorder(torch.zeros(1, 1, 8, 8))
    objective = FlowMatching(TimeDistribution(distinct_share=0.0, terminal_share=1.0), AdaptiveWeight(power=0.0))
    image, source = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    loss = objective(
        FlowMap(net), image, source, Condition(), randomness(4), mean_state_BCHW=torch.zeros_like(image)
    ).loss
    assert not seen[0].any()
    torch.testing.assert_close(loss, 2 * image.square().flatten(1).sum(1).mean())
