"""Noise schedules: equality with diffusers, the ends, and use on the way through training and validation."""

from __future__ import annotations

import math

import pytest
import torch

from generative.schedules import NoiseSchedule

KINDS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
ALL = [NoiseSchedule(kind, zero_terminal_snr=zero) for kind in KINDS for zero in (False, True)]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_equals_diffusers(schedule: NoiseSchedule) -> None:
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDPMScheduler(
        beta_schedule=KINDS[schedule.kind], rescale_betas_zero_snr=schedule.zero_terminal_snr
    )
    torch.testing.assert_close(schedule.alphas_cumprod.float(), reference.alphas_cumprod, rtol=0, atol=1e-5)
    before = torch.cat([torch.ones(1), schedule.alphas_cumprod[:-1]])
    betas = (1 - schedule.alphas_cumprod / before).float()
    torch.testing.assert_close(betas, reference.betas, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_noising_equals_diffusers(schedule: NoiseSchedule) -> None:
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDPMScheduler(
        beta_schedule=KINDS[schedule.kind], rescale_betas_zero_snr=schedule.zero_terminal_snr
    )
    reference.alphas_cumprod = schedule.alphas_cumprod.float()  # its own are compared above; it sums them in float32
    image, noise = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(
        schedule.add_noise(image, noise, timestep), reference.add_noise(image, noise, timestep), rtol=1e-5, atol=1e-5
    )
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    torch.testing.assert_close(schedule.snr(timestep), snr[timestep].float())


def test_ends_of_the_linear_schedule() -> None:
    alphas_cumprod = NoiseSchedule().alphas_cumprod
    assert alphas_cumprod.dtype == torch.float64
    assert alphas_cumprod[0].item() == pytest.approx(1 - 1e-4, abs=1e-12)
    assert alphas_cumprod[-1].sqrt().item() == pytest.approx(0.006353, abs=1e-6)


def test_ends_of_the_cosine_schedule() -> None:
    """Only the last beta is clipped: without the clip abar_T would be 0."""
    alphas_cumprod = NoiseSchedule("cosine").alphas_cumprod

    def closed(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2

    assert alphas_cumprod[0].item() == pytest.approx(closed(0.001), rel=1e-9)
    assert alphas_cumprod[-2].item() == pytest.approx(closed(0.999), rel=1e-9)
    assert (alphas_cumprod[-1] / alphas_cumprod[-2]).item() == pytest.approx(1 - 0.999, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_is_exactly_zero_and_keeps_the_clean_end(kind: str) -> None:
    schedule = NoiseSchedule(kind, zero_terminal_snr=True)
    last = torch.tensor([999])
    assert schedule.terminal_snr_is_zero
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.signal(last).item() == 0
    assert schedule.noise_level(last).item() == 1
    assert schedule.snr(last).item() == 0
    torch.testing.assert_close(schedule.alphas_cumprod[0], NoiseSchedule(kind).alphas_cumprod[0])
    assert (schedule.alphas_cumprod.diff() < 0).all()


def test_shapes_and_times() -> None:
    schedule = NoiseSchedule(num_timesteps=10)
    timestep = torch.tensor([0, 4, 9])
    torch.testing.assert_close(schedule.time(timestep), torch.tensor([0.1, 0.5, 1.0]))
    assert schedule.signal(timestep).shape == (3, 1, 1, 1)
    torch.testing.assert_close(
        schedule.signal(timestep).square() + schedule.noise_level(timestep).square(), torch.ones(3, 1, 1, 1)
    )
    level = schedule.level(4)
    assert level.signal == pytest.approx(schedule.signal(timestep)[1].item(), rel=1e-6)
    assert level.noise == pytest.approx(schedule.noise_level(timestep)[1].item(), rel=1e-6)


def test_a_schedule_first_used_in_validation_serves_training() -> None:
    """Lightning validates before the first step under inference mode, whose tensors autograd refuses."""
    schedule, timestep = NoiseSchedule(), torch.tensor([3, 7])
    with torch.inference_mode():
        schedule.signal(timestep)
    image = torch.ones(2, 1, 2, 2, requires_grad=True)
    schedule.add_noise(image, torch.zeros(2, 1, 2, 2), timestep).sum().backward()
    torch.testing.assert_close(image.grad, schedule.signal(timestep).expand(2, 1, 2, 2))


@pytest.mark.parametrize(
    "bad", [{"kind": "sigmoid"}, {"num_timesteps": 1}, {"beta_start": 0.0}, {"beta_start": 0.1, "beta_end": 0.01}]
)
def test_refuses_bad_values(bad: dict) -> None:
    with pytest.raises(ValueError, match="schedule."):
        NoiseSchedule(**bad)
