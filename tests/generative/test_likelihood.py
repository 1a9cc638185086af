"""Likelihoods of a flow and of a diffusion, with the exact network of a Gaussian law, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from generative.denoiser import Denoiser
from generative.flow_map import FlowMap
from generative.likelihood import LEVEL, diffusion_nats, flow_nats, level_log_probability, of_levels
from generative.networks import ExactNetwork
from generative.randomness import IndexRandomness, StepRandomness, generator_for
from generative.schedules import NoiseSchedule
from generative.truth import DiscOnField, GaussianField
from generative.types import Condition

FIELD = GaussianField(4, std=0.2, correlation_length=0.4)
N = 400


def draws() -> StepRandomness:
    return StepRandomness(generator_for(0, "test"), N)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    noise = torch.randn(N, 1, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return FIELD.law.draw(torch.zeros(N).double(), noise).view(N, 1, 4, 4).float()


@pytest.mark.parametrize("output", ["image", "velocity"])
def test_the_flow_of_a_gaussian_is_exact_to_a_percent(images: torch.Tensor, output: str) -> None:
    normal = stats.multivariate_normal(cov=FIELD.law.covariance_PP.numpy())
    expected = -normal.logpdf(images.flatten(1).numpy())
    assert FIELD.law.log_density(images.flatten(2).double()).numpy() == pytest.approx(-expected)
    flow_map = FlowMap(ExactNetwork(FIELD, None, None, output, 2, 2), output)
    nats = flow_nats(flow_map, images, Condition(), draws(), 32)
    assert nats.mean().item() == pytest.approx(expected.mean(), rel=0.01)
    bits = of_levels(nats, images).mean().item()
    assert bits == pytest.approx(expected.mean() - 16 * np.log(LEVEL), rel=0.01)
    of_each = nats.numpy() - expected  # Hutchinson's errors, far below the spread of the likelihoods
    assert of_each.std() < expected.std()


def test_each_image_has_its_own_likelihood() -> None:
    """The flow of a mixture diverges otherwise at each image, where that of a Gaussian diverges alike at all of them."""
    field, num_images, repeats = DiscOnField(4), 8, 64
    draw = StepRandomness(generator_for(2, "test"), num_images)
    x = field.law.draw(draw.uniform().double(), draw.normal(1, 16).double()).float()
    expected = -field.law.log_density(x.double())
    images = x.view(num_images, 1, 4, 4)
    flow_map = FlowMap(ExactNetwork(field, None, None, "velocity", 2, 2), "velocity")

    def nats(index_B: torch.Tensor) -> torch.Tensor:
        """Of images by their number: ``repeats`` numbers are of one image, for Hutchinson's errors to average out."""
        draws = IndexRandomness.for_images(0, "test", index_B, "cpu")
        return flow_nats(flow_map, images[index_B // repeats], Condition(), draws, 32)

    index = torch.arange(num_images * repeats)
    whole = nats(index)
    of_each = whole.view(num_images, repeats)
    error = of_each.mean(1) - expected
    assert (error.abs() < 4 * of_each.std(1) / repeats**0.5 + 0.05).all()
    assert expected.std() > 4 * error.abs().max()
    rows = torch.tensor([3, 70, 501])
    torch.testing.assert_close(nats(rows), whole[rows], rtol=1e-4, atol=1e-3)


def test_a_mixture_has_the_density_of_its_modes() -> None:
    law = DiscOnField(4).law
    x = torch.randn(3, 1, 16, dtype=torch.float64) * 0.1
    modes = [stats.multivariate_normal(mode.flatten().numpy(), law.covariance_PP.numpy()) for mode in law.means_BMCP[0]]
    expected = np.log(np.mean([mode.pdf(x.flatten(1).numpy()) for mode in modes], axis=0))
    assert law.log_density(x).numpy() == pytest.approx(expected)


@pytest.mark.parametrize("zero_terminal_snr", [True, False])
@pytest.mark.parametrize("num_terms", [49, 12])
def test_the_bound_of_a_diffusion_is_that_of_the_eigenvalues(images, zero_terminal_snr: bool, num_terms: int) -> None:
    schedule = NoiseSchedule("cosine", num_timesteps=50, zero_terminal_snr=zero_terminal_snr)
    network = ExactNetwork(FIELD, None, schedule, "v")
    nats = diffusion_nats(Denoiser(network, schedule, "v"), images, Condition(), draws(), num_terms)
    variance, axes = np.linalg.eigh(FIELD.law.covariance_PP.numpy())
    abar = schedule.alphas_cumprod.numpy()
    snr = abar / (1 - abar)
    of_steps = sum((snr[t - 1] - snr[t]) / 2 * (1 / (snr[t] + 1 / variance)).sum() for t in range(1, 50))
    at_noise = (abar[-1] * variance - abar[-1] - np.log(1 - abar[-1])).sum() / 2
    std = np.sqrt((1 - abar[1] / abar[0]) * (1 - abar[0]) / (1 - abar[1]))
    error = np.sqrt(axes**2 @ (1 / (snr[0] + 1 / variance)))
    of_levels = sum(
        integrate.quad(
            lambda d, e=e: (
                -stats.norm.pdf(d, scale=e)
                * np.log(stats.norm.cdf((d + LEVEL / 2) / std) - stats.norm.cdf((d - LEVEL / 2) / std))
            ),
            -5 * e,
            5 * e,
        )[0]
        for e in error
    )
    expected = of_steps + at_noise + of_levels
    assert nats.mean().item() == pytest.approx(expected, rel=0.01 if num_terms == 49 else 0.03)


def test_the_levels_have_all_of_the_probability() -> None:
    levels = torch.arange(256).double() / 127.5 - 1
    for mean, std in ((0.1, 0.005), (-0.99, 0.2), (1.0, 3.0)):
        log_probability = level_log_probability(levels, torch.full((256,), mean), std)
        assert log_probability.exp().sum().item() == pytest.approx(1)
        inner = stats.norm.cdf((0.2 + LEVEL / 2 - mean) / std) - stats.norm.cdf((0.2 - LEVEL / 2 - mean) / std)
        value = level_log_probability(torch.tensor([0.2]).double(), torch.tensor([mean]).double(), std)
        assert value.exp().item() == pytest.approx(inner, abs=1e-12)
    far = level_log_probability(torch.tensor([0.5]), torch.tensor([-0.5]), 0.005).item()
    assert far == pytest.approx(stats.norm.logpdf(1 - LEVEL / 2, scale=0.005) - np.log(200**2), rel=0.01)
