"""The denoising objective: its spaces, its weights, its timesteps, and what it refuses."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from generative.denoiser import Denoiser
from generative.objectives import DiffusionObjective
from generative.randomness import StepRandomness, generator_for
from generative.schedules import NoiseSchedule
from generative.types import Condition

KINDS = ("image", "noise", "v")
GENTLE = NoiseSchedule(num_timesteps=50, beta_start=0.01, beta_end=0.1)  # no level below the clip
SIZE = 64


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        return (torch.tanh(self.gain * z + times[:, :, None, None]),)


def images() -> Tensor:
    return torch.rand(SIZE, 2, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1


def randomness(size: int = SIZE) -> StepRandomness:
    return StepRandomness(generator_for(0, "test"), size)


def draws(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Return the timesteps and the noise that the objective draws."""
    source = randomness()
    return (source.uniform() * schedule.num_timesteps).long(), source.normal(2, 4, 4)


@pytest.mark.parametrize(("output", "space"), itertools.product(KINDS, KINDS))
def test_error_is_that_of_the_converted_prediction(output: str, space: str) -> None:
    denoiser, image = Denoiser(Toy(), GENTLE, output), images()
    timestep, noise = draws(GENTLE)
    z = GENTLE.add_noise(image, noise, timestep)
    target = {"image": image, "noise": noise}
    target["v"] = GENTLE.signal(timestep) * noise - GENTLE.noise_level(timestep) * image
    prediction = getattr(denoiser.predict(z, timestep, Condition()), space)
    expected = (prediction - target[space]).square().mean(dim=(1, 2, 3))
    objective = DiffusionObjective(space)
    torch.testing.assert_close(
        objective.errors(denoiser, image, Condition(), randomness()), expected, rtol=1e-4, atol=1e-5
    )
    result = objective(denoiser, image, Condition(), randomness())
    torch.testing.assert_close(result.loss, expected.mean(), rtol=1e-4, atol=1e-5)
    assert list(result.logs) == [f"mse_{space}"]
    assert not result.logs[f"mse_{space}"].requires_grad
    result.loss.backward()
    assert denoiser.network.gain.grad.abs() > 0


@pytest.mark.parametrize(("output", "space"), itertools.product(KINDS, KINDS))
def test_min_snr_weights_the_error_of_the_image_in_every_space(output: str, space: str) -> None:
    denoiser, image = Denoiser(Toy(), GENTLE, output), images()
    timestep, noise = draws(GENTLE)
    prediction = denoiser.predict(GENTLE.add_noise(image, noise, timestep), timestep, Condition())
    error = (prediction.image - image).square().mean(dim=(1, 2, 3))
    snr = GENTLE.alphas_cumprod[timestep] / (1 - GENTLE.alphas_cumprod[timestep])
    expected = (snr.clamp(max=5.0) * error).float()
    result = DiffusionObjective(space, "min_snr").errors(denoiser, image, Condition(), randomness())
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", ["uniform", "min_snr"])
def test_the_log_is_unweighted(weight: str) -> None:
    denoiser = Denoiser(Toy(), GENTLE, "v")
    logs = [
        DiffusionObjective("v", w)(denoiser, images(), Condition(), randomness()).logs["mse_v"]
        for w in (weight, "uniform")
    ]
    torch.testing.assert_close(*logs)


def test_the_divisor_is_clipped_as_in_jit() -> None:
    """Image output and v loss at noise levels of 0.01, as at the start of the linear schedule: the weight is 1 / 0.05^2."""
    first = NoiseSchedule(num_timesteps=2, beta_start=1e-4, beta_end=1e-4)
    denoiser, image = Denoiser(Toy(), first, "image"), images()
    in_v = DiffusionObjective("v").errors(denoiser, image, Condition(), randomness())
    in_image = DiffusionObjective("image").errors(denoiser, image, Condition(), randomness())
    torch.testing.assert_close(in_v, in_image / 0.05**2, rtol=1e-4, atol=1e-4)


class Answer:
    """Knows the images: outputs them, or the v that belongs to them."""

    def __init__(self, image: Tensor, schedule: NoiseSchedule, output: str) -> None:
        self.image, self.schedule, self.output = image, schedule, output

    def __call__(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        if self.output == "image":
            return (self.image,)
        timestep = (times[:, 0] * self.schedule.num_timesteps).round().long() - 1
        a, s = self.schedule.signal(timestep), self.schedule.noise_level(timestep)
        return ((a * z - self.image) / s,)


@pytest.mark.parametrize(("output", "space"), itertools.product(("image", "v"), ("image", "v")))
def test_the_answer_has_no_loss_also_at_zero_terminal_snr(output: str, space: str) -> None:
    schedule, image = NoiseSchedule("cosine", 20, zero_terminal_snr=True), images()
    denoiser = Denoiser(Answer(image, schedule, output), schedule, output)
    loss = DiffusionObjective(space)(denoiser, image, Condition(), randomness()).loss
    assert loss < 1e-6


@pytest.mark.parametrize("bad", [DiffusionObjective("noise"), DiffusionObjective("v", "min_snr")], ids=repr)
def test_refuses_to_leave_the_start_of_sampling_untrained(bad: DiffusionObjective) -> None:
    denoiser = Denoiser(Toy(), NoiseSchedule(zero_terminal_snr=True), "v")
    with pytest.raises(ValueError, match="objective..*schedule.zero_terminal_snr=true"):
        bad(denoiser, images(), Condition(), randomness())


class Largest(StepRandomness):
    """Draws the largest float32 below one."""

    def uniform(self, *shape: int) -> Tensor:
        return torch.full((self.batch_size, *shape), 1 - 2**-24)


def test_timesteps_are_uniform_and_in_range() -> None:
    seen: list[Tensor] = []

    class Recorder(Toy):
        def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
            seen.append(times)
            return super().forward(z, times, condition)

    schedule = NoiseSchedule(num_timesteps=4)
    image = torch.zeros(4000, 1, 1, 1)
    DiffusionObjective().errors(Denoiser(Recorder(), schedule, "v"), image, Condition(), randomness(4000))
    shares = (seen[0] * 4).flatten().long().bincount() / 4000
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25]), atol=0.03, rtol=0)
    for size in (513, 520, 1000, 4097):
        denoiser = Denoiser(Recorder(), NoiseSchedule(num_timesteps=size), "v")
        DiffusionObjective().errors(denoiser, image[:1], Condition(), Largest(torch.Generator(), 1))
        assert seen[-1].item() == 1


