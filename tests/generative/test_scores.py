"""Scores of samples: closed forms of Gaussians, independent code, and that neither collapse nor excess wins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from generative.metrics import SampleScores
from generative.metrics.scores import crps, energy_score, inside, rank_shares
from generative.types import Batch


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_scores_equal_plain_loops() -> None:
    samples, truth = draws(5, 3, 4).numpy(), draws(3, 4, seed=1).numpy()
    pairs = [(k, m) for k in range(5) for m in range(5) if k != m]
    for row in range(3):
        far = np.mean([np.linalg.norm(samples[k, row] - truth[row]) for k in range(5)])
        apart = np.mean([np.linalg.norm(samples[k, row] - samples[m, row]) for k, m in pairs])
        found = energy_score(torch.tensor(samples), torch.tensor(truth))[row].item()
        assert found == pytest.approx(far - apart / 2, rel=1e-5)
    pixelwise = (
        np.mean(np.abs(samples - truth), 0) - np.mean([np.abs(samples[k] - samples[m]) for k, m in pairs], 0) / 2
    )
    torch.testing.assert_close(crps(torch.tensor(samples), torch.tensor(truth)), torch.tensor(pixelwise))


@pytest.mark.parametrize("num_samples", [2, 5, 16])
def test_the_scores_of_a_gaussian_have_their_closed_form(num_samples: int) -> None:
    """For any number of samples (Gneiting and Raftery 2007, eq. 21; E|x| of a normal vector is that of the chi law)."""
    truth, std, mean, size = 0.7, 1.5, 0.2, 20_000
    z = (truth - mean) / std
    normal = stats.norm()
    expected = std * (z * (2 * normal.cdf(z) - 1) + 2 * normal.pdf(z) - 1 / math.sqrt(math.pi))
    found = crps(mean + std * draws(num_samples, size), torch.full((size,), truth)).mean().item()
    assert found == pytest.approx(expected, abs=0.03)
    length = stats.chi(
        3
    ).mean()  # of a standard normal vector of 3 numbers; that of a difference is sqrt 2 times as long
    energy = energy_score(draws(num_samples, size, 3), draws(size, 3, seed=2)).mean().item()
    assert energy == pytest.approx(length * math.sqrt(2) / 2, abs=0.03)


def test_ranks_are_uniform_and_ties_are_shared() -> None:
    ranks = rank_shares(draws(4, 50_000), draws(50_000, seed=1)).mean(1)
    torch.testing.assert_close(ranks, torch.full((5,), 0.2), atol=0.01, rtol=0)
    assert rank_shares(torch.tensor([[1.0], [torch.nan]]), torch.tensor([2.0])).isnan().all()
    shares = rank_shares(torch.tensor([[1.0], [2.0], [2.0]]), torch.tensor([2.0]))
    torch.testing.assert_close(shares[:, 0], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]))
    torch.testing.assert_close(inside(5, 0.8), torch.tensor([0.5, 1, 1, 1, 0.5]).double())
    assert inside(17, 0.8).mean().item() == pytest.approx(0.8)


def scored(spread: float, shift: float = 0.0, num_samples: int = 6, batches: int = 1) -> tuple[dict, SampleScores]:
    """Images of one colour plus noise, half of them with a hole; samples around the same mean, of another spread."""
    truth, samples = 0.2 * draws(400, 2, 4, 4, seed=1), 0.2 * draws(num_samples, 400, 2, 4, 4, seed=2)
    validity = torch.zeros(400, 1, 4, 4)
    validity[::2, :, 1:] = 1
    samples = samples * spread + shift
    samples = torch.where(validity == 1, truth, samples)
    metrics = SampleScores()
    for rows in torch.arange(400).chunk(batches):
        metrics.update(samples[:, rows], Batch(truth[rows], rows, validity=validity[rows]))
    return metrics.compute(), metrics


def test_neither_collapse_nor_excess_nor_a_shift_wins() -> None:
    right, metrics = scored(1.0)
    for other, _ in (scored(0.0), scored(0.5), scored(1.6), scored(1.0, 0.15)):
        for key in ("energy_score", "energy_score_hole", "crps", "crps_hole"):
            assert other[f"{key}/sample"] > right[f"{key}/sample"]
    assert right["coverage/sample"] == pytest.approx(0.8, abs=0.02)
    assert right["coverage_mean/sample"] == pytest.approx(0.8, abs=0.06)
    assert sum(metrics.histograms["pixels/sample"]) == pytest.approx(1)
    assert metrics.histograms["pixels/sample"] == pytest.approx([1 / 7] * 7, abs=0.02)
    narrow, wide = scored(0.5)[0], scored(1.6)[0]
    assert narrow["coverage/sample"] < 0.65
    assert wide["coverage_mean/sample"] > 0.85
    assert metrics.num_images == 400


def test_scores_do_not_depend_on_the_batches() -> None:
    assert scored(1.0, batches=7)[0] == pytest.approx(scored(1.0)[0], rel=1e-6)


def test_known_pixels_count_neither_for_coverage_nor_in_the_hole() -> None:
    image, samples = 0.2 * draws(10, 1, 4, 4), 0.2 * draws(3, 10, 1, 4, 4, seed=1)
    validity = torch.ones(10, 1, 4, 4)
    validity[..., 0, :] = 0
    metrics, cut = SampleScores(), SampleScores()
    metrics.update(torch.where(validity == 1, image, samples), Batch(image, torch.arange(10), validity=validity))
    cut.update(samples[..., :1, :], Batch(image[..., :1, :], torch.arange(10)))
    found, expected = metrics.compute(), cut.compute()
    for key in ("coverage", "coverage_mean"):
        assert found[f"{key}/sample"] == pytest.approx(expected[f"{key}/sample"], rel=1e-6)
    for key in ("energy_score", "crps"):
        assert found[f"{key}_hole/sample"] == pytest.approx(expected[f"{key}/sample"], rel=1e-5)
    everything = SampleScores()
    everything.update(samples, Batch(image, torch.arange(10), validity=torch.ones_like(validity)))
    assert everything.compute().keys() == {"crps/sample", "energy_score/sample"}


def test_the_colours_of_hidden_objects_are_covered_as_often_as_they_should_be() -> None:
    """Two objects an image, one of them half hidden; ranks equal plain loops over the pixels that show it and are hidden."""
    objects = torch.zeros(400, 3, 4, 4, dtype=torch.bool)
    objects[:, 0, :2], objects[:, 2, 2:, :2] = True, True
    validity = torch.zeros(400, 1, 4, 4)
    validity[:, :, 1:] = 1  # of the first object one row is hidden, of the other nothing
    truth, samples = 0.2 * draws(400, 3, 4, 4, seed=1), 0.2 * draws(6, 400, 3, 4, 4, seed=2)
    found = {}
    for spread in (1.0, 0.5, 1.6):
        metrics = SampleScores()
        for rows in torch.arange(400).split(150):
            batch = Batch(truth[rows], rows, validity=validity[rows])
            metrics.update(torch.where(validity == 1, truth, spread * samples)[:, rows], batch, "sample", objects[rows])
        found[spread] = metrics.compute()["coverage_object/sample"]
        colours, colour = (spread * samples).clamp(-1, 1)[..., 0, :].mean(-1), truth[..., 0, :].mean(-1)
        ranks = (colours < colour).sum(0)
        shares = [(ranks == rank).float().mean().item() for rank in range(7)]
        assert metrics.histograms["object/sample"] == pytest.approx(shares, abs=1e-6)
        parts = metrics.by_image.merged()["coverage_object/sample"]
        assert parts.mean.item() == pytest.approx(found[spread])
        assert parts.weight.unique().tolist() == [3.0]
    assert found[1.0] == pytest.approx(0.8, abs=0.03)
    assert found[0.5] < 0.6
    assert found[1.6] > 0.87
    metrics = SampleScores()
    metrics.update(samples, Batch(truth, torch.arange(400), validity=torch.ones_like(validity)), "sample", objects)
    assert "coverage_object/sample" not in metrics.compute()
