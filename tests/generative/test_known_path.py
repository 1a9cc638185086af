"""Known pixels stay on their own path under every sampler, and learnt guidance is the fixed point that its source says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.denoiser import Denoiser
from generative.flow_map import FlowMap, per_image
from generative.guidance import TrainedGuidance
from generative.inpainting import KnownPixels
from generative.objectives import AdaptiveWeight, FlowMatching
from generative.objectives.flow_map import _guiding
from generative.randomness import IndexRandomness, StepRandomness, generator_for
from generative.samplers import DDIM, Ancestral, DPMSolverPP2M, Euler, FlowMapSampler, Heun
from generative.schedules import NoiseSchedule
from generative.types import Condition

SIZE = 6


def wild(x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    """Answer with what no image is."""
    return 3 * x.sin() + per_image(times[:, 0]), x.cos() * 2


@pytest.fixture
def known() -> KnownPixels:
    g = torch.Generator().manual_seed(0)
    return KnownPixels(
        torch.rand(SIZE, 3, 8, 8, generator=g) * 2 - 1, (torch.rand(SIZE, 1, 8, 8, generator=g) < 0.5).float()
    )


def draws(purpose: str) -> IndexRandomness:
    return IndexRandomness.for_images(0, purpose, torch.arange(SIZE))


@pytest.mark.parametrize("sampler", [FlowMapSampler(4), Euler(4), Heun(4), FlowMapSampler(1)])
@pytest.mark.parametrize("output", ["image", "velocity"])
def test_a_flow_map_keeps_known_pixels_on_the_straight_line_to_their_noise(
    sampler: FlowMapSampler, output: str, known: KnownPixels
) -> None:
    noise = draws("noise").normal(3, 8, 8)
    flow_map = known.in_flow_map(FlowMap(wild, output))
    pixels = known.validity.bool().expand_as(noise)
    for r, state in zip(sampler.times[1:], sampler.states(flow_map, noise, Condition()), strict=True):
        line = (1 - r) * known.image + r * noise
        torch.testing.assert_close(state.z[pixels], line[pixels], atol=2e-6, rtol=0)
        assert not torch.allclose(state.z[~pixels], line[~pixels], atol=0.1)


@pytest.mark.parametrize("sampler", [DDIM(5), DPMSolverPP2M(5), DDIM(5, eta=1.0), Ancestral(5)])
def test_a_denoiser_keeps_known_pixels_noised_as_the_schedule_says(sampler: DDIM, known: KnownPixels) -> None:
    schedule = NoiseSchedule("cosine", zero_terminal_snr=True)
    noise = draws("noise").normal(3, 8, 8)
    denoiser = known.in_denoiser(Denoiser(wild, schedule, "image"))
    pixels = known.validity.bool().expand_as(noise)
    *path, last = sampler.states(denoiser, noise, Condition(), draws("path"))
    torch.testing.assert_close(last.z[pixels], known.image[pixels], atol=1e-6, rtol=0)
    for timestep, state in zip(sampler.timesteps(schedule)[1:], path, strict=True):
        level = schedule.level(timestep)
        rest = (state.z - level.signal * known.image)[pixels] / level.noise  # standard normal noise
        if isinstance(sampler, DPMSolverPP2M) or getattr(sampler, "eta", 1.0) == 0:
            torch.testing.assert_close(rest, noise[pixels], atol=1e-4, rtol=0)  # of the start, all the way
        assert rest.mean().item() == pytest.approx(0, abs=0.12)
        assert rest.std().item() == pytest.approx(1, abs=0.1)


def labelled(share: Tensor) -> Condition:
    return Condition(labels=torch.ones(SIZE, 1), guidance=share)


def test_guided_velocities_are_the_fixed_point_of_what_is_learnt() -> None:
    """Of u + w (c - u) at any scale w (improved MeanFlow, arXiv 2512.02012)."""
    c, u = 1.7, -0.4
    scale = torch.tensor([1.0, 1.5, 2.0, 3.0, 5.0, 8.0])

    def network(x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        if condition.labels is None:
            assert not times[:, 2].any()
            velocity = torch.full_like(x, u)
        else:
            velocity = torch.full_like(x, u) + (c - u) / per_image(1 - times[:, 2])
        return velocity, velocity

    flow_map, condition = FlowMap(network, "velocity", guided=True), labelled(1 - 1 / scale)
    z, t = torch.zeros(SIZE, 1, 2, 2), torch.full((SIZE,), 0.3)
    own = flow_map.velocities(z, t, t, condition)[1]
    torch.testing.assert_close(c + _guiding(flow_map, z, t, own, condition), own)
    torch.testing.assert_close(own[:, 0, 0, 0], u + scale * (c - u))


def test_scales_are_drawn_up_to_the_largest_and_are_none_without_labels() -> None:
    randomness = StepRandomness(generator_for(0, "objective"), 4000)
    labels = torch.eye(4000, 2) + torch.tensor([0.0, 1.0])
    labels[::4] = 0
    share = TrainedGuidance(scale=2.0, largest=5.0).draw(labels, randomness)
    assert not share[::4].any()
    drawn = 1 / (1 - share[labels.any(dim=1)])
    assert drawn.min() >= 1
    assert drawn.max() <= 5
    assert drawn.median().item() == pytest.approx(1 / (1 - 0.4), rel=0.05)  # density 1/w^2: the middle of [0, 0.8]
    assert TrainedGuidance(scale=2.0).shares(labels[:3]).tolist() == [0.5] * 3
    for bad in ({"scale": 0.5}, {"scale": 9.0}, {"largest": 1.0}):
        with pytest.raises(ValueError, match=r"guidance\."):
            TrainedGuidance(**bad)


def test_a_loss_with_guidance_learns_the_guided_velocity() -> None:
    """One number for each scale, learnt by flow matching, ends at u + w (c - u)."""
    c, u = 0.9, 0.2
    answers = torch.nn.Parameter(torch.zeros(3))  # without labels, at scale 1, at scale 2

    def network(x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        row = torch.zeros(len(x), dtype=torch.int64)
        if condition.labels is not None:
            row = torch.where(condition.labels[:, 0] > 0, 1 + (times[:, 2] > 0.25).long(), row)
        velocity = per_image(answers[row]).expand_as(x)
        return velocity, velocity

    flow_map, objective = FlowMap(network, "velocity", guided=True), FlowMatching(weight=AdaptiveWeight(power=0.0))
    optimizer = torch.optim.SGD([answers], lr=0.2)
    labels = torch.tensor([[0.0], [1.0], [1.0]]).repeat(4, 1)
    condition = Condition(labels=labels, guidance=torch.tensor([0.0, 0.0, 0.5]).repeat(4))
    velocity = torch.where(labels[:, 0] > 0, c, u)
    image = -per_image(velocity).expand(12, 1, 2, 2)
    for step in range(400):
        optimizer.zero_grad()
        randomness = StepRandomness(generator_for(0, "objective", step), 12)
        objective(flow_map, image, torch.zeros_like(image), condition, randomness).loss.backward()
        optimizer.step()
    torch.testing.assert_close(answers.detach(), torch.tensor([u, c, u + 2 * (c - u)]), atol=0.02, rtol=0)
