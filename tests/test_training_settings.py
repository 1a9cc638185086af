"""Whatever a training is set to, it resumes to the same bits, evaluates to the same figures, and is exported and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import train_here
from round_trips import IN_THE_MIDDLE, assert_round_trips, assert_same_samples

from lightning_modules import GenerativeModule

LEAN = ["trainer.limit_val_batches=0"]
FLOW = ["experiment=meanflow_dit", "callbacks.calibration=null", "optimizer=muon", "objective.derivative=difference"]
SETTINGS = {
    "muon, difference": [*FLOW, "trainer.accumulate_grad_batches=2"],
    "muon of convolutions": [
        "experiment=vqgan_scenes",
        "data=digits",
        "optimizer=muon",
        "objective.adversarial_start=1",
    ],
}


@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS)
def test_a_run_of_other_settings_is_like_any_other(overrides: list[str], tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", *overrides, *IN_THE_MIDDLE, *LEAN, f"paths.outputs={tmp_path}")
    of_run, of_export = assert_round_trips(run, tmp_path)
    if isinstance(of_run, GenerativeModule):
        assert_same_samples(of_run, of_export)
