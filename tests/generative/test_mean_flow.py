"""Flow maps: the derivative, the objectives' identities, and closed forms on flows that are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from flow_maps import ExactGaussianFlow, LinearFlow, LinearVelocity, Perceptron, inputs, network, randomness
from hydra.utils import instantiate
from torch import Tensor, nn

from generative.flow_map import MIN_TIME, FlowMap, per_image
from generative.objectives import (
    AdaptiveWeight,
    AlphaFlow,
    FlowMatching,
    ImprovedMeanFlow,
    LagrangianSelfDistillation,
    MeanFlow,
    ProgressiveSelfDistillation,
)
from generative.objectives.flow_map import FlowMapObjective, FlowSlice
from generative.objectives.weighting import squared_error
from generative.randomness import StepRandomness, generator_for
from generative.samplers import Euler, FlowMapSampler, Heun
from generative.schedules import TimeDistribution
from generative.types import Condition
from launch.compose import compose_config
from launch.resolvers import register_resolvers

OBJECTIVES = [
    MeanFlow,
    ImprovedMeanFlow,
    AlphaFlow,
    LagrangianSelfDistillation,
    ProgressiveSelfDistillation,
    FlowMatching,
]
OWN_TARGETS = [  # these hold u against the network's own velocity or flow map
    ImprovedMeanFlow(target="predicted"),
    ImprovedMeanFlow(target="predicted", derivative="difference"),
    LagrangianSelfDistillation(),
    LagrangianSelfDistillation(derivative="difference"),
    ProgressiveSelfDistillation(),
    ProgressiveSelfDistillation(middle="half"),
]


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


@pytest.mark.parametrize("sampler", [FlowMapSampler(1), FlowMapSampler(3), Euler(1), Euler(4), Heun(3)])
def test_samplers_are_exact_on_a_linear_flow(sampler: Euler) -> None:
    image = torch.rand(1, 1, 8, 8) * 2 - 1
    source = torch.randn(5, 1, 8, 8)
    result = sampler(FlowMap(LinearFlow(image)), source, Condition())
    torch.testing.assert_close(result, image.expand_as(source), rtol=1e-4, atol=1e-4)


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


class Stretched(ExactGaussianFlow):
    """The exact velocity, and an average one that is too long by a factor."""

    def __init__(self, data_std: float) -> None:
        super().__init__(data_std)
        self.factor = nn.Parameter(torch.tensor(1.3))

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        average, velocity = super().forward(z, times, condition)
        return self.factor * average, velocity


def test_predicted_target_agrees_with_the_conditional_one_in_expectation() -> None:
    """With the exact velocity, both targets give the same mean gradient; the predicted one has less variance."""
    flow_map, gradients = FlowMap(Stretched(0.5), "velocity"), dict[str, Tensor]()
    for target in ("conditional", "predicted"):
        objective = ImprovedMeanFlow(TimeDistribution(distinct_share=0.5), AdaptiveWeight(power=0.0), target=target)
        of_batches = []
        for seed in range(64):
            g = torch.Generator().manual_seed(seed)
            image, source = 0.5 * torch.randn(64, 1, 8, 8, generator=g), torch.randn(64, 1, 8, 8, generator=g)
            loss = objective(flow_map, image, source, Condition(), randomness(64, seed)).loss
            of_batches += torch.autograd.grad(loss, flow_map.network.factor)
        gradients[target] = torch.stack(of_batches)
    conditional, predicted = gradients["conditional"], gradients["predicted"]
    apart = conditional - predicted
    assert apart.mean().abs() < 3 * apart.std() / len(apart) ** 0.5
    assert predicted.mean() > 30 * apart.std() / len(apart) ** 0.5  # so a tenth more or less would be seen
    assert predicted.std() < conditional.std()


@pytest.mark.slow
def test_unbiased_weights_learn_the_mean_and_both_modes_of_a_mixture() -> None:
    """Modes at (1, 0) and (-1, 0), probabilities 0.65 and 0.35: the mean is 0.30, and samples keep the proportion."""
    register_resolvers()
    config = compose_config(["experiment=meanflow_dit", "objective.weight.magnitude=time"])
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


@pytest.mark.parametrize("objective", OWN_TARGETS, ids=range(len(OWN_TARGETS)))
def test_a_network_that_is_a_flow_map_agrees_with_itself(objective: FlowMapObjective) -> None:
    """The closed form of a Gaussian: no error row by row; half of it bent at r < t alone, there is one."""

    class Bent(ExactGaussianFlow):
        def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
            u, v = super().forward(z, times, condition)
            return u * (1 + 0.3 * per_image(times[:, 1])), v

    g = torch.Generator().manual_seed(3)
    image, source = 0.5 * torch.randn(256, 1, 8, 8, generator=g), torch.randn(256, 1, 8, 8, generator=g)
    errors = [
        objective(FlowMap(flow, "velocity"), image, source, Condition(), randomness(256)).logs["consistency_error"]
        for flow in (ExactGaussianFlow(0.5), Bent(0.5))
    ]
    assert errors[0] < 1e-4
    assert errors[1] > 20 * errors[0]
    assert errors[1] > 1e-4


class KnownVelocity(Perceptron):
    """The exact velocity of data N(0, s^2), and an average velocity to be learnt."""

    def __init__(self, data_std: float) -> None:
        super().__init__()
        self.flow = ExactGaussianFlow(data_std)

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return super().forward(z, times, condition)[0], self.flow(z, times, condition)[1]


@pytest.mark.parametrize(
    ("objective", "steps"),
    [
        (ImprovedMeanFlow(target="predicted", derivative="difference"), 200),
        (LagrangianSelfDistillation(derivative="difference"), 600),
        (ProgressiveSelfDistillation(middle="half"), 200),
        (ProgressiveSelfDistillation(middle="uniform"), 200),
    ],
    ids=["eulerian", "lagrangian", "progressive-half", "progressive-uniform"],
)
def test_one_step_of_a_learnt_flow_map_is_that_of_the_closed_form(objective: FlowMapObjective, steps: int) -> None:
    """The flow of data N(0, s^2) takes noise e to s e; at first one step of the network leaves it where it is."""
    torch.manual_seed(0)
    net, size, data_std = KnownVelocity(0.3), 128, 0.3
    flow_map, optimizer = FlowMap(net, "velocity"), torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    objective = replace(objective, weight=AdaptiveWeight(power=0.0), time_distribution=TimeDistribution(zero_share=0.3))
    for step in range(steps):
        g = generator_for(0, "data", step)
        image, source = torch.randn(2, size, 2, 1, 1, generator=g)
        loss = objective(flow_map, data_std * image, source, Condition(), StepRandomness(g, size), step / steps).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    source = torch.randn(2_000, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sample = FlowMapSampler(1)(flow_map, source, Condition())
    assert (sample - data_std * source).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_loss_does_not_grow_with_the_image(power: float) -> None:
    """Four copies of an image side by side are as hard as one."""
    image, source = torch.rand(8, 1, 4, 4) - 0.5, torch.randn(8, 1, 4, 4)
    objective = FlowMatching(weight=AdaptiveWeight(power, 1e-6))
    losses = [
        objective(
            FlowMap(LinearFlow(torch.zeros(1, 1, 4 * n, 4 * n))), image.repeat(1, 1, n, n), source.repeat(1, 1, n, n),
            Condition(), randomness(),
        ).loss
        for n in (1, 2)
    ]  # fmt: skip
    torch.testing.assert_close(*losses)


def test_rows_count_their_time_to_the_power() -> None:
    """Plain squared errors of a network that answers zero, by hand."""
    net = LinearFlow(torch.zeros(1, 1, 8, 8))
    image, source = torch.rand(8, 1, 8, 8) - 0.5, torch.randn(8, 1, 8, 8)
    weight, distribution = AdaptiveWeight(power=0.0), TimeDistribution(distinct_share=0.0, terminal_share=0.25)
    t = distribution(randomness()).t_B
    z = (1 - per_image(t)) * image + per_image(t) * source
    error = squared_error(z / per_image(t.clamp(min=MIN_TIME)), source - image)
    for power in (0.0, 1.0, 2.0):
        objective = FlowMatching(distribution, weight, power)
        expected = 2 * (error * t.clamp(min=MIN_TIME) ** power).mean() / 64
        torch.testing.assert_close(objective(FlowMap(net), image, source, Condition(), randomness()).loss, expected)


@pytest.mark.parametrize(
    "objective",
    [ImprovedMeanFlow(target="predicted"), LagrangianSelfDistillation(), ProgressiveSelfDistillation()],
    ids=lambda objective: type(objective).__name__,
)
def test_no_row_outweighs_the_others_however_far_it_is_from_consistency(objective: FlowMapObjective) -> None:
    """With power 1/2 a row's gradient on its prediction has a norm of at most 2, as that of the velocity head has."""
    objective = replace(objective, weight=AdaptiveWeight(power=0.5, magnitude="own"))
    error, time = 10.0 ** torch.arange(-3, 7), torch.linspace(0.1, 1, 10)
    velocity_factors = objective.weight.factors(torch.ones(10), time)
    factors = objective.consistency_factors(error, time, velocity_factors, 1.0)
    assert (2 * factors * error.sqrt()).max() <= 2
    assert torch.equal(factors[error <= 1], velocity_factors[error <= 1])  # one scale for both heads


