"""Generation: which images are drawn and compared, what is cached, and what happens without Inception's weights."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning import LightningDataModule, LightningModule
from processes import on_two_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import Generation
from files.pixels import to_bytes
from generative.metrics.features import FeatureExtractor, Features, NetworkExtractor
from generative.metrics.generation import GenerationMetrics, ReferenceFeatures
from generative.metrics.inception import INCEPTION_FILE, WeightsMissingError
from generative.randomness import IndexRandomness, Randomness
from generative.types import Batch

NUM_TRAIN, NUM_LABELS, SIZE = 30, 3, 2


class Pixels(nn.Module):
    """A classifier of which the pixels are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.input_size = SIZE
        self.num_images = 0

    def features(self, image_BCHW: Tensor) -> Tensor:
        assert image_BCHW.shape[1] == 1, "expected one channel"
        self.num_images += len(image_BCHW)
        return image_BCHW.flatten(1) * self.scale


class FakeInception(FeatureExtractor):
    """Pixels under Inception's name."""

    def __init__(self, weights: Path) -> None:
        super().__init__("inception", Pixels(), "none", "test")

    def __call__(self, image_BCHW: Tensor) -> Features:
        pixels = to_bytes(image_BCHW).flatten(1) / 127.5 - 1
        return Features(pixels, pixels)