@pytest.mark.parametrize("bad", [{"loss_space": "score"}, {"weight": "snr"}, {"gamma": 0.0}, {"terminal_share": 1.5}])
def test_refuses_bad_values(bad: dict) -> None:
    with pytest.raises(ValueError, match="objective."):
        DiffusionObjective(**bad)


@pytest.mark.parametrize("mean", [None, -1.0, 0.5])
def test_timesteps_follow_their_law(mean: float | None) -> None:
    objective = DiffusionObjective(logit_mean=mean, logit_std=0.7)
    timesteps = objective._timesteps(StepRandomness(generator_for(0, "test"), 20_000), 1000)
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    share = (timesteps + 0.5) / 1000
    if mean is None:
        assert share.mean().item() == pytest.approx(0.5, abs=0.01)
        assert share.std().item() == pytest.approx(12**-0.5, abs=0.01)
    else:
        assert share.logit().mean().item() == pytest.approx(mean, abs=0.02)
        assert share.logit().std().item() == pytest.approx(0.7, abs=0.02)


DISTRIBUTIONS = {
    "uniform": {},
    "logit_normal": {"logit_mean": 0.3, "logit_std": 1.2},
    "wide": {"logit_mean": 0.0, "logit_std": 3.0},
    "with_end": {"logit_mean": 0.3, "logit_std": 1.2, "terminal_share": 0.02},
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_probabilities_are_those_of_the_distribution(distribution: dict[str, float]) -> None:
    """Against SciPy's normal distribution, and against draws."""
    objective, size = DiffusionObjective(**distribution), 10
    edges = torch.arange(size + 1, dtype=torch.float64) / size
    expected = torch.full((size,), 1 / size, dtype=torch.float64)
    if "logit_mean" in distribution:
        expected = torch.from_numpy(
            stats.norm.cdf(edges.logit(), distribution["logit_mean"], distribution["logit_std"])
        ).diff()
    expected = expected * (1 - distribution.get("terminal_share", 0))
    expected[-1] += distribution.get("terminal_share", 0)
    probabilities = torch.tensor([objective.probability(t, size) for t in range(size)], dtype=torch.float64)
    torch.testing.assert_close(probabilities, expected, rtol=1e-9, atol=1e-12)
    drawn = (
        objective._timesteps(StepRandomness(generator_for(0, "test"), 40_000), size).bincount(minlength=size) / 40_000
    )
    torch.testing.assert_close(drawn.double(), expected, rtol=0, atol=0.01)


def test_the_logit_normal_law_alone_hardly_draws_the_last_timestep() -> None:
    odds = stats.norm.sf((math.log(999) - 0.3) / 1.2)
    assert DiffusionObjective(**DISTRIBUTIONS["logit_normal"]).probability(999, 1000) == pytest.approx(odds, rel=1e-6)
    assert odds < 1e-7
    with_end = DiffusionObjective(**DISTRIBUTIONS["with_end"])
    assert with_end.probability(999, 1000) == pytest.approx(0.02, rel=1e-6)
    timesteps = with_end._timesteps(randomness(20_000), 1000)
    assert (timesteps == 999).float().mean().item() == pytest.approx(0.02, abs=0.004)


@pytest.mark.parametrize("zero_snr", [False, True], ids=["plain", "zero_snr"])
@pytest.mark.parametrize("output", KINDS)
@pytest.mark.parametrize("space", KINDS)
@pytest.mark.parametrize("weight", ["uniform", "min_snr"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_the_guards_say_whether_the_start_of_sampling_is_trained(
    distribution: dict[str, float], weight: str, space: str, output: str, zero_snr: bool
) -> None:
    """Trained is what is drawn, and where a wrong output of the network costs something."""
    schedule, last = NoiseSchedule(num_timesteps=1000, zero_terminal_snr=zero_snr), 999
    objective = DiffusionObjective(space, weight, **distribution)
    drawn = objective.probability(last, 1000) >= 1e-4
    timestep = torch.tensor([last])
    defined = not (zero_snr and output == "noise")
    if defined:
        denoiser = Denoiser(Toy(), schedule, output)
        cost = (objective._factor(denoiser, timestep).square() * objective._weight(schedule.snr(timestep))).item()
    with (
        nullcontext() if defined and drawn and cost > 0 else pytest.raises(ValueError, match="set (objective|module).")
    ):
        Denoiser(Toy(), schedule, output)
        objective.check(schedule)
        objective.check_start(last, 1000)


def test_a_law_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.logit_std=0"):
        DiffusionObjective(logit_mean=0.0, logit_std=0.0)
