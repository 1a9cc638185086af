"""The exact network in every sampler: all error is the solver's, and each keeps the limits that it states."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from elsewhere import Elsewhere, SecondDevice, away
from hydra.utils import get_class, instantiate
from torch import Tensor

from generative.degradations import BlockMask, Degradation, Downsample
from generative.denoiser import Denoiser
from generative.flow_map import FlowMap
from generative.networks import ExactNetwork
from generative.randomness import StepRandomness, generator_for
from generative.samplers import Ancestral, DiffusionSampler, FlowMapSampler, FlowSampler
from generative.schedules import NoiseSchedule
from generative.truth import DiscOnField, GaussianField, GaussianMixture, posteriors
from generative.types import Condition, restoration_condition
from launch.compose import compose_config
from launch.options import targets

SIZE, N = 4, 4096
FIELD = GaussianField(SIZE, correlation_length=0.4)  # inside the hole the posterior is half as wide as the data
HOLE = BlockMask(2)
SCHEDULE = NoiseSchedule("cosine", zero_terminal_snr=True)
SAMPLERS = {
    option: kind
    for option, (target, _) in targets("sampler").items()
    if issubclass(kind := get_class(target), DiffusionSampler | FlowSampler)
}


def randomness(size: int = N) -> StepRandomness:
    return StepRandomness(generator_for(0, "test"), size)


def problem(prior: GaussianField, size: int = N) -> tuple[Condition, Tensor, GaussianMixture]:
    """One image with a hole in its middle, many times: its condition, the hole and the posterior."""
    image = prior.draw(torch.Generator().manual_seed(3), 1).float()
    validity = torch.ones(1, 1, SIZE, SIZE)
    validity[..., 1:3, 1:3] = 0
    ((_, law),) = posteriors(prior.law, HOLE, image * validity, validity)
    condition = restoration_condition(image * validity, validity).image
    return Condition(condition.expand(size, -1, -1, -1)), (validity == 0).flatten(), law


def sampled(sampler: DiffusionSampler | FlowSampler, prior: GaussianField, condition: Condition, output: str) -> Tensor:
    assert condition.image is not None
    draws = randomness(len(condition.image))
    noise = draws.normal(prior.channels, SIZE, SIZE)
    if isinstance(sampler, FlowSampler):
        flow_map = FlowMap(ExactNetwork(prior, HOLE, None, output, 2, 2, 2), output)
        return sampler(flow_map, noise, condition)
    denoiser = Denoiser(ExactNetwork(prior, HOLE, SCHEDULE, output, condition_channels=2), SCHEDULE, output)
    return replace(sampler, threshold="none")(denoiser, noise, condition, draws)


def bias_and_spread(sample: Tensor, hole: Tensor, law: GaussianMixture) -> tuple[float, float]:
    """Root mean square error of the mean in standard deviations of the posterior, and standard deviation over the true one."""
    pixels, variance = sample.flatten(2)[..., hole].double(), law.variance_BCP[..., hole]
    bias = (pixels.mean(0) - law.mean_BCP[0][..., hole]) / variance[0].sqrt()
    return bias.square().mean().sqrt().item(), (pixels.var(0).mean() / variance.mean()).sqrt().item()


def test_the_hole_is_as_wide_as_the_samplers_say() -> None:
    _, hole, law = problem(FIELD)
    assert law.variance_BCP[..., hole].mean().sqrt().item() == pytest.approx(FIELD.std / 2, rel=0.15)


@pytest.mark.parametrize("option", SAMPLERS)
def test_every_sampler_keeps_the_limit_that_it_states(option: str) -> None:
    assert SAMPLERS[option].sufficient_steps is not None, f"sampler={option} states no sufficient_steps"
    sampler = replace(compose_sampler(option), num_steps=SAMPLERS[option].sufficient_steps)
    condition, hole, law = problem(FIELD)
    output = "image" if isinstance(sampler, FlowSampler) else "v"
    bias, spread = bias_and_spread(sampled(sampler, FIELD, condition, output), hole, law)
    assert bias <= 0.03
    assert 0.95 <= spread <= 1.05


def compose_sampler(option: str) -> DiffusionSampler | FlowSampler:
    module = "ddpm" if issubclass(SAMPLERS[option], DiffusionSampler) else "meanflow"
    return instantiate(compose_config([f"module={module}", f"sampler={option}"]).sampler)


@dataclass(frozen=True)
class Wrong(Ancestral):
    """Draws noise of half the variance that it should have."""

    def step(self, before, now, then):
        factors = super().step(before, now, then)
        return factors._replace(noise=factors.noise / math.sqrt(2))


def test_a_wrong_sampler_is_caught() -> None:
    condition, hole, law = problem(FIELD)
    for kind, least, most in ((Ancestral, 0.95, 1.05), (Wrong, 0.5, 0.85)):
        _, spread = bias_and_spread(sampled(kind(40, variance="large"), FIELD, condition, "v"), hole, law)
        assert least < spread < most


@pytest.mark.parametrize("output", ["noise", "image", "v"])
def test_each_output_of_a_diffusion_means_the_same(output: str) -> None:
    condition, _, law = problem(FIELD, 6)
    schedule = replace(SCHEDULE, zero_terminal_snr=False)
    z, timestep = randomness(6).normal(1, SIZE, SIZE), torch.tensor([0, 10, 300, 600, 900, 999])
    denoiser = Denoiser(ExactNetwork(FIELD, HOLE, schedule, output, condition_channels=2), schedule, output)
    signal, level = schedule.signal(timestep)[:, 0, 0, 0].double(), schedule.noise_level(timestep)[:, 0, 0, 0].double()
    expected, _ = law.expected(z.flatten(2).double(), signal, level)
    image = denoiser.predict(z, timestep, condition).image
    torch.testing.assert_close(image.flatten(2).double(), expected, atol=5e-3 if output == "noise" else 1e-4, rtol=1e-3)


def test_one_jump_of_a_flow_map_is_its_flow() -> None:
    """Of two answers too: in one step and in two, of velocity and of image output, the same samples, of both modes."""
    prior = DiscOnField(SIZE, radius=0.25)
    condition, hole, law = problem(prior, 300)
    one = sampled(FlowMapSampler(1), prior, condition, "velocity")
    torch.testing.assert_close(sampled(FlowMapSampler(2), prior, condition, "image"), one, atol=2e-3, rtol=0)
    bias, spread = bias_and_spread(one, hole, law)
    assert bias <= 0.15
    assert spread == pytest.approx(1, abs=0.1)


def test_the_answer_at_the_last_time_is_the_posterior_mean() -> None:
    condition, _, law = problem(FIELD, 2)
    noise, mean = randomness(2).normal(1, SIZE, SIZE), law.mean_BCP.view(1, 1, SIZE, SIZE).float().expand(2, -1, -1, -1)
    denoiser = Denoiser(ExactNetwork(FIELD, HOLE, SCHEDULE, "v", condition_channels=2), SCHEDULE, "v")
    torch.testing.assert_close(denoiser.predict(noise, 999, condition).image, mean)
    flow_map = FlowMap(ExactNetwork(FIELD, HOLE, None, "velocity", 2, 2, 2), "velocity")
    torch.testing.assert_close(flow_map.mean(noise, condition), mean)
    (regression,) = ExactNetwork(FIELD, HOLE, None, "image", 2, 1, 2)(
        noise * 0, torch.tensor([[1.0, 0.0]] * 2), condition
    )
    torch.testing.assert_close(regression, mean)


def test_rows_do_not_depend_on_each_other() -> None:
    """Several holes in a batch, and another condition after it."""
    prior, degradation = GaussianField(8, 3), BlockMask(3)
    network = ExactNetwork(prior, degradation, SCHEDULE, "v", condition_channels=4)
    image = prior.draw(torch.Generator().manual_seed(0), 5).float()
    y, validity, _ = degradation(image, randomness(5))
    z, times, condition = randomness(5).normal(3, 8, 8), torch.full((5, 1), 0.6), restoration_condition(y, validity)
    (together,) = network(z, times, condition)
    rows = torch.tensor([3, 1])
    (alone,) = network(z[rows], times[rows], condition.select(rows))
    torch.testing.assert_close(alone, together[rows])


@pytest.mark.parametrize(
    ("prior", "degradation", "message"),
    [(None, None, "choose data=gauss or data=mixture"), (FIELD, None, "needs to know what degraded the images")],
)
def test_what_the_exact_network_needs(
    prior: GaussianField | None, degradation: Degradation | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ExactNetwork(prior, degradation, SCHEDULE)(
            torch.zeros(1, 1, 4, 4), torch.ones(1, 1), Condition(torch.zeros(1, 2, 4, 4))
        )
    with pytest.raises(ValueError, match="knows no labels"):
        ExactNetwork(FIELD, Downsample(2), label_factors=[10])


@pytest.mark.parametrize("output", ["v", "velocity"])
def test_it_answers_where_it_is_asked_on_another_device(output: str) -> None:
    condition, _, _ = problem(FIELD, 3)
    assert condition.image is not None
    schedule = SCHEDULE if output == "v" else None
    times = torch.full((3, 1 if schedule else 2), 0.5)
    here, there = (ExactNetwork(FIELD, HOLE, schedule, output, times.shape[1], times.shape[1], 2) for _ in range(2))
    z = randomness(3).normal(1, SIZE, SIZE)
    here = here(z, times, condition)
    with SecondDevice():
        there = there(away(z), away(times), Condition(away(condition.image)))
    assert all(isinstance(answer, Elsewhere) for answer in there)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