def _consistency_gradient(objective: AlphaFlow, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the weighted consistency loss, prediction and target, at a given relative step."""
    net, (z, v, r, t, condition) = network(), inputs()
    flow_map = FlowMap(net, "velocity")
    progress = objective.midpoint + math.log(1 / alpha - 1) / objective.sharpness
    assert objective.alpha(progress) == pytest.approx(alpha)
    u, instantaneous = flow_map.velocities(z, r, t, condition)
    rows = FlowSlice(z, r, t, u, instantaneous.detach(), v, condition, progress, randomness(len(t)))
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


@pytest.mark.parametrize("sharpness", [20.0, 2000.0])
def test_alpha_goes_from_one_to_its_minimum(sharpness: float) -> None:
    objective = AlphaFlow(midpoint=0.5, minimum=0.05, sharpness=sharpness)
    assert objective.alpha(0.0) == pytest.approx(1.0, abs=1e-3)
    assert objective.alpha(0.5) == pytest.approx(0.5)
    assert objective.alpha(0.505) == pytest.approx(max(0.05, 1 / (1 + math.exp(0.005 * sharpness))))
    assert objective.alpha(1.0) == 0.05
    later = replace(objective, velocity_only_share=0.6)  # what follows is gone through whole
    for progress in (0.0, 0.3, 0.5, 0.505, 1.0):
        assert later.alpha(0.6 + 0.4 * progress) == pytest.approx(objective.alpha(progress), abs=1e-9)
    with pytest.raises(ValueError, match=r"objective\.sharpness=0"):
        AlphaFlow(sharpness=0)


def test_time_distribution_shares_and_order() -> None:
    pairs = TimeDistribution(distinct_share=0.25, terminal_share=0.125, zero_share=1.0)(randomness(64))
    assert pairs.num_distinct == 16
    assert (pairs.r_B[:16] == 0).all()
    assert (pairs.r_B[16:] == pairs.t_B[16:]).all()
    assert (pairs.t_B[-8:] == 1).all()
    assert ((pairs.t_B >= 0) & (pairs.t_B <= 1)).all()
    assert TimeDistribution()(randomness(64), distinct=False).num_distinct == 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_that_do_not_divide_a_small_batch_are_exact_on_average(size: int) -> None:
    kinds = torch.zeros(3)
    for seed in range(1000):
        pairs = TimeDistribution(distinct_share=0.35, terminal_share=0.3)(randomness(size, seed))
        distinct, terminal = pairs.r_B < pairs.t_B, pairs.r_B == 1
        assert distinct.sum() == pairs.num_distinct
        kinds += torch.tensor([distinct.sum(), terminal.sum(), size - distinct.sum() - terminal.sum()])
    torch.testing.assert_close(kinds / (1000 * size), torch.tensor([0.35, 0.3, 0.35]), atol=0.04, rtol=0)


def test_shares_that_rounding_keeps_have_the_same_rows_in_every_batch() -> None:
    for seed in range(8):
        plain, draws = randomness(32, seed), randomness(32, seed)
        pairs = TimeDistribution(distinct_share=0.35, terminal_share=0.3)(draws)
        assert (pairs.num_distinct, (pairs.r_B == 1).sum()) == (11, 10)
        first, second = (torch.sigmoid(plain.normal() - 0.4) for _ in range(2))
        assert torch.equal(pairs.t_B[:11], torch.maximum(first, second)[:11])
        assert torch.equal(pairs.t_B[11:22], first[11:22])


@pytest.mark.parametrize("objective", [*OWN_TARGETS, MeanFlow(), AlphaFlow()], ids=range(len(OWN_TARGETS) + 2))
def test_a_rank_of_one_image_calls_the_network_and_logs_alike_whatever_is_drawn(objective: FlowMapObjective) -> None:
    """Ranks that share the weights or log together would wait for each other."""
    net, calls, errors = network(), [], []
    net.register_forward_hook(lambda *_: calls.append(None))
    image, source = torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(2)).unbind()
    for seed in range(8):
        net.zero_grad()
        output = objective(FlowMap(net), image, source, Condition(torch.zeros(1, 2, 8, 8)), randomness(1, seed), 0.5)
        output.loss.backward()
        assert list(output.logs) == ["velocity_error", "consistency_error"]
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
        errors.append(output.logs["consistency_error"].item())
    assert 0 < errors.count(0) < 8  # none where the image has r = t
    assert len(calls) % 8 == 0


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
    torch.testing.assert_close(loss, 2 * image.square().mean())