class FakeGenerator(LightningModule):
    """Draws noise around the brightness that the labels ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)
        self.evaluation_seed = 0
        self.seen: list[Batch] = []

    def images_of(self, batch: Batch, randomness: Randomness, names: object = None) -> dict[str, Tensor]:
        self.seen.append(batch)
        centre = batch.image.new_zeros(len(batch.image)) if batch.labels is None else batch.labels.argmax(1) / 3 - 0.5
        return {"sample": centre[:, None, None, None] + 0.2 * randomness.normal(*batch.image.shape[1:])}

    def evaluation_randomness(self, batch: Batch, purpose: str = "sample") -> IndexRandomness:
        return IndexRandomness.for_images(self.evaluation_seed, purpose, batch.index, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.network(batch.image.mean().view(1, 1)).sum()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class FakeImages(LightningDataModule):
    """Images whose label is their brightness."""

    def __init__(self, labels: bool = True, fingerprint: str = "abc") -> None:
        super().__init__()
        self.labels = labels
        self.splits = SimpleNamespace(train=range(NUM_TRAIN), test=range(4))
        self.fingerprint = fingerprint

    def batch(self, split: str, indices: Any, device: Any = "cpu") -> Batch:
        index = torch.as_tensor(indices)
        image = IndexRandomness.for_images(1, split, index, device).uniform(1, SIZE, SIZE) - 0.5
        labels = nn.functional.one_hot(index % NUM_LABELS, NUM_LABELS).float().to(device)
        return Batch(image, index.to(device), labels=labels if self.labels else None)

    def record(self) -> dict[str, Any]:
        return {"name": "fake", "fingerprint": self.fingerprint, "image_size": SIZE, "channels": 1, "seed": 0}

    def test_dataloader(self) -> DataLoader:
        return DataLoader([self.batch("test", range(4))], batch_size=None)

    train_dataloader = test_dataloader


CLASSIFIER = Pixels
pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def make(tmp_path: Path, classifier: Pixels) -> Any:
    def make(**settings: Any) -> Generation:
        defaults = {"num_images": 20, "batch_size": 6, "label_classifier": "classifier.pt", "cache_dir": tmp_path}
        return Generation(**(defaults | settings))

    return make


def _test(make_trainer: Any, generation: Generation, **settings: Any) -> FakeGenerator:
    module = FakeGenerator()
    make_trainer(generation).test(module, FakeImages(**settings), verbose=False)
    return module


def test_images_are_drawn_from_labels_alone_and_compared(make, make_trainer) -> None:
    generation, module = make(num_images=70), FakeGenerator()
    trainer = make_trainer(generation)
    trainer.test(module, FakeImages(), verbose=False)
    index = torch.cat([batch.index for batch in module.seen])
    assert index.tolist() == list(range(70))
    assert all((batch.image == 0).all() and batch.degraded is None for batch in module.seen)
    labels = torch.cat([batch.labels for batch in module.seen])
    assert labels[:NUM_TRAIN].sum(0).tolist() == [10, 10, 10]  # each training image's labels once, then again
    assert torch.equal(labels[NUM_TRAIN : 2 * NUM_TRAIN], labels[:NUM_TRAIN])
    assert not torch.equal(labels[:NUM_LABELS], torch.eye(NUM_LABELS))  # in an order of their own
    names = {f"{kind}_label_classifier/sample" for kind in ("fd", "kd", "precision", "recall")}
    assert generation.results.keys() == names
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged == pytest.approx({f"test/{name}": value for name, value in generation.results.items()}, rel=1e-5)
    definition = generation.record["label_classifier"]
    assert definition["num_generated"] == generation.record["num_images"] == 70
    assert definition["num_reference"] == NUM_TRAIN
    assert "train images of fake (abc)" in definition["reference"]
    assert generation.record["missing"] == {}


def test_the_batch_size_does_not_matter_and_the_evaluation_seed_does(make, make_trainer) -> None:
    results = []
    for batch_size, seed in ((6, 0), (20, 0), (1, 0), (6, 1)):
        generation, module = make(batch_size=batch_size), FakeGenerator()
        module.evaluation_seed = seed
        make_trainer(generation).test(module, FakeImages(), verbose=False)
        results.append(generation.results)
    assert results[0] == results[1] == results[2] != results[3]


def test_data_without_labels(make, make_trainer) -> None:
    generation = make()
    module = _test(make_trainer, generation, labels=False)
    assert all(batch.labels is None for batch in module.seen)
    assert generation.results["fd_label_classifier/sample"] > 0


def test_reference_features_are_extracted_once(make, make_trainer, classifier, tmp_path) -> None:
    def num_extracted(fingerprint: str = "abc", **settings: Any) -> int:
        classifier.num_images = 0
        _test(make_trainer, make(**settings), fingerprint=fingerprint)
        return classifier.num_images - 1 - 20  # one that is tried and the generated ones

    assert num_extracted() == NUM_TRAIN
    assert num_extracted() == 0
    assert num_extracted(num_reference=NUM_TRAIN + 1) == 0  # there are no more
    assert num_extracted(num_reference=12) == 12
    assert num_extracted(reference_split="test") == 4
    assert num_extracted(fingerprint="def") == NUM_TRAIN  # other images
    with torch.no_grad():
        classifier.scale.mul_(2)
    assert num_extracted() == NUM_TRAIN  # other weights
    assert num_extracted() == 0
    for path in (tmp_path / "reference_features").iterdir():
        path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        assert num_extracted() == NUM_TRAIN
    assert num_extracted() == 0


def test_without_the_weights_a_run_says_so_and_goes_on_with_the_others(make, make_trainer, tmp_path) -> None:
    place = re.escape(str(tmp_path / "inception" / INCEPTION_FILE))
    generation = make(inception={"weights": None, "required": False})
    with pytest.warns(UserWarning, match=f"continues with label_classifier: .*not at {place}") as warnings:
        _test(make_trainer, generation)
    assert sum("Inception" in str(warning.message) for warning in warnings) == 1
    assert "fd_label_classifier/sample" in generation.results
    assert not any("fid" in name for name in generation.results)
    assert INCEPTION_FILE in generation.record["missing"]["inception"]


def test_without_any_extractor_nothing_is_drawn(make, make_trainer) -> None:
    generation = make(inception={}, label_classifier=None)
    with pytest.warns(UserWarning, match="generates nothing in test"):
        module = _test(make_trainer, generation)
    assert module.seen == []
    assert generation.results == {}
    assert generation.record["num_images"] == 0
    assert INCEPTION_FILE in generation.record["missing"]["inception"]


def test_required_weights_stop_the_run_before_its_first_step(make, make_trainer, tmp_path) -> None:
    generation, module = make(inception={"weights": tmp_path / "own.pth", "required": True}), FakeGenerator()
    with pytest.raises(WeightsMissingError, match=r"inception\.weights=.*own\.pth does not exist"):
        make_trainer(generation).fit(module, FakeImages())
    assert module.global_step == 0


def test_inception_has_the_usual_names_beside_the_other_extractor(make, make_trainer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("callbacks.generation.InceptionExtractor", FakeInception)
    (tmp_path / "inception").mkdir()
    (tmp_path / "inception" / INCEPTION_FILE).touch()
    generation = make(inception={})
    _test(make_trainer, generation)
    usual = {"fid", "kid", "precision", "recall", "inception_score"}
    other = {f"{kind}_label_classifier" for kind in ("fd", "kd", "precision", "recall")}
    assert generation.results.keys() == {f"{name}/sample" for name in usual | other}
    assert generation.results["fid/sample"] == pytest.approx(generation.results["fd_label_classifier/sample"], abs=1e-4)


def test_an_extractor_of_other_images_stops_the_run_before_its_first_step(make, make_trainer, monkeypatch) -> None:
    def refuse(self: Pixels, image_BCHW: Tensor) -> Tensor:
        raise RuntimeError("expected 3 channels")

    monkeypatch.setattr(Pixels, "features", refuse)
    with pytest.raises(ValueError, match=r"label_classifier does not take images of shape \(1, 2, 2\)"):
        make_trainer(make()).fit(FakeGenerator(), FakeImages())


def test_bad_settings_name_the_key() -> None:
    for key in ("num_images", "num_reference", "batch_size"):
        with pytest.raises(ValueError, match=rf"callbacks\.generation\.{key}=0 must be greater than or equal to 1"):
            Generation(**{key: 0})
    with pytest.raises(TypeError, match="weight"):
        Generation(inception={"weight": "file.pth"})


def _generate(folder: Path, rank: int) -> dict[str, Any]:
    """Run the callback's own hooks on one of two ranks, without the cost of a Lightning launch."""
    # Each rank has a cache of its own, as on two machines, and only that of rank 0 is filled.
    results = [_run(rank, 2, folder / f"cache_{rank}", num_images) for num_images in (15, 1, 15)]
    return {"results": results, "one_idle": _measure([[], list(range(15))][rank])}


