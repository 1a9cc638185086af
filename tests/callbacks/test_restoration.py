"""The evaluation callback counts each image once and names its numbers."""

from __future__ import annotations

import math

import pytest

from callbacks import Evaluation


def test_test_results_are_those_of_all_images(restorer, data, make_trainer) -> None:
    evaluation = Evaluation()
    trainer = make_trainer(evaluation)
    trainer.test(restorer, data, verbose=False)
    assert evaluation.record["num_images"] == 10  # 4 + 4 + 2
    assert evaluation.record["split"] == "test"
    assert "psnr" in evaluation.record["definitions"]
    assert evaluation.results["psnr/mean"] == pytest.approx(10 * math.log10(4 / 0.1**2), abs=1e-3)
    assert {"psnr/sample", "ssim/sample", "psnr_hole/mean", "psnr/degraded"} <= evaluation.results.keys()
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged == pytest.approx({f"test/{name}": value for name, value in evaluation.results.items()}, rel=1e-5)


def test_validation_is_logged_in_training_and_leaves_no_state_in_the_module(restorer, data, make_trainer) -> None:
    trainer = make_trainer(Evaluation())
    names = set(restorer.state_dict())
    trainer.fit(restorer, data)
    assert float(trainer.callback_metrics["val/psnr/mean"]) == pytest.approx(10 * math.log10(4 / 0.1**2), abs=1e-3)
    assert set(restorer.state_dict()) == names


def test_each_test_starts_afresh(restorer, data, make_trainer) -> None:
    evaluation = Evaluation()
    trainer = make_trainer(evaluation)
    trainer.test(restorer, data, verbose=False)
    first = dict(evaluation.results)
    trainer.test(restorer, data, verbose=False)
    assert evaluation.results == first
    assert evaluation.record["num_images"] == 10
