"""Denoisers: the conversions among image, noise and v, and what the network is called with."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from generative.denoiser import Denoiser, Prediction, conversion
from generative.schedules import NoiseSchedule
from generative.types import Condition

KINDS = ("image", "noise", "v")


def truth(schedule: NoiseSchedule, timestep: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return states and what they are made of."""
    image, noise = torch.randn(2, len(timestep), 2, 4, 4, generator=torch.Generator().manual_seed(0))
    signal, level = schedule.signal(timestep), schedule.noise_level(timestep)
    return signal * image + level * noise, {"image": image, "noise": noise, "v": signal * noise - level * image}


@pytest.mark.parametrize(("source", "target"), itertools.product(KINDS, KINDS))
def test_each_kind_gives_each_other(source: str, target: str) -> None:
    schedule = NoiseSchedule("cosine")
    timestep = torch.tensor([40, 300, 500, 900])
    z, known = truth(schedule, timestep)
    prediction = Prediction(z, known[source], source, schedule.signal(timestep), schedule.noise_level(timestep))
    torch.testing.assert_close(getattr(prediction, target), known[target], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("source", "target"), itertools.permutations(KINDS, 2))
def test_conversions_are_each_others_inverse(source: str, target: str) -> None:
    signal, level = 0.6, 0.8
    there_z, there_y = conversion(source, target, signal, level)
    back_z, back_y = conversion(target, source, signal, level)
    assert back_z + back_y * there_z == pytest.approx(0, abs=1e-12)
    assert back_y * there_y == pytest.approx(1)


def test_v_equals_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    timestep = torch.tensor([0, 250, 999])
    _, known = truth(NoiseSchedule(), timestep)
    reference = diffusers.DDPMScheduler().get_velocity(known["image"], known["noise"], timestep)
    torch.testing.assert_close(known["v"], reference, rtol=1e-5, atol=1e-5)


def test_v_of_pure_noise_is_the_negative_image() -> None:
    """At zero terminal SNR z says nothing, and v is all there is."""
    schedule, timestep = NoiseSchedule(zero_terminal_snr=True), torch.tensor([999])
    z, known = truth(schedule, timestep)
    assert torch.equal(z, known["noise"])
    prediction = Prediction(z, known["v"], "v", schedule.signal(timestep), schedule.noise_level(timestep))
    assert torch.equal(prediction.image, known["image"])
    assert torch.equal(prediction.noise, z)


class Recorder:
    """Returns two heads, and keeps what it was called with."""

    def __call__(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        self.times, self.condition = times, condition
        return torch.tanh(z), torch.zeros_like(z)


@pytest.mark.parametrize("output", KINDS)
def test_one_timestep_for_all_rows_equals_a_tensor_of_it(output: str) -> None:
    network, z, condition = Recorder(), torch.randn(3, 1, 4, 4), Condition(labels=torch.ones(3, 2))
    denoiser = Denoiser(network, NoiseSchedule(num_timesteps=100), output)
    by_rows = denoiser.predict(z, torch.full((3,), 24), condition)
    torch.testing.assert_close(network.times, torch.full((3, 1), 0.25))
    assert network.condition is condition
    by_one = denoiser.predict(z, 24, condition)
    torch.testing.assert_close(network.times, torch.full((3, 1), 0.25))
    torch.testing.assert_close(by_rows.output, torch.tanh(z))
    for kind in KINDS:
        torch.testing.assert_close(getattr(by_one, kind), getattr(by_rows, kind), rtol=1e-5, atol=1e-5)


def test_refuses_noise_output_without_terminal_signal() -> None:
    with pytest.raises(ValueError, match="module.output=noise.*schedule.zero_terminal_snr=true.*module.output=v"):
        Denoiser(Recorder(), NoiseSchedule(zero_terminal_snr=True), "noise")


def test_refuses_an_unknown_output() -> None:
    with pytest.raises(ValueError, match="module.output=score"):
        Denoiser(Recorder(), NoiseSchedule(), "score")
