"""Diffusion samplers: step by step equal to diffusers, and right on data whose exact denoiser is known."""

from __future__ import annotations

import math
import runpy
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from generative.denoiser import Denoiser, conversion
from generative.randomness import StepRandomness, generator_for
from generative.samplers import DDIM, Ancestral, DiffusionSampler, DPMSolverPP2M
from generative.schedules import NoiseSchedule
from generative.types import Condition
from launch.compose import compose_config

SPACINGS = ("leading", "linspace", "trailing")
PREDICTION_TYPES = {"noise": "epsilon", "v": "v_prediction", "image": "sample"}
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
ROOT = Path(__file__).resolve().parents[2]


def randomness(size: int, seed: int = 0) -> StepRandomness:
    return StepRandomness(generator_for(seed, "test"), size)


def toy(z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
    """Nonlinear, deterministic, and different at each time and pixel."""
    return (torch.tanh(0.7 * z + 0.4 * z.roll(1, dims=3) + (5 * times[:, :, None, None]).sin()),)


def noise() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def reference_scheduler(name: str, schedule: NoiseSchedule, output: str, **kwargs: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=schedule.num_timesteps,
        beta_schedule=BETA_SCHEDULES[schedule.kind],
        prediction_type=PREDICTION_TYPES[output],
        rescale_betas_zero_snr=schedule.zero_terminal_snr,
        **kwargs,
    )
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)  # its float32 noise levels are off by 3e-4
    return scheduler


def reference_states(scheduler: Any, num_steps: int, by_list: bool = False, **step: Any) -> Iterator[Tensor]:
    """Yield diffusers' states.

    ``DDIMScheduler`` goes to t - T // k, whatever it visits next; ``by_list`` sends it to the timestep it visits next.
    """
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps.tolist()
    z = noise()
    for timestep, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        if by_list:
            scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, timestep - following)
        times = torch.full((2, 1), (timestep + 1) / scheduler.config.num_train_timesteps)
        z = scheduler.step(toy(z, times, Condition())[0], timestep, z, **step).prev_sample
        yield z


