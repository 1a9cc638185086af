"""Weights of the rows of a flow map's loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from generative.objectives import AdaptiveWeight
from generative.objectives.weighting import NUM_NEIGHBOURS, neighbours_error


def test_published_weight_closed_form() -> None:
    error, time = torch.tensor([0.5, 4.0]), torch.tensor([0.3, 1.0])
    own = AdaptiveWeight(power=1.0, offset=0.1, magnitude="own")
    torch.testing.assert_close(own.factors(error, time), torch.tensor([1 / 0.6, 1 / 4.1]))
    alone = own.factors(error, time, 0.3, torch.tensor([False, True]))
    torch.testing.assert_close(alone, torch.tensor([1 / 0.6, 1 / 0.6]))  # by the error of the only other row
    for magnitude in ("own", "time"):
        plain = AdaptiveWeight(power=0.0, magnitude=magnitude)
        torch.testing.assert_close(plain.factors(error, time), torch.ones(2))
    with pytest.raises(ValueError, match=r"objective\.weight\.magnitude=batch"):
        AdaptiveWeight(magnitude="batch")


@pytest.mark.parametrize("size", [1, 2, 5, 9, 40])
def test_neighbours_are_the_other_rows_nearest_in_time(size: int) -> None:
    g = torch.Generator().manual_seed(size)
    time, error = torch.rand(size, generator=g), 10 * torch.rand(size, generator=g)
    time[size // 2 :] = 1.0  # as the rows that teach the mean
    found = neighbours_error(error, time)
    order = sorted(range(size), key=lambda row: (time[row].item(), row))
    for place, row in enumerate(order):
        first = max(0, min(place - NUM_NEIGHBOURS // 2, size - 1 - NUM_NEIGHBOURS))
        others = [other for other in order[first : first + NUM_NEIGHBOURS + 1] if other != row]
        expected = sum(error[other].item() for other in others) / len(others) if others else 1.0
        assert found[row].item() == pytest.approx(expected, rel=1e-5)
        changed = error.clone()
        changed[row] += 5
        assert neighbours_error(changed, time)[row] == found[row]


@pytest.mark.parametrize(
    ("weight", "likelier"),
    [
        (AdaptiveWeight(0.0), (0.62, 0.69)),
        (AdaptiveWeight(0.5, magnitude="time"), (0.62, 0.69)),
        (AdaptiveWeight(1.0, magnitude="time"), (0.62, 0.69)),
        (AdaptiveWeight(0.5, magnitude="own", terminal="unbiased"), (0.62, 0.69)),
        (AdaptiveWeight(1.0, magnitude="own", terminal="unbiased"), (0.62, 0.69)),
        (AdaptiveWeight(0.5, magnitude="own", terminal="alike"), (0.95, 1.0)),  # the geometric median
        (AdaptiveWeight(1.0, magnitude="own", terminal="alike"), (0.99, 1.001)),  # nearly a mode
    ],
)
@pytest.mark.parametrize("size", [64, 8])
def test_the_minimiser_is_the_mean_unless_a_row_weights_itself(
    weight: AdaptiveWeight, likelier: tuple[float, float], size: int
) -> None:
    """A free estimate of one of two images with probabilities 0.65 and 0.35; the mean is 0.65 of the way."""
    g = torch.Generator().manual_seed(0)
    ones, steps = torch.ones(size), 400 if size > 8 else 1000
    estimate = nn.Parameter(torch.full((100,), 0.5))
    optimizer = torch.optim.Adam([estimate], lr=0.02)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        target = (torch.rand(size, 1, generator=g) < 0.65).float().expand(-1, 100)
        error = (estimate - target).square().sum(1)
        loss = (error * weight.factors(error, ones, step / steps, ones == 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert likelier[0] < estimate.mean().item() < likelier[1]


@pytest.mark.parametrize("magnitude", ["own", "time"])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_rows_that_teach_the_mean_are_measured_by_each_other(magnitude: str, power: float) -> None:
    error, time = torch.tensor([3.0, 8.0, 1.0, 2.0, 6.0]), torch.tensor([0.2, 0.4, 1.0, 1.0, 1.0])
    weights = {t: AdaptiveWeight(power, 0.5, magnitude, t) for t in ("alike", "unbiased", "annealed")}

    def factors(terminal: str, progress: float = 0.3) -> Tensor:
        return weights[terminal].factors(error, time, progress, time == 1)

    alike, unbiased = factors("alike"), factors("unbiased")
    torch.testing.assert_close(unbiased[2:], torch.tensor([4.5, 4.0, 2.0]).pow(-power))
    torch.testing.assert_close(unbiased[:2], alike[:2])
    torch.testing.assert_close(alike, weights["unbiased"].factors(error, time))
    own = (error[2:] + 0.5).pow(-power)
    expected = {0.0: own, 0.5: own, 0.7: (own * unbiased[2:]).sqrt(), 0.9: unbiased[2:], 1.0: unbiased[2:]}
    for progress, terminal in expected.items():
        torch.testing.assert_close(factors("annealed", progress)[2:], terminal)
