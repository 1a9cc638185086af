"""The MeanFlow restorer: where its flow starts, what its network sees, what its draws depend on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from generative.networks import ContextUNet, DiT, UNet
from generative.objectives import AlphaFlow, FlowMatching, ImprovedMeanFlow
from generative.objectives.flow_map import FlowMapObjective
from generative.randomness import StepRandomness, generator_for
from generative.samplers import Euler, FlowMapSampler, FlowSampler, Heun
from generative.schedules import TimeDistribution
from generative.types import Batch, Condition
from lightning_modules import MeanFlow, RegressionRestorer


class Spy(nn.Module):
    """Remembers what it was shown; answers with the state itself, so that every velocity is zero for image output."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.heads = heads
        self.seen: list[tuple[Tensor, Tensor, Condition]] = []

    def forward(self, x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        self.seen.append((x.detach(), times.detach(), condition))
        return (x * self.scale,) * self.heads


class Rounded(Spy):
    """Its heads give bfloat16, as a network's last layer does under autocast."""

    def forward(self, x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        return tuple(head.bfloat16() for head in super().forward(x, times, condition))


def restorer(network: nn.Module | None = None, **kwargs: object) -> MeanFlow:
    return MeanFlow(
        network or Spy(), ImprovedMeanFlow(), FlowMapSampler(1),
        optimizer=partial(torch.optim.AdamW), learning_rate_factor=lambda step: 1.0, total_steps=10, **kwargs,
    )  # fmt: skip


def batch(size: int = 4) -> Batch:
    g = torch.Generator().manual_seed(0)
    clean, degraded = (torch.rand(2, size, 1, 8, 8, generator=g) * 2 - 1).unbind()
    validity = (torch.rand(size, 1, 8, 8, generator=g) < 0.5).float()
    return Batch(clean, torch.arange(size), degraded=degraded, validity=validity)


def test_the_restorer_starts_from_noise_and_sees_degraded_image_and_validity() -> None:
    module, data = restorer(), batch()
    module.sample(data, module.evaluation_randomness(data))
    (state, *_), (source, times, condition) = module.network.seen
    assert not state.any()  # the mean is asked for at the noise's own mean, so that it does not depend on the draw
    assert torch.equal(source, module.evaluation_randomness(data).normal(1, 8, 8))
    assert torch.equal(condition.image, torch.cat([data.degraded, data.validity], dim=1))
    assert (times[:, 0] == 1).all()


def test_the_bridge_starts_from_the_degraded_image_and_sees_nothing_else() -> None:
    module, data = restorer(source="degraded", sees_degraded=False), batch()
    outputs = module.sample(data, module.evaluation_randomness(data))
    source, _, condition = module.network.seen[0]
    assert torch.equal(source, data.degraded)
    assert condition.image is None
    assert torch.equal(outputs["sample"], data.degraded)  # the spy moves nothing


def test_draws_depend_on_the_index_alone() -> None:
    module, data = restorer(), batch()
    whole = module.sample(data, module.evaluation_randomness(data))["sample"]
    rows = torch.tensor([3, 1])
    part = data.select(rows)
    assert torch.equal(module.sample(part, module.evaluation_randomness(part))["sample"], whole[rows])


def test_known_pixels_are_put_back_exactly() -> None:
    module, data = restorer(reimpose_known=True), batch()
    for image in module.sample(data, module.evaluation_randomness(data)).values():
        known = data.validity.bool()
        assert torch.equal(image[known], data.degraded[known])
        assert not torch.equal(image, data.degraded)


@pytest.mark.parametrize("module", [
    restorer(Rounded(), output="velocity", known_in_path=True, reimpose_known=True, mean_weight=0.5),
    RegressionRestorer(
        Rounded(heads=1), reimpose_known=True,
        optimizer=partial(torch.optim.AdamW), learning_rate_factor=lambda step: 1.0, total_steps=10,
    ),
], ids=["flow", "regression"])  # fmt: skip
def test_what_comes_rounded_out_of_a_network_is_of_the_images_own_kind(module: MeanFlow | RegressionRestorer) -> None:
    data = batch()
    for image in module.sample(data, module.evaluation_randomness(data)).values():
        assert image.dtype == torch.float32
        assert torch.equal(image[data.validity.bool()], data.degraded[data.validity.bool()])


@pytest.mark.parametrize(
    ("objective", "sampler", "refused"),
    [
        (FlowMatching(), FlowMapSampler(1), True),
        (FlowMatching(velocity_only_share=0.0), FlowMapSampler(4), True),
        (ImprovedMeanFlow(TimeDistribution(distinct_share=0.0)), FlowMapSampler(1), True),
        (AlphaFlow(velocity_only_share=1.0), FlowMapSampler(1), True),
        (FlowMatching(), Euler(4), False),
        (FlowMatching(), Heun(4), False),
        (AlphaFlow(velocity_only_share=0.9), FlowMapSampler(1), False),
    ],
)
def test_a_sampler_by_an_average_velocity_that_nothing_teaches_is_refused(
    objective: FlowMapObjective, sampler: FlowSampler, refused: bool
) -> None:
    module = restorer()
    module.objective, module.sampler = objective, sampler
    with pytest.raises(ValueError, match=r"set sampler=heun or sampler=euler\.$") if refused else nullcontext():
        module.check_training()


def test_a_difference_of_passes_is_refused_with_dropout() -> None:
    settings = {"optimizer": partial(torch.optim.AdamW), "learning_rate_factor": lambda step: 1.0, "total_steps": 10}
    for share, derivative, refused in ((0.1, "difference", True), (0.1, "exact", False), (0.0, "difference", False)):
        network = nn.Sequential(Spy(), nn.Dropout(share))
        module = MeanFlow(network, ImprovedMeanFlow(derivative=derivative), FlowMapSampler(1), **settings)
        with pytest.raises(ValueError, match=r"network\.dropout=0") if refused else nullcontext():
            module.check_training()


@pytest.mark.parametrize(
    ("network", "step", "refused"),
    [
        (partial(DiT, 8, 1, patch_size=4, dim=8, depth=1, num_heads=1), 2e-3, None),
        (partial(DiT, 8, 1, patch_size=4, dim=8, depth=1, num_heads=1), 2e-2, r"0\.2 radians"),
        (partial(UNet, 8, 1, base_channels=8, channel_multipliers=[1], num_groups=4, head_dim=8), 2e-3, "2 radians"),
        (partial(UNet, 8, 1, base_channels=8, channel_multipliers=[1], num_groups=4, head_dim=8), 1e-4, None),
        (partial(ContextUNet, 8, 1, base_channels=8), 2e-3, "without batch norm"),
    ],
)
def test_a_difference_that_is_no_derivative_is_refused(
    network: Callable[..., nn.Module], step: float, refused: str | None
) -> None:
    settings = {"optimizer": partial(torch.optim.AdamW), "learning_rate_factor": lambda step: 1.0, "total_steps": 10}
    for derivative in ("difference", "exact"):
        objective = ImprovedMeanFlow(derivative=derivative, difference_step=step)
        module = MeanFlow(network(num_times=2, num_outputs=2), objective, FlowMapSampler(1), **settings)
        stops = refused and derivative == "difference"
        with pytest.raises(ValueError, match=f"{refused}.*set objective.derivative=exact") if stops else nullcontext():
            module.check_training()


def test_the_slider_blends_sample_and_mean() -> None:
    data = batch()
    low, half, high = (restorer(mean_weight=w) for w in (0.0, 0.5, 1.0))
    for module in (low, half, high):
        module.sampler = lambda flow_map, source, condition: source / 4  # unlike the mean, and inside [-1, 1]
    draws = [m.sample(data, m.evaluation_randomness(data)) for m in (low, half, high)]
    mean = low.flow_map.mean(torch.zeros_like(data.image), Condition())
    expected = (0.5 * low.evaluation_randomness(data).normal(1, 8, 8) / 4 + 0.5 * mean).clamp(-1, 1)
    torch.testing.assert_close(draws[1]["sample"], expected)
    torch.testing.assert_close(draws[2]["sample"], draws[2]["mean"])


def test_undegraded_batches_are_refused_with_the_remedy() -> None:
    module, data = restorer(), batch()
    data.degraded = None
    with pytest.raises(ValueError, match="degradation=mixed"):
        module.sample(data, module.evaluation_randomness(data))


def test_regression_minimises_squared_error() -> None:
    module = RegressionRestorer(
        Spy(heads=1), optimizer=partial(torch.optim.AdamW), learning_rate_factor=lambda step: 1.0, total_steps=10
    )
    data = batch()
    loss = module.loss(data, StepRandomness(generator_for(0, "x"), 4)).loss
    torch.testing.assert_close(loss, data.image.square().mean())  # the spy answers with its zero input
    assert set(module.sample(data, module.evaluation_randomness(data))) == {"mean"}