def _measure(rows: list[int]) -> dict[str, float]:
    data, metrics = FakeImages(), GenerationMetrics(FakeInception(Path()))
    metrics.reset()
    if rows:
        metrics.update(data.batch("train", rows).image, torch.tensor(rows))
    return metrics.compute(ReferenceFeatures(data.batch("test", range(20)).image.flatten(1), "test images"))


def _run(rank: int, world_size: int, cache: Path, num_images: int) -> tuple[dict[str, float], int]:
    def everywhere(decision: bool) -> bool:
        count = torch.tensor(int(decision))
        if world_size > 1:
            dist.all_reduce(count)
        return int(count) == world_size

    generation, module = Generation(num_images=num_images, batch_size=4, cache_dir=cache), FakeGenerator()
    generation.extractors["pixels"] = NetworkExtractor("pixels", Pixels(), "none")
    module.log_dict = lambda *args, **kwargs: None
    trainer = SimpleNamespace(
        global_rank=rank,
        local_rank=0,
        world_size=world_size,
        datamodule=FakeImages(),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        strategy=SimpleNamespace(reduce_boolean_decision=everywhere, barrier=lambda: None),
    )
    generation.setup(trainer, module, "test")
    generation.on_test_epoch_end(trainer, module)
    return generation.results, sum(len(batch.index) for batch in module.seen)


def test_two_ranks_share_the_images_and_agree_with_one(tmp_path) -> None:
    _run(0, 1, tmp_path / "cache_0", 1)  # fills the cache of rank 0
    answers = on_two_ranks(partial(_generate, tmp_path), tmp_path)
    results, _ = _run(0, 1, tmp_path / "cache", 15)
    assert len(results) == 4
    one_set = _measure(list(range(15)))
    assert len(one_set) == 5
    for measured, (share, share_of_one) in zip(answers, [(8, 1), (7, 0)], strict=True):
        uneven, single, again = measured["results"]
        assert uneven == again == (results, share)
        assert single == ({}, share_of_one)  # one image is too few for any metric
        assert measured["one_idle"] == one_set
    assert len(list((tmp_path / "cache_1" / "reference_features").iterdir())) == 1