def assert_same_states(sampler: DiffusionSampler, denoiser: Denoiser, reference: Iterator[Tensor]) -> None:
    states = sampler.states(denoiser, noise(), Condition(), randomness(2))
    steps = 0
    for state, expected in zip(states, reference, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(state.z / scale, expected / scale, rtol=0, atol=1e-5)
        steps += 1
    assert steps == sampler.num_steps


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_equal_diffusers(spacing: str) -> None:
    schedule = NoiseSchedule()
    ddim = reference_scheduler("DDIMScheduler", schedule, "v", timestep_spacing=spacing)
    solver = reference_scheduler("DPMSolverMultistepScheduler", schedule, "v", timestep_spacing=spacing)
    for num_steps in [*range(2, 64), 96, 103, 250, 333, 999]:
        ddim.set_timesteps(num_steps)
        expected = ddim.timesteps.tolist()[:num_steps]  # it appends -1 where numpy.arange is one too long, as for 61
        assert DDIM(num_steps, spacing).timesteps(schedule) == expected
        assert Ancestral(num_steps, spacing).timesteps(schedule) == expected
        solver.set_timesteps(num_steps)
        assert DPMSolverPP2M(num_steps, spacing).timesteps(schedule) == solver.timesteps.tolist()[:num_steps]


@pytest.mark.parametrize("schedule", [NoiseSchedule(), NoiseSchedule("cosine")], ids=lambda s: s.kind)
@pytest.mark.parametrize("output", PREDICTION_TYPES)
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_equals_diffusers(spacing: str, eta: float, output: str, schedule: NoiseSchedule) -> None:
    scheduler = reference_scheduler(
        "DDIMScheduler", schedule, output, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=True
    )
    expected = reference_states(
        scheduler, 10, by_list=spacing == "linspace", eta=eta, generator=randomness(2).generator
    )
    assert_same_states(DDIM(10, spacing, "none", eta=eta), Denoiser(toy, schedule, output), expected)


@pytest.mark.parametrize("output", ["v", "image"])
def test_ddim_from_zero_terminal_snr_equals_diffusers(output: str) -> None:
    schedule = NoiseSchedule(zero_terminal_snr=True)
    scheduler = reference_scheduler("DDIMScheduler", schedule, output, timestep_spacing="trailing", clip_sample=False)
    assert_same_states(
        DDIM(10, threshold="none"), Denoiser(toy, schedule, output), reference_states(scheduler, 10, eta=0.0)
    )


@pytest.mark.parametrize(("threshold", "settings"), [("clip", {}), ("dynamic", {"thresholding": True})])
def test_thresholds_equal_diffusers(threshold: str, settings: dict) -> None:
    """With noise output the estimates of the toy network reach far out of range."""
    schedule = NoiseSchedule()
    scheduler = reference_scheduler(
        "DDIMScheduler", schedule, "noise", timestep_spacing="trailing", sample_max_value=1e6, **settings
    )
    expected = reference_states(scheduler, 10, eta=0.0, use_clipped_model_output=True)
    assert_same_states(DDIM(10, threshold=threshold), Denoiser(toy, schedule, "noise"), expected)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("output", PREDICTION_TYPES)
def test_ancestral_equals_diffusers(output: str, spacing: str) -> None:
    schedule = NoiseSchedule()
    scheduler = reference_scheduler(
        "DDPMScheduler", schedule, output, timestep_spacing=spacing, clip_sample=False, variance_type="fixed_small"
    )
    expected = reference_states(scheduler, 20, generator=randomness(2).generator)
    assert_same_states(Ancestral(20, spacing, "none"), Denoiser(toy, schedule, output), expected)


def test_ancestral_with_large_variance_equals_diffusers() -> None:
    """Spacing leading: elsewhere diffusers adds noise to the finished image."""
    schedule = NoiseSchedule()
    scheduler = reference_scheduler(
        "DDPMScheduler", schedule, "v", timestep_spacing="leading", clip_sample=False, variance_type="fixed_large"
    )
    expected = reference_states(scheduler, 20, generator=randomness(2).generator)
    assert_same_states(Ancestral(20, "leading", "none", variance="large"), Denoiser(toy, schedule, "v"), expected)


@pytest.mark.usefixtures("_one_thread")
def test_the_cifar10_experiment_samples_as_published() -> None:
    """All 1,000 steps equal those of diffusers with the scheduler_config.json of google/ddpm-cifar10-32."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
        variance_type="fixed_large", clip_sample=True,
    )  # fmt: skip
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    config = compose_config(["experiment=ddpm_cifar10"])
    denoiser = Denoiser(toy, instantiate(config.schedule), config.module.output)
    expected = reference_states(scheduler, 1000, generator=randomness(2).generator)
    assert_same_states(instantiate(config.sampler), denoiser, expected)


@pytest.mark.parametrize("schedule", [NoiseSchedule(), NoiseSchedule("cosine")], ids=lambda s: s.kind)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("output", PREDICTION_TYPES)
@pytest.mark.parametrize("num_steps", [2, 20])
def test_dpm_solver_equals_diffusers(num_steps: int, output: str, spacing: str, schedule: NoiseSchedule) -> None:
    scheduler = reference_scheduler(
        "DPMSolverMultistepScheduler", schedule, output, timestep_spacing=spacing, solver_order=2,
        algorithm_type="dpmsolver++", solver_type="midpoint",
    )  # fmt: skip
    expected = reference_states(scheduler, num_steps)
    assert_same_states(DPMSolverPP2M(num_steps, spacing, "none"), Denoiser(toy, schedule, output), expected)


class Gaussian:
    """The exact denoiser of data N(mean, std^2), independent pixels."""

    def __init__(self, schedule: NoiseSchedule, mean: float, std: float, output: str) -> None:
        self.schedule, self.mean, self.std, self.output = schedule, mean, std, output

    def __call__(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        timestep = (times[:, 0] * self.schedule.num_timesteps).round().long() - 1
        a, s = self.schedule.signal(timestep), self.schedule.noise_level(timestep)
        gain = a * self.std**2 / (a**2 * self.std**2 + s**2)
        image = self.mean + gain * (z - a * self.mean)
        if self.output == "image":
            return (image,)
        c_z, c_y = conversion("image", self.output, a, s)
        return (c_z * z + c_y * image,)


GAUSSIAN_SCHEDULES = {
    "noise": NoiseSchedule("cosine"),
    "v": NoiseSchedule("linear", zero_terminal_snr=True),
    "image": NoiseSchedule("cosine", zero_terminal_snr=True),
}


@pytest.mark.parametrize(
    "sampler",
    [DDIM(200), DDIM(500, eta=1.0), Ancestral(500), Ancestral(500, variance="large"), DPMSolverPP2M(100)],
    ids=lambda s: f"{type(s).__name__}-{getattr(s, 'eta', getattr(s, 'variance', ''))}",
)
@pytest.mark.parametrize("output", GAUSSIAN_SCHEDULES)
def test_samples_of_a_gaussian_have_its_mean_and_spread(output: str, sampler: DiffusionSampler) -> None:
    schedule = GAUSSIAN_SCHEDULES[output]
    unclipped = type(sampler)(**{**vars(sampler), "threshold": "none"})
    draws = randomness(2000)
    denoiser = Denoiser(Gaussian(schedule, 0.4, 0.3, output), schedule, output)
    sample = unclipped(denoiser, draws.normal(1, 2, 2), Condition(), draws)
    assert sample.mean().item() == pytest.approx(0.4, abs=0.015)
    assert sample.std().item() == pytest.approx(0.3, rel=0.04)


@pytest.mark.parametrize("schedule", [NoiseSchedule("cosine"), NoiseSchedule("cosine", zero_terminal_snr=True)])
def test_dpm_solver_is_of_second_order_and_ddim_of_first(schedule: NoiseSchedule) -> None:
    """The flow of a Gaussian scales z with its standard deviation, so that the state half way is known."""
    denoiser, start = Denoiser(Gaussian(schedule, 0.0, 0.5, "image"), schedule, "image"), torch.ones(1, 1, 1, 1)

    def error(sampler: DiffusionSampler) -> float:
        half = sampler.num_steps // 2
        states = list(sampler.states(denoiser, start.double(), Condition(), randomness(1)))
        level = schedule.level(sampler.timesteps(schedule)[half])
        return abs(states[half - 1].z.item() - math.hypot(0.5 * level.signal, level.noise))

    ddim = [error(DDIM(steps, threshold="none")) for steps in (20, 80)]
    solver = [error(DPMSolverPP2M(steps, threshold="none")) for steps in (20, 80)]
    assert ddim[0] / ddim[1] == pytest.approx(4, rel=0.2)
    assert solver[0] / solver[1] > 10
    assert solver[0] < ddim[0] / 3


@pytest.mark.parametrize("sampler", [DDIM(5), Ancestral(5), DPMSolverPP2M(5)])
def test_one_image_is_reached_from_pure_noise(sampler: DiffusionSampler) -> None:
    """With zero terminal SNR the first step is defined by the estimate of the image alone."""
    schedule, image = NoiseSchedule("cosine", zero_terminal_snr=True), torch.rand(1, 3, 4, 4) * 2 - 1

    def answer(z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        return (image.expand_as(z),)

    states = list(
        sampler.states(Denoiser(answer, schedule, "image"), torch.randn(2, 3, 4, 4), Condition(), randomness(2))
    )
    assert len(states) == sampler.num_network_calls == 5
    assert all(torch.equal(state.image, image.expand_as(state.z)) for state in states)
    torch.testing.assert_close(states[-1].z, image.expand(2, -1, -1, -1))


def test_ancestral_on_all_timesteps_is_ddim_of_eta_one() -> None:
    schedule = NoiseSchedule(num_timesteps=20)
    samples = [
        sampler(Denoiser(toy, schedule, "v"), noise(), Condition(), randomness(2))
        for sampler in (Ancestral(20, threshold="none"), DDIM(20, threshold="none", eta=1.0))
    ]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("threshold", "largest"), [("clip", 1.0), ("dynamic", 1.0)])
def test_thresholds_hold_the_image_in_range(threshold: str, largest: float) -> None:
    schedule = NoiseSchedule()
    sampler = DDIM(5, threshold=threshold)
    for state in sampler.states(Denoiser(toy, schedule, "noise"), noise(), Condition(), randomness(2)):
        assert state.image.abs().max() <= largest
    assert state.z.abs().max() <= largest


def test_deterministic_samplers_draw_nothing() -> None:
    schedule = NoiseSchedule(num_timesteps=20)
    for sampler in (DDIM(5), DPMSolverPP2M(5)):
        source = randomness(2)
        before = source.generator.get_state()
        sampler(Denoiser(toy, schedule, "v"), noise(), Condition(), source)
        assert torch.equal(source.generator.get_state(), before)


@pytest.mark.parametrize(
    ("kind", "bad", "key"),
    [
        (DDIM, {"num_steps": 0}, "num_steps"),
        (DDIM, {"spacing": "even"}, "spacing"),
        (DDIM, {"threshold": "tanh"}, "threshold"),
        (DDIM, {"threshold_quantile": 0.0}, "threshold_quantile"),
        (DDIM, {"threshold_quantile": 0.9}, "threshold_quantile=0.9 has no effect with sampler.threshold=clip"),
        (DDIM, {"eta": 2.0}, "eta"),
        (Ancestral, {"variance": "learned"}, "variance"),
    ],
)
def test_samplers_refuse_bad_values(kind: type[DiffusionSampler], bad: dict, key: str) -> None:
    with pytest.raises(ValueError, match=f"sampler.{key}"):
        kind(**bad)


@pytest.mark.parametrize("sampler", [DDIM(30), DDIM(1, "leading"), DDIM(1, "linspace")])
def test_samplers_refuse_steps_that_the_schedule_does_not_have(sampler: DiffusionSampler) -> None:
    with pytest.raises(ValueError, match="sampler."):
        sampler.timesteps(NoiseSchedule(num_timesteps=20))


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Thousands of small operations: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_zero_terminal_snr_keeps_the_brightness_of_the_data() -> None:
    """Dark flat images, exact denoiser: without zero terminal SNR the samples come out brighter than the data.

    At the last timestep of the linear schedule the mean of 3 x 32 x 32 pixels still tells the brightness; noise without
    signal reads as medium brightness. Only zero terminal SNR with trailing steps starts where the network was trained.
    """
    claim = runpy.run_path(str(ROOT / "benchmarks" / "zero_terminal_snr.py"))
    data = torch.tensor(claim["BRIGHTNESS"])
    kept = claim["sampled_brightness"](NoiseSchedule(zero_terminal_snr=True), "trailing", 50, num_images=1000, size=32)
    plain = claim["sampled_brightness"](NoiseSchedule(), "leading", 50, num_images=1000, size=32)
    assert kept.mean().item() == pytest.approx(data.mean().item(), abs=0.03)
    assert kept.std().item() == pytest.approx(data.std(unbiased=False).item(), abs=0.02)
    shares = claim["shares"](kept)
    assert all(share == pytest.approx(1 / len(data), abs=0.05) for share in shares)
    assert plain.mean() - kept.mean() > 0.04  # the same noise: the difference is none of chance
    assert claim["shares"](plain)[-1] > shares[-1] + 0.05
