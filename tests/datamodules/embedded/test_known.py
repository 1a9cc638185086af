"""Embedded data of a known law: what they are drawn from, by index, and how a run meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import read_json, train_here

from callbacks.likelihood import Likelihood
from callbacks.measuring import SetupError
from datamodules.embedded.known import KnownLawDataModule
from generative.truth import DiscOnField, GaussianField
from generative.truth.posterior import posteriors
from launch import build
from launch.checking import check_values
from launch.commands.evaluate import main as evaluate
from launch.compose import compose_config
from launch.errors import UserError


def data(size: int = 12, **settings: object) -> KnownLawDataModule:
    return KnownLawDataModule(GaussianField(size), "gauss", size, **{"num_val": 20, "num_test": 30, **settings})


def test_images_are_drawn_by_index_from_the_law() -> None:
    few, many = data(num_train=10), data(num_train=1200)
    first, image = few.batch("train", range(10)).image, many.batch("train", range(1200)).image
    torch.testing.assert_close(image[:10], first, atol=0, rtol=0)
    assert image.std().item() == pytest.approx(0.25, rel=0.03)
    assert (image.abs() == 1).float().mean() < 1e-3
    record = many.record()
    assert record["images"] == {"train": 1200, "val": 20, "test": 30}
    assert set(record["identical_images"].values()) == {0}
    assert few.record()["fingerprints"]["val"] == record["fingerprints"]["val"]
    other = KnownLawDataModule(DiscOnField(12), "mixture", 12, num_train=10, num_val=20, num_test=30)
    assert other.record()["fingerprints"]["val"] != record["fingerprints"]["val"]


def test_any_size_and_channels() -> None:
    large = KnownLawDataModule(GaussianField(100, 3), "gauss", 100, 3, num_train=3, num_val=1, num_test=1)
    assert large.batch("train", range(3)).image.shape == (3, 3, 100, 100)


def test_labels_are_refused_in_one_sentence() -> None:
    for choice, message in (
        ("data.num_classes=10", r"data\.num_classes=10: the images of data=gauss have no labels"),
        ("module.labels=true", r"module\.labels=true, but network\.label_factors=\[\], as of data without labels"),
    ):
        config = compose_config(["experiment=meanflow_dit", "data=gauss", *FEW, choice])
        with pytest.raises(UserError, match=message) as error:
            build.check_data(build.build_module(config), build.build_datamodule(config))
        assert "\n" not in str(error.value)


FEW = ["data.num_train=3", "data.num_val=3", "data.num_test=3"]
INPAINT = ["data=mixture", "task=inpaint", "degradation=block_mask"]


def test_a_trained_run_is_evaluated_with_the_exact_network(tmp_path: Path) -> None:
    noise = ["degradation=gaussian", "degradation.steps.noise.std=0.1", "callbacks=[restore,likelihood]"]
    choices = ["experiment=meanflow_dit", "data=gauss", *noise, "callbacks.likelihood.num_calls=64"]
    run = train_here(tmp_path / "run", f"paths.outputs={tmp_path}", *choices)
    evaluate([f"run={run.path}", "network=exact", "name=exact"])
    trained, exact = (read_json(run.path / p)["metrics"] for p in ("metrics.json", "evaluations/exact/metrics.json"))
    assert exact["psnr/mean"] > trained["psnr/mean"] + 3
    assert exact["nll/sample"] == pytest.approx(exact["nll/exact"], rel=0.01)
    assert trained["nll/sample"] > trained["nll/exact"] == exact["nll/exact"]


@pytest.mark.parametrize("choices", [["experiment=regression_dit"], ["experiment=meanflow_bridge"]])
def test_a_likelihood_that_is_not_known_is_refused(choices: list[str]) -> None:
    with pytest.raises(SetupError, match="knows no likelihood of images as it is set here.*leave it out"):
        Likelihood().setup(None, build.build_module(compose_config(choices)), "fit")


@pytest.mark.parametrize("experiment", ["ddpm_scenes", "regression_dit"])
def test_any_module_answers_with_the_exact_network(experiment: str) -> None:
    """Its mean is the law's, and it has nothing to learn."""
    config = compose_config([f"experiment={experiment}", *INPAINT, "network=exact", *FEW])
    module, known = build.build_module(config), build.build_datamodule(config)
    batch = known.batch("test", range(3))
    mean = module.images_of(batch, module.evaluation_randomness(batch))["mean"]
    for rows, law in posteriors(known.prior.law, known.degradation, batch.degraded, batch.validity):
        torch.testing.assert_close(mean[rows], law.mean_BCP.view(-1, 1, 16, 16).float().clamp(-1, 1))
    with pytest.raises(UserError, match="ExactNetwork has nothing to learn"):
        build.check_training(module)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["experiment=ddpm_scenes", "data=digits", "task=inpaint"], "network=exact needs data whose law is known"),
        (["experiment=meanflow_bridge", "data=gauss"], r"source=degraded must be 'noise'"),
        (["experiment=maskgit_scenes", "data=gauss", "tokenizer=null"], "network=ExactNetwork is of another paradigm"),
    ],
)
def test_where_nothing_exact_is_known_is_told(choices: list[str], message: str) -> None:
    def built() -> None:
        config = compose_config([*choices, "network=exact"])
        check_values(config)
        build.build_module(config)

    with pytest.raises(UserError, match=message):
        built()
