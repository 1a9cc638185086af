"""Mask schedules: their end points, their formulas, and how many tokens they leave masked."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from generative.schedules import MaskSchedule
from generative.schedules.masking import largest, masked_count

FORMULAS: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "half_cosine": lambda r: 0.5 * (1 + math.cos(math.pi * r)),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "sqrt": lambda r: 1 - math.sqrt(r),
    "stair": lambda r: 1 - math.floor(round(r * 1000) / 100) * 0.1,
    "one_shot": lambda r: float(r == 0),
    "arccos": lambda r: math.acos(r) / (math.pi / 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FORMULAS)
def test_schedules_fall_from_exactly_one_to_exactly_zero(name: str, dtype: torch.dtype) -> None:
    share = MaskSchedule(name)(torch.linspace(0, 1, 1001, dtype=dtype))
    assert share.dtype is dtype
    assert share[0] == 1
    assert share[-1] == 0
    assert ((share >= 0) & (share <= 1)).all()
    assert (share.diff() <= 0).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_schedules_equal_their_formulas(name: str) -> None:
    progress = [i / 1000 for i in range(1001)]
    expected = torch.tensor([FORMULAS[name](r) for r in progress])
    torch.testing.assert_close(MaskSchedule(name)(torch.tensor(progress)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stairs_fall_at_every_tenth(dtype: torch.dtype) -> None:
    """In floats 0.3 / 0.1 and 0.7 / 0.1 lie below 3 and 7."""
    progress = torch.tensor([i / 10 for i in range(11)], dtype=dtype)
    assert (MaskSchedule("stair")(progress) * 10).round().tolist() == list(range(10, -1, -1))
    assert (MaskSchedule("stair")(progress[1:] - 1e-4) * 10).round().tolist() == list(range(10, 0, -1))


@pytest.mark.parametrize("name", ["linear", "square", "stair"])
def test_counts_equal_whole_number_arithmetic(name: str) -> None:
    unknown = torch.arange(300)
    for num_steps in (1, 3, 7, 8, 10, 12, 49):
        for step in range(num_steps + 1):
            numerator, denominator = {
                "linear": (num_steps - step, num_steps),
                "square": (num_steps**2 - step**2, num_steps**2),
                "stair": (10 - 10 * step // num_steps, 10),
            }[name]
            expected = [-(-numerator * m // denominator) for m in range(300)]
            assert MaskSchedule(name).masked_after(step, num_steps, unknown).tolist() == expected


@pytest.mark.parametrize("name", FORMULAS)
def test_counts_never_rise_and_reach_zero_at_the_last_step_alone(name: str) -> None:
    unknown = torch.tensor([0, 1, 2, 63, 256, 4096])
    counts = torch.stack([MaskSchedule(name).masked_after(i, 12, unknown) for i in range(13)])
    assert torch.equal(counts[0], unknown)
    assert (counts.diff(dim=0) <= 0).all()
    assert (counts[-1] == 0).all()
    if name != "one_shot":
        assert (counts[:-1, 1:] > 0).all()


def published_counts(name: str, num_steps: int, unknown: int) -> list[int]:
    """Tokens still masked after each step: the paper's ceiling in the loop of google-research/maskgit, for T <= M."""
    masked = [unknown]
    for step in range(num_steps):
        after = math.ceil(FORMULAS[name]((step + 1) / num_steps) * unknown - 1e-4)  # not for the noise of floats
        masked.append(max(1, min(masked[-1] - 1, after)))  # at least one is kept, and one is left for the next step
    return [*masked[1:-1], 0]  # the last step takes all


@pytest.mark.parametrize("name", FORMULAS)
def test_every_step_of_a_decoding_accepts_a_token(name: str) -> None:
    unknown = torch.arange(65)
    for num_steps in range(1, 17):
        left = MaskSchedule(name).masked_after_steps(num_steps, unknown)
        accepted = -torch.cat([unknown[None], left]).diff(dim=0)
        assert torch.equal(accepted.sum(dim=0), unknown)
        assert torch.equal(accepted > 0, torch.arange(num_steps)[:, None] < unknown)  # min(T, M) steps, none idle
        for m in range(num_steps, 65):
            published = published_counts(name, num_steps, m)
            steps_left = [num_steps - step for step in range(1, num_steps + 1)]
            # The published loop may run into its floor of one token and then accept nothing until the last step.
            assert left[:, m].tolist() == [max(a, b) for a, b in zip(published, steps_left, strict=True)]


def test_shares_are_rounded_up_but_not_for_the_noise_of_floats() -> None:
    total = torch.tensor([30, 100, 256, 256, 5, 0])
    share = torch.tensor([0.1, 0.07, 0.5, 1.0, 0.41, 1.0])
    assert masked_count(share, total).tolist() == [3, 7, 128, 256, 3, 0]
    assert masked_count(0.07, torch.tensor([100])).item() == 7  # 0.07 * 100 is 7.000000000000001


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.name=cubic must be 'cosine', .* or 'one_shot'"):
        MaskSchedule("cubic")


def test_largest_marks_exactly_as_many_also_among_equals() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [5.0, -math.inf, 1.0, 4.0]])
    marked = largest(score, torch.tensor([2, 3, 0]))
    assert marked.tolist() == [[False, True, True, False], [True, True, True, False], [False] * 4]
