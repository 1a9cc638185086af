"""The calibration callback draws independent samples of the first images only."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import SIZE

from callbacks import Calibration
from callbacks.measuring import SetupError
from generative.degradations import BlockMask, SaltAndPepper
from generative.metrics.calibration import theoretical_gap
from generative.truth import GaussianField
from launch import build
from launch.compose import compose_config
from lightning_modules.contract import Output


def test_samples_of_the_first_images(restorer, data, make_trainer) -> None:
    calibration = Calibration(num_images=6, num_samples=8)
    trainer = make_trainer(calibration)
    trainer.test(restorer, data, verbose=False)
    assert calibration.record["num_images"] == 6  # one batch and half of the next
    assert calibration.results["spread/sample"] == pytest.approx(0.05, rel=0.05)
    assert calibration.results["spread_ratio/sample"] > 1  # the fake samples lie around the truth itself
    assert {"crps/sample", "energy_score_hole/sample", "coverage_mean/sample"} <= calibration.by_image.keys()
    for k in (1, 2, 4, 8):
        expected = 10 * math.log10(4 * k / 0.05**2)
        assert calibration.results[f"calibration_psnr/mean_of_{k}"] == pytest.approx(expected, abs=0.3)
    assert calibration.results["calibration_psnr/mean"] == pytest.approx(10 * math.log10(4 / 0.1**2), abs=1e-3)
    assert calibration.record["definitions"]["theory_dB"]["calibration_gap/mean_of_1"] == pytest.approx(3.01, abs=0.01)
    assert "test/spread/sample" in trainer.callback_metrics


def test_results_do_not_depend_on_the_other_images(restorer, data, make_trainer) -> None:
    results = []
    for num_test_batches in (1, 3):
        calibration = Calibration(num_images=4, num_samples=4)
        make_trainer(calibration, limit_test_batches=num_test_batches).test(restorer, data, verbose=False)
        results.append(calibration.results)
    assert results[0] == results[1]


def test_a_module_without_the_output_is_passed_over(restorer, data, make_trainer) -> None:
    calibration = Calibration(output="posterior")
    make_trainer(calibration).test(restorer, data, verbose=False)  # which does not say what it makes
    assert calibration.results == {}
    assert calibration.record == {}


def test_a_misspelt_output_is_told_before_anything_is_measured(restorer, data, make_trainer) -> None:
    restorer.outputs = {"sample": Output(1), "mean": Output(1)}
    with pytest.raises(
        SetupError, match=r"calibration\.output=smaple is no output of FakeRestorer .*: did you mean sample\?"
    ):
        make_trainer(Calibration(output="smaple")).fit(restorer, data)
    restorer.outputs = {"mean": Output(1)}
    make_trainer(Calibration(output="smaple"), max_steps=1).fit(restorer, data)  # a regression: nothing could scatter


def test_samples_are_scored_and_a_mean_alone_is_compared_with_the_exact_posterior(
    restorer, data, make_trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake restorer's samples are far too close to the truth; its data are said to have a law."""
    monkeypatch.setattr(type(data), "prior", GaussianField(SIZE, std=0.2), raising=False)
    monkeypatch.setattr(type(data), "degradation", BlockMask(8), raising=False)
    calibration = Calibration(num_images=6, num_samples=4)
    make_trainer(calibration).test(restorer, data, verbose=False)
    assert calibration.results["energy_score_hole/sample"] < calibration.results["energy_score_hole/exact"]
    assert calibration.results["coverage/sample"] == pytest.approx(
        1 - 0.5 * 2 / 2**4, abs=0.02
    )  # the truth in their middle
    assert calibration.results["posterior_spread/exact"] > calibration.results["posterior_spread/sample"]
    assert len(calibration.record["rank_histograms"]["pixels/sample"]) == 5
    alone = Calibration(num_images=6, output="posterior")
    make_trainer(alone).test(restorer, data, verbose=False)
    assert alone.results == {"optimum_gap/mean": calibration.results["optimum_gap/mean"]}


def test_why_there_is_no_exact_posterior_is_said_once(
    restorer, data, make_trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(data), "prior", GaussianField(SIZE), raising=False)
    monkeypatch.setattr(type(data), "degradation", SaltAndPepper(0.1), raising=False)
    calibration = Calibration(num_images=2, num_samples=2)
    for _ in range(2):
        make_trainer(calibration).test(restorer, data, verbose=False)
    assert capsys.readouterr().out.count("No comparison with the exact posterior: degradation: SaltAndPepper") == 1
    assert not any(name.startswith("posterior") for name in calibration.results)


@pytest.mark.parametrize(
    ("choices", "least", "most"),
    [
        (["experiment=ddpm_scenes", "sampler=ddim", "sampler.num_steps=8"], 0.55, 0.8),
        (["experiment=meanflow_dit", "sampler=heun"], 0.97, 1.08),
        (["experiment=meanflow_dit", "module.labels=true"], None, None),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_the_solver_is_measured_alone_with_the_exact_network(
    choices: list[str], least: float | None, most: float | None
) -> None:
    """Whatever the data are; not of labels, nor with many steps. The module has its own network again afterwards."""
    module = build.build_module(compose_config([*choices, "task=restore"]))
    own = module.network
    calibration = Calibration(num_samples=4)
    with torch.no_grad():
        found = calibration._of_solver(module)
    assert module.network is own
    if least is None:
        assert found == {}
        return
    spread = found["solver_spread/sample"]
    assert least < spread < most
    assert found["solver_gap/mean_of_1"] == pytest.approx(theoretical_gap(1, 0, spread), abs=0.1)
    assert found["solver_gap/mean_of_4"] == pytest.approx(theoretical_gap(4, 0, spread), abs=0.1)
    module.sampler = replace(module.sampler, num_steps=200)
    assert calibration._of_solver(module) == {}
