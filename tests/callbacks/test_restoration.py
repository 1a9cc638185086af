"""The evaluation callback counts each image once and names its numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from callbacks import Baselines, Calibration, Evaluation, Generation, LabelAccuracy, LabelKept, RestorationDistances
from callbacks.measuring import MeasuringCallback, SetupError
from generative.metrics import RestorationMetrics


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


def test_what_needs_known_pixels_is_measured_on_images_that_have_some_whatever_their_batch(
    data, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = data.batch("test", range(6))
    batch.validity[::2] = 0  # noise everywhere, as in a part of degradation=mixed
    monkeypatch.setattr(Baselines, "_training_images", lambda self, device: iter([batch.image]))
    results = []
    for size in (6, 4, 1):
        found = Baselines()
        found.metrics = RestorationMetrics()
        found._trainer = SimpleNamespace(testing=True)
        for rows in batch.index.split(size):
            found.take({"batch": batch.select(rows)})
        results.append(found.metrics.compute())
        assert found.metrics.num_images == 6
    assert results[1] == pytest.approx(results[0])
    assert results[2] == pytest.approx(results[0])
    gain = results[0]["psnr_pooled/mean_colour"] - results[0]["psnr_hole/mean_colour"]
    assert gain == pytest.approx(10 * math.log10(2), abs=1e-3)  # half of each of these images is hidden


@pytest.mark.parametrize("kind", [Generation, LabelAccuracy])
def test_what_is_drawn_is_not_measured_of_a_restorer_and_it_says_so_before_training(
    kind: type[MeasuringCallback], restorer, data, make_trainer
) -> None:
    with pytest.raises(
        SetupError, match=r"callbacks\.\w+ measures what modules generate, and FakeRestorer is set to restore"
    ):
        make_trainer(kind()).fit(restorer, data)


@pytest.mark.parametrize("kind", [Baselines, Calibration, Evaluation, LabelKept, RestorationDistances])
def test_what_is_restored_is_not_measured_of_a_generator(
    kind: type[MeasuringCallback], restorer, data, make_trainer
) -> None:
    restorer.current_tasks = frozenset({"generate"})
    with pytest.raises(
        SetupError, match=r"is set to generate: choose callbacks= of its task, or set callbacks\.\w+=null"
    ):
        make_trainer(kind()).fit(restorer, data)
