"""Learning-rate factors."""

from __future__ import annotations

import pytest

from generative.schedules import WarmupCosine


def test_warmup_cosine_end_points() -> None:
    factor = WarmupCosine(total_steps=1000, warmup_steps=100, final_share=0.1)
    assert factor(0) == pytest.approx(1 / 101)
    assert factor(100) == pytest.approx(1.0)
    assert factor(550) == pytest.approx(0.55)
    assert factor(1000) == pytest.approx(0.1)
    assert all(factor(i) < factor(i + 1) for i in range(99))
    assert all(factor(i) > factor(i + 1) for i in range(100, 1000))


def test_short_runs_warm_up_too() -> None:
    assert WarmupCosine(total_steps=20, warmup_steps=500)(2) == pytest.approx(1.0)
