"""Restoration without training, against the exact posterior of a Gaussian field whose denoiser is exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.degradations import BlockMask, Degradation, Downsample, GaussianNoise, Jpeg, Observation, Sequential
from generative.denoiser import Denoiser
from generative.inpainting import KnownPixels
from generative.metrics.exact_posterior import squared_wasserstein
from generative.networks import ExactNetwork
from generative.posterior_guidance import DPS, MMPS, PiGDM, PosteriorGuidance, RePaint, conjugate_gradients
from generative.randomness import IndexRandomness, StepRandomness, generator_for
from generative.samplers import DDIM, Ancestral, DiffusionSampler, DPMSolverPP2M
from generative.schedules import NoiseSchedule
from generative.truth import GaussianField
from generative.types import Condition

SIZE = 4
FIELD = GaussianField(SIZE, correlation_length=0.4)
VALIDITY = torch.ones(1, 1, SIZE, SIZE)
VALIDITY[..., 1:3, 1:3] = 0
SCHEDULE = NoiseSchedule("cosine", zero_terminal_snr=True)
BLUR = Sequential({"down": Downsample(2, "nearest"), "noise": GaussianNoise(0.05)})


class NoisyHole(BlockMask):
    """Noise around a hole at a known place."""

    def __init__(self) -> None:
        super().__init__(2)

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        return super().observation(validity_B1HW, key).plus_noise(0.05)


def denoiser(size: int = SIZE, prior: GaussianField = FIELD) -> Denoiser:
    return Denoiser(ExactNetwork(prior, None, SCHEDULE, "v"), SCHEDULE, "v")


def faults(
    guidance: PosteriorGuidance, sampler: DiffusionSampler, num_samples: int = 2048
) -> tuple[float, float, float]:
    """Bias in standard deviations, spread over the true one, squared Wasserstein distance as a share of the variance."""
    image = FIELD.draw(torch.Generator().manual_seed(3), 1).float()
    seen = VALIDITY if isinstance(guidance.degradation, BlockMask) else torch.zeros_like(VALIDITY)
    observation = guidance.degradation.observation(seen)
    operator, noise = observation.matrices(SIZE, SIZE)
    root = torch.linalg.cholesky(noise)
    y = (
        operator @ image.flatten().double()
        + root @ torch.randn(SIZE**2, generator=torch.Generator().manual_seed(5)).double()
    )
    law = FIELD.law.given(y.view(1, 1, -1), operator, noise)
    draws = StepRandomness(generator_for(0, "test"), num_samples)
    degraded = y.float().view(1, 1, SIZE, SIZE).expand(num_samples, -1, -1, -1)
    wrapped = guidance.wrap(denoiser(), degraded, seen.expand(num_samples, -1, -1, -1), draws)
    with torch.inference_mode():
        sample = sampler(wrapped, draws.normal(1, SIZE, SIZE), Condition(), draws)
    where = (seen == 0).flatten()
    pixels, mean = sample.flatten(1)[:, where].double(), law.mean_BCP[0, 0, where]
    exact = law.covariance_PP[where][:, where]
    bias = ((pixels.mean(0) - mean) / exact.diagonal().sqrt()).square().mean().sqrt().item()
    distance = squared_wasserstein(mean, exact, pixels.mean(0), torch.cov(pixels.T)) / exact.trace()
    return bias, (pixels.var(0).sum() / exact.trace()).sqrt().item(), distance.item()


@pytest.mark.parametrize(
    ("degradation", "inner_steps", "sampler"),
    [
        (NoisyHole(), 3, Ancestral(100, threshold="none")),
        (BlockMask(2), 4, DPMSolverPP2M(60, threshold="none")),
        (BLUR, 6, DDIM(60, threshold="none")),
    ],
    ids=["noisy hole", "hole", "super-resolution"],
)
def test_mmps_is_exact_for_gaussian_data_but_for_the_solver(
    degradation: Degradation, inner_steps: int, sampler: DiffusionSampler
) -> None:
    """What is left is what the same solver loses with the exact conditional network (``test_exact_network``)."""
    bias, spread, distance = faults(MMPS(degradation, inner_steps=inner_steps), sampler, 1024)
    assert bias < 0.08
    assert 0.87 < spread < 1.02
    assert distance < 0.025


@pytest.mark.parametrize(
    ("guidance", "worst"),
    [
        (MMPS(NoisyHole(), inner_steps=1), 0.07),
        (RePaint(BlockMask(2)), 0.1),
        (PiGDM(NoisyHole(), data_std=0.25), 0.1),
        (DPS(NoisyHole()), 0.25),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_others_are_nearer_than_no_guidance(guidance: PosteriorGuidance, worst: float) -> None:
    """Samples of the prior are at a squared distance of several variances."""
    bias, _, distance = faults(guidance, Ancestral(60, threshold="none"), 1024)
    assert distance < worst
    assert bias < 0.5


def test_more_rounds_of_repaint_are_nearer() -> None:
    once = faults(RePaint(BlockMask(2), rounds=1), Ancestral(50, threshold="none"), 1024)
    assert faults(RePaint(BlockMask(2)), Ancestral(50, threshold="none"), 1024)[2] < once[2] / 3


@pytest.mark.parametrize("kind", [MMPS, PiGDM, DPS, RePaint])
def test_an_image_does_not_depend_on_its_batch(kind: type[PosteriorGuidance]) -> None:
    guidance, field = kind(BlockMask(3)), GaussianField(8)
    image = field.draw(torch.Generator().manual_seed(0), 4).float()
    index = torch.arange(4)
    degraded, validity, _ = guidance.degradation(image, IndexRandomness.for_images(0, "degradation", index))

    def restored(rows: Tensor) -> Tensor:
        draws = IndexRandomness.for_images(0, "sample", index[rows])
        wrapped = guidance.wrap(denoiser(prior=field), degraded[rows], validity[rows], draws)
        return DDIM(4, eta=1.0)(wrapped, draws.normal(1, 8, 8), Condition(), draws)

    rows = torch.tensor([2, 0])
    together = restored(index)
    torch.testing.assert_close(restored(rows), together[rows], atol=1e-5, rtol=0)
    known = validity.expand_as(together) > 0
    if kind is RePaint:
        assert torch.equal(together[known], degraded[known])


def test_conjugate_gradients_solve_each_image_by_itself() -> None:
    g = torch.Generator().manual_seed(0)
    root, right = torch.randn(3, 6, 6, generator=g).double(), torch.randn(3, 1, 2, 3, generator=g).double()
    matrices = root @ root.transpose(1, 2) + torch.eye(6)
    solved = conjugate_gradients(lambda v: (matrices @ v.view(3, 6, 1)).view(3, 1, 2, 3), right, 6)
    torch.testing.assert_close(solved.flatten(1), torch.linalg.solve(matrices, right.flatten(1)))
    zero = torch.zeros_like(right)
    assert torch.equal(conjugate_gradients(lambda v: v, zero, 3), zero)


def test_conjugate_gradients_stop_for_an_image_whose_matrix_is_indefinite() -> None:
    """The other image's solution does not change; that one's is of the directions before."""
    diagonal = torch.tensor([[3.0, -1.0, 2.0], [3.0, 1.0, 2.0]]).view(2, 1, 1, 3)
    right = torch.tensor([[[[4.0, 1.0, 2.0]]]]).expand(2, -1, -1, -1)
    solved = conjugate_gradients(lambda v: diagonal * v, right, 3)
    torch.testing.assert_close(solved[1], right[1] / diagonal[1])
    once = conjugate_gradients(lambda v: diagonal * v, right, 1)
    assert solved[0].abs().max() < 10
    assert torch.equal(solved[0], once[0])
    assert not conjugate_gradients(lambda v: -v, right, 3).any()


@pytest.mark.parametrize("guidance", [MMPS(NoisyHole()), PiGDM(NoisyHole()), DPS(NoisyHole())])
def test_guidance_by_gradients_is_of_whole_float32(guidance: PosteriorGuidance) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(SIZE, SIZE)
    plain = Denoiser(lambda z, times, condition: (torch.tanh(layer(z)),), NoiseSchedule("cosine"), "v")
    z, degraded = torch.randn(2, 2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    draws = StepRandomness(generator_for(0, "test"), 2)
    wrapped = guidance.wrap(plain, degraded, VALIDITY.expand(2, -1, -1, -1), draws)
    whole = wrapped.predict(z, 500, Condition()).image
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(wrapped.predict(z, 500, Condition()).image, whole, rtol=1e-5, atol=1e-6)


def test_repaint_goes_on_from_its_own_states_where_known_pixels_are_held() -> None:
    """Which it has drawn again, and not from those that it was asked for."""
    image = FIELD.draw(torch.Generator().manual_seed(3), 2).float()
    validity = VALIDITY.expand(2, -1, -1, -1)
    z, answers = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), []
    for hold in (lambda wrapped: wrapped, KnownPixels(image, validity).in_denoiser):
        draws = StepRandomness(generator_for(0, "test"), 2)
        answers.append(
            hold(RePaint(BlockMask(2)).wrap(denoiser(), image, validity, draws)).predict(z, 500, Condition())
        )
    plain, held = answers
    assert torch.equal(held.z, plain.z)
    assert not torch.equal(held.z, z)


def test_calls_backwards_count_twice() -> None:
    """Counted at the network itself: forwards, and gradients that pass through it."""
    calls = {"forward": 0, "backward": 0}

    def network(z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        calls["forward"] += 1
        out = torch.tanh(z)
        if out.requires_grad:
            out.register_hook(lambda gradient: calls.update(backward=calls["backward"] + 1))
        return (out,)

    for guidance in (
        MMPS(BlockMask(2), inner_steps=2),
        PiGDM(BlockMask(2)),
        DPS(BlockMask(2)),
        RePaint(BlockMask(2), rounds=4),
    ):
        calls.update(forward=0, backward=0)
        draws = StepRandomness(generator_for(0, "test"), 2)
        plain = Denoiser(network, NoiseSchedule("cosine"), "v")
        wrapped = guidance.wrap(plain, torch.zeros(2, 1, 4, 4), VALIDITY.expand(2, -1, -1, -1), draws)
        DDIM(3)(wrapped, draws.normal(1, 4, 4), Condition(), draws)
        assert calls["forward"] + 2 * calls["backward"] == 3 * guidance.calls_per_step


@pytest.mark.parametrize(
    ("kind", "degradation", "message"),
    [
        (MMPS, None, "restores degraded images, and there are none"),
        (MMPS, Sequential({"jpeg": Jpeg(10)}), r"degradation\.steps\.jpeg: Jpeg is no linear map of each channel"),
        (DPS, GaussianNoise([0.1, 0.2]), r"degradation\.std=\[0\.1, 0\.2\] differs from image to image"),
        (RePaint, Downsample(2), "guidance=repaint knows of holes alone"),
    ],
)
def test_what_a_method_cannot_use_is_refused(
    kind: type[PosteriorGuidance], degradation: Degradation | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        kind(degradation)
    assert "\n" not in str(error.value)
