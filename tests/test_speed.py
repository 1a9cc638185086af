"""What the benchmark of speeds measures beside public code runs, and is a step that trains."""

from __future__ import annotations

import sys

import torch
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from speed import FIRST_NETWORK
from step_worker import product_step


def test_a_step_of_the_objective_alone_trains_without_an_image_to_restore(monkeypatch) -> None:
    steps: list[torch.optim.Optimizer] = []
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda self: steps.append(self))
    step = product_step("bare", 2, False, ["experiment=meanflow_dit", "optimizer=muon", *FIRST_NETWORK])
    step(0)
    weights = [p for group in steps[0].param_groups for p in group["params"]]
    assert sum(p.numel() for p in weights) > 2e6
    assert all(p.grad is None or p.grad.isfinite().all() for p in weights)
    before = [p.detach().clone() for p in weights]
    step(1)
    assert not all(map(torch.equal, before, weights))
