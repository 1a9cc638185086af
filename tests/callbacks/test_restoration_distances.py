"""RestorationDistances: what is compared with what, the subset of the test images, and missing weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import Generation, RestorationDistances
from generative.metrics import inception
from generative.metrics.features import FeatureExtractor, Features
from generative.metrics.generation import frechet_distance
from generative.metrics.inception import INCEPTION_FILE, WeightsMissingError

ROOT = Path(__file__).resolve().parents[2]
NUM_TEST, NUM_TRAIN = 10, 160  # of the fake data
KINDS = (
    "fd_label_classifier_paired",
    "kd_label_classifier_paired",
    *(f"{kind}_label_classifier" for kind in ("fd", "kd", "precision", "recall")),
)


def _quarters(image_BCHW: Tensor) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(image_BCHW, 2).flatten(1)


class Quarters(nn.Module):
    """A classifier of which the means of the image's quarters are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = 16
        self.num_images = 0

    def features(self, image_BCHW: Tensor) -> Tensor:
        self.num_images += len(image_BCHW)
        return _quarters(image_BCHW)


class FakeInception(FeatureExtractor):
    """The same features under Inception's name."""

    def __init__(self, weights: Path, key: str) -> None:
        assert key == "callbacks.restoration_distances.inception.weights"
        super().__init__("inception", Quarters(), "none", "test")

    def __call__(self, image_BCHW: Tensor) -> Features:
        features = _quarters(image_BCHW.clamp(-1, 1))
        return Features(features, features)


CLASSIFIER = Quarters
pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def make(tmp_path: Path, classifier: Quarters) -> Any:
    def make(**settings: Any) -> RestorationDistances:
        return RestorationDistances(**({"label_classifier": "classifier.pt", "cache_dir": tmp_path} | settings))

    return make


@pytest.fixture(autouse=True)
def _record(data: LightningDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"name": "fake", "fingerprint": "abc", "image_size": 16, "channels": 1}
    monkeypatch.setattr(type(data), "record", lambda self: record, raising=False)


