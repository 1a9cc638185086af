"""Distances from the exact posterior, of answers that are wrong by a known amount."""

from __future__ import annotations

import math

import pytest
import torch
from elsewhere import SecondDevice, away
from scipy import linalg
from torch import Tensor

from generative.degradations import BlockMask, GaussianNoise
from generative.metrics import ExactPosteriorMetrics
from generative.metrics.exact_posterior import squared_wasserstein
from generative.randomness import IndexRandomness
from generative.truth import DiscOnField, GaussianField, posteriors
from generative.types import Batch

SIZE, NUM_IMAGES, NUM_SAMPLES = 6, 120, 8


def problem(prior: GaussianField, degradation: BlockMask | GaussianNoise) -> Batch:
    image = prior.draw(torch.Generator().manual_seed(0), NUM_IMAGES).float()
    index = torch.arange(NUM_IMAGES)
    degraded = degradation(image, IndexRandomness.for_images(0, "degradation", index))
    return Batch(image, index, degraded=degraded.image, validity=degraded.validity)


def measured(
    prior: GaussianField, degradation: BlockMask | GaussianNoise, scale: float, shift: float, batches: int = 1
) -> dict:
    """Metrics of exact draws, stretched around the posterior's mean and shifted by a share of its standard deviation."""
    whole, metrics = problem(prior, degradation), ExactPosteriorMetrics(prior, degradation)
    for rows in torch.arange(NUM_IMAGES).chunk(batches):
        batch = whole.select(rows)
        mean, samples = torch.empty_like(batch.image), torch.empty(NUM_SAMPLES, *batch.image.shape)
        std = torch.empty_like(batch.image)
        for group, law in posteriors(prior.law, degradation, *batch.observed()):
            mean[group], std[group] = (
                x.view(mean[group].shape).float()
                for x in (law.mean_BCP, law.variance_BCP.mean((1, 2), True).sqrt().expand_as(law.mean_BCP))
            )
            for k in range(NUM_SAMPLES):
                randomness = IndexRandomness.for_images(1, f"draw/{k}", batch.index[group])
                noise = randomness.normal(prior.channels, SIZE**2).double()
                samples[k, group] = law.draw(randomness.uniform().double(), noise).view(mean[group].shape).float()
        samples = mean + scale * (samples - mean) + shift * std
        metrics.update(batch, mean + shift * std, samples, IndexRandomness.for_images(2, "exact", batch.index))
    return metrics.compute()


def test_the_wasserstein_distance_equals_scipys_matrix_root() -> None:
    a, b = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    a, b, mean = a @ a.T, b @ b.T, torch.arange(5).double()
    root = linalg.sqrtm(a.numpy())
    expected = 30 + (a + b).trace() - 2 * linalg.sqrtm(root @ b.numpy() @ root).real.trace()
    assert squared_wasserstein(mean, a, mean * 0, b).item() == pytest.approx(expected.item())
    assert squared_wasserstein(mean, a, mean, a).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("prior", "degradation"),
    [(GaussianField(SIZE, 3), GaussianNoise(0.2)), (GaussianField(SIZE), BlockMask(3)), (DiscOnField(SIZE), BlockMask(4))],
    ids=["noise", "hole", "discs"],
)  # fmt: skip
def test_answers_of_a_known_fault_are_measured_as_such(prior: GaussianField, degradation: BlockMask) -> None:
    right = measured(prior, degradation, 1.0, 0.0)
    assert right["optimum_gap/mean"] == pytest.approx(0, abs=1e-4)
    assert right["posterior_bias/sample"] < 0.1
    for output in ("sample", "exact"):
        assert right[f"posterior_spread/{output}"] == pytest.approx(1, abs=0.06)
        assert right[f"posterior_w2/{output}"] < 0.06
    wrong = measured(prior, degradation, 0.7, 0.5)
    assert wrong["optimum_gap/mean"] == pytest.approx(10 * math.log10(1.25), rel=0.02)
    assert wrong["posterior_bias/sample"] == pytest.approx(0.5, abs=0.05)
    assert wrong["posterior_spread/sample"] == pytest.approx(0.7, abs=0.05)
    assert wrong["posterior_w2/sample"] == pytest.approx(0.5**2 + 0.3**2, abs=0.06)
    assert wrong["posterior_w2/exact"] == right["posterior_w2/exact"]


def test_distances_do_not_depend_on_the_batches() -> None:
    arguments = (GaussianField(SIZE), GaussianNoise(0.2), 0.9, 0.1)
    assert measured(*arguments, batches=7) == pytest.approx(measured(*arguments), rel=1e-4)


def test_a_mean_alone_is_compared_and_what_is_not_linear_refused() -> None:
    prior, degradation = GaussianField(SIZE), GaussianNoise(0.1)
    metrics, batch = ExactPosteriorMetrics(prior, degradation), problem(prior, degradation)
    assert metrics.compute() == {}
    mean: Tensor = batch.observed()[0]
    assert metrics.update(batch, mean, None, IndexRandomness.for_images(0, "exact", batch.index)) is None
    found = metrics.compute()
    assert found.keys() == {"optimum_gap/mean"}
    variance = next(iter(posteriors(prior.law, degradation, *batch.observed())))[1].variance_BCP.mean().item()
    assert found["optimum_gap/mean"] == pytest.approx(10 * math.log10(0.01 / variance), abs=0.1)
    with pytest.raises(ValueError, match="beyond black and white"):
        ExactPosteriorMetrics(prior, GaussianNoise(0.7))


def test_answers_on_another_device_are_measured_alike() -> None:
    prior, degradation = GaussianField(SIZE), BlockMask(3)
    batch = problem(prior, degradation).select(torch.arange(4))
    mean, samples = torch.zeros_like(batch.image), torch.randn(2, *batch.image.shape)
    found = []
    for move in (lambda tensor: tensor, away):
        metrics = ExactPosteriorMetrics(prior, degradation)
        draws = IndexRandomness.for_images(2, "exact", batch.index)
        with SecondDevice():
            metrics.update(batch.map(move), move(mean), move(samples), draws)
        found.append(metrics.compute())
    assert found[0] == found[1]
