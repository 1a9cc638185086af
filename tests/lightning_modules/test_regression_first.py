"""Flows that begin with the answer of a trained regression: PMRF, and MeanFlow that is shown it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import read_json, train_here
from round_trips import IN_THE_MIDDLE, alone, assert_round_trips, assert_same_samples, checkpoint

import triptych
from generative.networks.trained_regression import TrainedRegression
from launch import build
from launch.commands import evaluate
from launch.compose import compose_config
from launch.errors import UserError
from launch.run_folder import RunFolder
from launch.use.restorer import Request, Restorer, tiling_of

NOISE = ["degradation=gaussian"]


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("outputs")
    overrides = ["experiment=regression_dit", f"paths.outputs={folder}", *NOISE, *alone("regression_dit")]
    return train_here(folder / "regression_dit" / "run", *overrides)


def built(regression: RunFolder, experiment: str, *overrides: str) -> triptych.GenerativeModule:
    small = ["network.dim=32", "network.depth=1", "network.num_heads=2"]
    overrides = (
        f"experiment={experiment}",
        f"paths.outputs={regression.path.parent.parent}",
        *NOISE,
        *small,
        *overrides,
    )
    module = build.build_module(compose_config(list(overrides)))
    assert isinstance(module, triptych.GenerativeModule)
    return module.eval()


def batch(size: int = 32) -> triptych.Batch:
    image = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    degraded = (image + 0.3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    return triptych.Batch(image, torch.arange(2), degraded=degraded, validity=torch.zeros_like(image))


def test_pmrf_with_a_discriminator_trains_resumes_evaluates_exports_and_makes_images(
    regression: RunFolder, tmp_path: Path
) -> None:
    outputs = regression.path.parent.parent
    judged = ["discriminator=patch", "discriminator.channels=8", "module.image_terms.adversarial_start=1"]
    overrides = [f"paths.outputs={outputs}", *NOISE, *judged, *alone("pmrf"), *IN_THE_MIDDLE]
    run = train_here(outputs / "pmrf" / "run", "experiment=pmrf", *overrides)
    assert run.record["parts"]["regression"]["path"] == str(regression.checkpoint)
    of_run, of_export = assert_round_trips(run, tmp_path)
    assert_same_samples(of_run, of_export)
    assert of_export.discriminator is None  # training alone needs it
    state, average = checkpoint(run)["state_dict"], checkpoint(run)["callbacks"]["EMA"]["average"]
    assert any(key.startswith("discriminator.") for key in state)
    assert not any("discriminator" in key for key in average)
    assert "train/discriminator" in (run.path / "metrics.csv").read_text()
    # Its mean is the regression's own answer, the baseline of squared error; another degradation keeps the regression.
    evaluate.main([f"run={run.path}", "name=other", "degradation=block_mask"])
    evaluate.main([f"run={regression.path}", "name=other", "degradation=block_mask"])
    of_pmrf, own = (
        read_json(each.path / "evaluations" / "other" / "metrics.json")["metrics"] for each in (run, regression)
    )
    assert of_pmrf["psnr/mean"] == own["psnr/mean"]
    model = run.path / "export" / "regression" / "model.safetensors"
    again, trained = TrainedRegression.load(model), TrainedRegression.load(regression.checkpoint)
    torch.testing.assert_close(again.answer(batch()), trained.answer(batch()))


def test_the_flow_begins_at_the_answer_and_its_noise(regression: RunFolder) -> None:
    pmrf, seen = built(regression, "pmrf", "module.source_std=0.2"), batch()
    answer = TrainedRegression.load(regression.checkpoint).answer(seen)
    draws = pmrf.evaluation_randomness(seen)
    source = answer + 0.2 * draws.normal(1, 32, 32)
    state = next(iter(pmrf.states(seen, pmrf.evaluation_randomness(seen))))
    begun = next(iter(pmrf.sampler.states(pmrf.flow_map, source, triptych.Condition())))
    torch.testing.assert_close(state.z, begun.z)
    assert torch.equal(pmrf.images_of(seen, draws)["mean"], answer)
    assert {name: output.num_network_calls for name, output in pmrf.outputs.items()} == {"sample": 2, "mean": 1}
    assert pmrf.network.condition_channels == 0


def test_another_flow_is_shown_the_answer_and_pictures_of_any_size_go_in_tiles(regression: RunFolder) -> None:
    module, seen = built(regression, "meanflow_regression"), batch()
    answer = TrainedRegression.load(regression.checkpoint).answer(seen)
    condition = module.condition(seen)
    assert torch.equal(condition.image, torch.cat([answer, seen.validity], 1))
    loss = module.loss(seen, module.evaluation_randomness(seen)).loss
    loss.backward()
    assert all(p.grad is not None for p in module.network.parameters())
    assert not any(p.requires_grad for p in module.regression.network.parameters())
    for experiment in ("pmrf", "meanflow_regression"):
        module = built(regression, experiment)
        restorer = Restorer(module, None, 32, 1, "mean", module.device, tiling_of(module, 32))
        large = batch(50)
        made = restorer.restore_in_tiles(Request(0, large.image[:1], None, (50, 50)))
        assert made.shape == (1, 1, 50, 50)
        assert len(module.pixel_networks()) == 2


def test_auto_takes_a_regression_of_the_same_degradation_alone(regression: RunFolder) -> None:
    for experiment in ("pmrf", "meanflow_regression"):
        with pytest.raises(UserError, match=r"need a trained regression of the same data and degradation: train one"):
            built(regression, experiment, "degradation=block_mask")
    with pytest.raises(UserError, match=r"regression=.* has no effect on module=MeanFlow"):
        compose_config(["experiment=meanflow_dit", f"regression={regression.path}"])
    with pytest.raises(UserError, match=r"module\.source=regression needs degraded images, and task=generate"):
        build.build_module(compose_config(["experiment=pmrf", "task=generate", "data=scenes"]))