def _rounded(image: Tensor) -> Tensor:
    """Quarters of what an 8-bit file holds."""
    return _quarters(((image.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1).double()


def test_each_output_is_compared_with_its_clean_images_and_with_the_reference(
    make, make_trainer, restorer, data
) -> None:
    callback = make()
    trainer = make_trainer(callback)
    trainer.test(restorer, data, verbose=False)
    assert callback.results.keys() == {f"{kind}/{output}" for kind in KINDS for output in ("sample", "mean")}
    clean, train = data.batch("test", range(NUM_TEST)).image, data.batch("train", range(NUM_TRAIN)).image
    for reference, name in ((clean, "fd_label_classifier_paired"), (train, "fd_label_classifier")):
        expected = frechet_distance(_rounded(clean + 0.1), _rounded(reference))
        assert callback.results[f"{name}/mean"] == pytest.approx(expected, rel=1e-4)
    assert callback.results["fd_label_classifier_paired/mean"] == pytest.approx(4 * 0.1**2, rel=0.02)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged == pytest.approx({f"test/{name}": value for name, value in callback.results.items()}, rel=1e-5)
    definitions = callback.record["label_classifier"]["mean"]
    assert callback.record["num_images"] == definitions["paired"]["num_reference"] == NUM_TEST
    assert definitions["unpaired"]["num_reference"] == NUM_TRAIN
    assert "train images of fake (abc)" in definitions["unpaired"]["reference"]
    assert callback.record["split"] == "test"
    assert callback.record["missing"] == {}


def test_perfect_restorations_are_at_no_paired_distance(make, make_trainer, restorer, data, monkeypatch) -> None:
    monkeypatch.setattr(restorer, "sample", lambda batch, randomness: {"sample": batch.image})
    callback = make()
    make_trainer(callback).test(restorer, data, verbose=False)
    assert callback.results["fd_label_classifier_paired/sample"] == pytest.approx(0, abs=1e-9)
    assert callback.results["kd_label_classifier_paired/sample"] == pytest.approx(0, abs=1e-2)
    assert callback.results["fd_label_classifier/sample"] > 1e-4


def test_a_subset_of_the_test_images_whatever_the_batches(make, make_trainer, restorer, data, monkeypatch) -> None:
    results = []
    for batch_size in (1, 3, 10):
        chunks = [data.batch("test", rows) for rows in torch.arange(NUM_TEST).flip(0).split(batch_size)]
        monkeypatch.setattr(data, "test_dataloader", lambda chunks=chunks: DataLoader(chunks, batch_size=None))
        callback = make(num_images=6)
        make_trainer(callback).test(restorer, data, verbose=False)
        assert callback.record["num_images"] == 6
        results.append(callback.results)
    assert results[0] == pytest.approx(results[1], abs=1e-6)
    assert results[0] == pytest.approx(results[2], abs=1e-6)
    clean = data.batch("test", range(6)).image
    expected = frechet_distance(_rounded(clean + 0.1), _rounded(clean))
    assert results[0]["fd_label_classifier_paired/mean"] == pytest.approx(expected, rel=1e-4)


def test_one_image_is_too_few_for_any_distance(make, make_trainer, restorer, data) -> None:
    callback = make(num_images=1)
    make_trainer(callback).test(restorer, data, verbose=False)
    assert callback.results == {}
    assert callback.record["num_images"] == 1
    skipped = callback.record["label_classifier"]["mean"]["paired"]["skipped"]
    assert skipped["fd_label_classifier_paired"] == "needs 2 images, got 1"


def test_reference_features_are_those_that_generation_keeps(make, make_trainer, restorer, data, classifier) -> None:
    restorer.evaluation_seed = 0
    restorer.current_tasks = frozenset({"restore", "generate"})
    generation = Generation(num_images=4, label_classifier="file", cache_dir=make().cache_dir)
    make_trainer(generation).test(restorer, data, verbose=False)
    for num_reference, extracted in ((None, 0), (12, 12), (12, 0)):
        classifier.num_images = 0
        callback = make(num_reference=num_reference)
        make_trainer(callback).test(restorer, data, verbose=False)
        own = 1 + 3 * NUM_TEST  # one that is tried; the clean images and two outputs
        assert classifier.num_images == own + extracted


def test_inception_has_the_usual_names_beside_the_other_extractor(
    make, make_trainer, restorer, data, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("callbacks.restoration_distances.InceptionExtractor", FakeInception)
    (tmp_path / "inception").mkdir()
    (tmp_path / "inception" / INCEPTION_FILE).touch()
    callback = make(inception={})
    make_trainer(callback).test(restorer, data, verbose=False)
    usual = ("fid_paired", "kid_paired", "fid", "kid", "precision", "recall", "inception_score")
    assert callback.results.keys() == {f"{kind}/{output}" for kind in (*KINDS, *usual) for output in ("sample", "mean")}
    assert callback.record.keys() == {"split", "num_images", "missing", "inception", "label_classifier"}


def test_without_any_extractor_it_warns_before_the_first_step_and_measures_nothing(
    make, make_trainer, restorer, data, tmp_path
) -> None:
    place = re.escape(str(tmp_path / "inception" / INCEPTION_FILE))
    callback = make(inception={"weights": None, "required": False}, label_classifier=None)
    with pytest.warns(UserWarning, match=f"no extractor, so it measures no distances in test: .*not at {place}"):
        make_trainer(callback, max_steps=1, limit_val_batches=0).fit(restorer, data)
    make_trainer(callback).test(restorer, data, verbose=False)
    assert callback.results == {}
    assert callback.record["num_images"] == 0
    assert "set callbacks.restoration_distances.inception.weights=FILE" in callback.record["missing"]["inception"]


def test_required_weights_stop_the_run_before_its_first_step(make, make_trainer, restorer, data, tmp_path) -> None:
    callback = make(inception={"weights": tmp_path / "own.pth", "required": True})
    key = r"callbacks\.restoration_distances\.inception\.weights"
    with pytest.raises(WeightsMissingError, match=rf"{key}=.*own\.pth does not exist"):
        make_trainer(callback).fit(restorer, data)
    assert restorer.global_step == 0
    (tmp_path / "own.pth").write_bytes(b"damaged")
    callback = make(inception={"weights": tmp_path / "own.pth"})
    with pytest.raises(inception.WeightsError, match=rf"is damaged .*or set {key} to another file"):
        make_trainer(callback).fit(restorer, data)


def test_an_extractor_of_other_images_stops_the_run_before_its_first_step(
    make, make_trainer, restorer: LightningModule, data, monkeypatch
) -> None:
    def refuse(self: Quarters, image_BCHW: Tensor) -> Tensor:
        raise RuntimeError("expected 3 channels")

    monkeypatch.setattr(Quarters, "features", refuse)
    with pytest.raises(ValueError, match=r"set callbacks\.restoration_distances\.label_classifier=null"):
        make_trainer(make()).fit(restorer, data)
    assert restorer.global_step == 0


def test_bad_settings_name_the_key() -> None:
    for key in ("num_images", "num_reference"):
        with pytest.raises(
            ValueError, match=rf"callbacks\.restoration_distances\.{key}=0 must be greater than or equal to 1"
        ):
            RestorationDistances(**{key: 0})
    with pytest.raises(TypeError, match="weight"):
        RestorationDistances(inception={"weight": "file.pth"})


def test_the_config_has_the_callbacks_keys() -> None:
    config = OmegaConf.load(ROOT / "conf" / "callbacks" / "restoration_distances.yaml").restoration_distances
    config.label_classifier = config.cache_dir = None
    settings = OmegaConf.to_container(config)
    assert settings.pop("_target_") == "callbacks.RestorationDistances"
    assert vars(RestorationDistances(**settings)).keys() == vars(RestorationDistances()).keys()
