"""Guidance: hidden labels, classifier-free guidance against its formula and diffusers, and a classifier's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.denoiser import Denoiser
from generative.guidance import ClassifierFreeGuidance, ClassifierGuidance, LabelDropout, rescaled
from generative.randomness import StepRandomness, generator_for
from generative.samplers import DDIM
from generative.schedules import NoiseSchedule
from generative.types import Condition


def randomness(size: int, seed: int = 0) -> StepRandomness:
    return StepRandomness(generator_for(seed, "test"), size)


@pytest.mark.parametrize(("sets", "objects"), [(0.1, 0.0), (0.0, 0.3), (0.2, 0.5), (0.0, 0.0), (1.0, 0.0)])
def test_label_dropout_has_its_probabilities(sets: float, objects: float) -> None:
    dropped = LabelDropout(sets, objects)(torch.ones(20000, 4), randomness(20000))
    assert ((dropped == 0) | (dropped == 1)).all()
    assert dropped.mean().item() == pytest.approx((1 - sets) * (1 - objects), abs=0.01)
    empty = (dropped.sum(1) == 0).float().mean().item()
    assert empty == pytest.approx(sets + (1 - sets) * objects**4, abs=0.01)


def test_label_dropout_never_adds_labels() -> None:
    labels = torch.tensor([[1.0, 0.0, 1.0]]).expand(50, -1)
    assert (LabelDropout(0.3, 0.3)(labels, randomness(50)) <= labels).all()


@pytest.mark.parametrize("name", ["set_probability", "object_probability"])
def test_label_dropout_refuses_bad_probabilities(name: str) -> None:
    with pytest.raises(ValueError, match=f"module.label_dropout.{name}"):
        LabelDropout(**{name: 1.5})


class Toy:
    """Mixes state, time, map and labels; counts its calls and rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        self.rows.append(len(x))
        shift = (condition.labels @ torch.tensor([[0.5], [-1.0], [2.0]]))[:, :, None, None]
        out = torch.tanh(x + shift + times[:, :1, None, None]) * (1 + shift.abs())
        if condition.image is not None:
            out = out + condition.image
        return out, 2 * out


def inputs(times: list[float]) -> tuple[Tensor, Tensor, Condition]:
    size = len(times)
    g = torch.Generator().manual_seed(3)
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])[:size]
    return torch.randn(size, 1, 4, 4, generator=g), torch.tensor(times)[:, None], Condition(labels=labels)


def test_guidance_is_its_formula_in_one_call() -> None:
    x, times, condition = inputs([0.4] * 4)
    condition = Condition(image=torch.randn(4, 1, 4, 4), labels=condition.labels)
    network = Toy()
    outputs = ClassifierFreeGuidance(3.0).wrap(network)(x, times, condition)
    assert network.rows == [8]
    conditional = network(x, times, condition)
    unconditional = network(x, times, Condition(condition.image, torch.zeros(4, 3)))
    for guided, c, u in zip(outputs, conditional, unconditional, strict=True):
        torch.testing.assert_close(guided, u + 3 * (c - u))
    torch.testing.assert_close(outputs[0][3], conditional[0][3])  # no labels: nothing to move towards


@pytest.mark.parametrize("rise", [1.0, 2.0])
def test_a_rising_scale_is_its_formula_at_each_rows_time(rise: float) -> None:
    mixed = [1.0, 0.7, 0.2, 0.0]
    x, times, condition = inputs(mixed)
    network = Toy()
    guided = ClassifierFreeGuidance(3, rise=rise).wrap(network)(x, times, condition)[0]
    conditional, unconditional = (
        network(x, times, Condition(labels=y))[0] for y in (condition.labels, torch.zeros(4, 3))
    )
    for row, time in enumerate(mixed):
        c, u = conditional[row], unconditional[row]
        torch.testing.assert_close(guided[row], u + (1 + 2 * (1 - time) ** rise) * (c - u))


def test_scale_one_is_the_network_itself() -> None:
    network = Toy()
    assert ClassifierFreeGuidance(1.0, rescale=0.7).wrap(network) is network


def test_outside_the_interval_there_is_one_plain_call() -> None:
    network = Toy()
    guided = ClassifierFreeGuidance(3.0, interval=(0.2, 0.6)).wrap(network)
    for time, rows in ((0.1, 4), (0.2, 8), (0.6, 8), (0.7, 4)):
        x, times, condition = inputs([time] * 4)
        output = guided(x, times, condition)[0]
        assert network.rows[-1] == rows
        plain = network(x, times, condition)[0]
        assert torch.equal(output, plain) == (rows == 4)


def test_rows_of_mixed_times_are_guided_one_by_one() -> None:
    mixed = [0.1, 0.3, 0.9, 0.5]
    x, times, condition = inputs(mixed)
    guidance = ClassifierFreeGuidance(3.0, interval=(0.2, 0.6), rescale=0.5)
    together = guidance.wrap(Toy())(x, times, condition)[0]
    for row in range(4):
        alone = guidance.wrap(Toy())(
            x[row : row + 1], times[row : row + 1], Condition(labels=condition.labels[row : row + 1])
        )[0]
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescale_equals_diffusers(share: float) -> None:
    reference = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    guided, conditional = torch.randn(2, 5, 3, 8, 8) * torch.tensor([4.0, 1.0])[:, None, None, None, None]
    torch.testing.assert_close(
        rescaled(guided, conditional, share), reference(guided, conditional, share), rtol=1e-5, atol=1e-5
    )


def test_rescale_gives_each_image_the_conditional_spread() -> None:
    x, times, condition = inputs([0.4] * 3)
    network = Toy()
    guided = ClassifierFreeGuidance(5.0, rescale=1.0).wrap(network)(x, times, condition)[0]
    torch.testing.assert_close(guided.std((1, 2, 3)), network(x, times, condition)[0].std((1, 2, 3)))


def test_rescale_bears_outputs_without_spread() -> None:
    assert torch.equal(rescaled(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), 0.7), torch.zeros(2, 1, 4, 4))


def test_guidance_needs_labels() -> None:
    x, times, _ = inputs([0.4] * 2)
    with pytest.raises(ValueError, match="guidance.scale=1"):
        ClassifierFreeGuidance(2.0).wrap(Toy())(x, times, Condition())


@pytest.mark.parametrize("bad", [{"interval": (0.6, 0.2)}, {"interval": (0.0, 2.0)}, {"rescale": 1.5}, {"rise": -1.0}])
def test_guidance_refuses_bad_values(bad: dict) -> None:
    with pytest.raises(ValueError, match="guidance."):
        ClassifierFreeGuidance(**bad)


class Gaussian:
    """The exact denoiser of data N(0, std^2): E[x | z] = a std^2 / (a^2 std^2 + s^2) z."""

    def __init__(self, schedule: NoiseSchedule, std: float = 1.0) -> None:
        self.schedule, self.std = schedule, std

    def __call__(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        timestep = (times[:, 0] * self.schedule.num_timesteps).round().long() - 1
        a, s = self.schedule.signal(timestep), self.schedule.noise_level(timestep)
        return (a * self.std**2 / ((a * self.std) ** 2 + s**2) * z,)


TILT = torch.tensor([0.5, -1.0, 0.0, 2.0]).reshape(1, 1, 2, 2)


def tilted(image: Tensor, labels: Tensor) -> Tensor:
    """A log-probability whose gradient is ``TILT`` everywhere: it moves N(0, std^2) to N(std^2 TILT, std^2), exactly."""
    return (labels * (image * TILT).flatten(1).sum(1, keepdim=True)).sum(1)


@pytest.mark.parametrize("std", [0.12, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [NoiseSchedule("cosine"), NoiseSchedule("cosine", zero_terminal_snr=True)])
def test_classifier_guidance_samples_the_posterior_of_a_gaussian(schedule: NoiseSchedule, std: float) -> None:
    condition = Condition(labels=torch.ones(3000, 1))
    denoiser = Denoiser(Gaussian(schedule, std), schedule, "image")
    assisted = ClassifierGuidance(tilted, data_std=std).wrap(denoiser)
    with torch.inference_mode():
        draws = randomness(3000)
        sample = DDIM(240, threshold="none")(assisted, draws.normal(1, 2, 2), condition, draws)
    torch.testing.assert_close(sample.mean(0, keepdim=True), std**2 * TILT, atol=0.08 * std, rtol=0)
    torch.testing.assert_close(sample.std(0), torch.full((1, 2, 2), std), atol=0.08 * std, rtol=0)


@pytest.mark.parametrize("std", [0.12, 1.0])
@pytest.mark.parametrize("timestep", [0, 300, 700, 999])
def test_classifier_guidance_is_the_exact_posterior_mean_at_every_noise_level(timestep: int, std: float) -> None:
    """E[x | z] of N(std^2 g, std^2): prior mean and z weighted by their precisions, for one timestep and for one a row."""
    schedule = NoiseSchedule("cosine", zero_terminal_snr=True)
    assisted = ClassifierGuidance(tilted, data_std=std).wrap(Denoiser(Gaussian(schedule, std), schedule, "image"))
    z, condition = torch.randn(3, 1, 2, 2), Condition(labels=torch.ones(3, 1))
    a, s = schedule.level(timestep)
    expected = (std**2 * TILT / std**2 + a * z / s**2) / (1 / std**2 + a**2 / s**2)
    for steps in (timestep, torch.full((3,), timestep)):
        torch.testing.assert_close(assisted.predict(z, steps, condition).image, expected, rtol=1e-3, atol=1e-4)


def test_classifier_guidance_is_marked_and_its_scale_zero_is_none() -> None:
    schedule = NoiseSchedule()
    guidance = ClassifierGuidance(lambda image, labels: image.square().sum((1, 2, 3)), scale=0.0)
    assert guidance.assisted
    denoiser = Denoiser(Gaussian(schedule), schedule, "image")
    z, condition = torch.randn(3, 1, 2, 2), Condition(labels=torch.ones(3, 1))
    torch.testing.assert_close(
        guidance.wrap(denoiser).predict(z, 500, condition).image, denoiser.predict(z, 500, condition).image
    )
    with pytest.raises(ValueError, match="module.classifier_guidance"):
        guidance.wrap(denoiser).predict(z, 500, Condition())
    with pytest.raises(ValueError, match=r"module\.data_std=0"):
        ClassifierGuidance(tilted, data_std=0)
