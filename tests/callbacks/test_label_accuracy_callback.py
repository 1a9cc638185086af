"""Label accuracy of generators: an oracle, a blind one, and what the score must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import FakeData, FakeRestorer
from torch import Tensor, nn

import callbacks.judge as judge
from callbacks import LabelAccuracy
from generative.judges.label_classifier import LabelClassifier
from generative.metrics.label_accuracy import label_scores, recognised_labels
from generative.randomness import IndexRandomness, Randomness
from generative.types import Batch
from generative.weights import weights_hash

NUM_LABELS, SIZE = 24, 32


class Stencil(nn.Module):
    """A stand-in classifier: the scores stand in the first row of pixels."""

    num_labels, in_channels, trained_on = NUM_LABELS, 3, None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return image[:, 0, 0, :NUM_LABELS] * self.weight


class FakeGenerator(FakeRestorer):
    """Draws noise; writes a share of the asked labels into it, the others by chance."""

    tasks = current_tasks = frozenset({"generate"})
    evaluation_seed = 5

    def __init__(self, sighted: float, assisted: bool = False) -> None:
        super().__init__()
        self.sighted = sighted
        self.assisted = assisted
        self.batch_sizes: list[int] = []

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        self.batch_sizes.append(len(batch.image))
        image = randomness.uniform(*batch.image.shape[1:]) - 0.5
        seen = randomness.uniform(NUM_LABELS) < self.sighted
        image[:, 0, 0, :NUM_LABELS] += batch.labels * seen
        return {"sample": image}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"batch": batch, "outputs": {}}

    test_step = validation_step

    def sampling_record(self) -> dict[str, Any]:
        return {"assisted": self.assisted}


def multi_hot(num_sets: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(num_sets, NUM_LABELS, generator=generator).argsort(dim=1)
    return (order < torch.arange(num_sets)[:, None] % 3 + 1).float()


class LabelledData(FakeData):
    """Real images whose labels the stand-in classifier reads in all but the first."""

    name, channels, image_size = "blocks", 3, SIZE
    label_names = tuple(f"colour {i % 8} shape {i // 8}" for i in range(NUM_LABELS))

    def __init__(self) -> None:
        super().__init__()
        self.label_sets = {"test": multi_hot(11, 0), "new_test": multi_hot(7, 1)}

    def batch(self, split: str, indices: Any, device: Any = "cpu") -> Batch:
        index = torch.as_tensor(indices)
        labels = multi_hot(200, 2)[index]
        image = IndexRandomness.for_images(1, split, index).uniform(3, SIZE, SIZE) - 0.5
        image[:, 0, 0, :NUM_LABELS] += torch.where(index[:, None] == 0, -labels, labels)
        return Batch(image, index, labels=labels)

    def real_images(self, label_sets: str, number: int) -> tuple[Tensor, Tensor] | None:
        batch = self.batch("test", torch.arange(min(number, 4)))
        return (batch.image, batch.labels) if label_sets == "new_test" else None


@pytest.fixture
def stencil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "load_label_classifier", lambda path: Stencil())


@pytest.fixture
def tested(make_trainer: Callable, stencil: None) -> Callable[..., LabelAccuracy]:
    def run(module: FakeGenerator, **options: Any) -> LabelAccuracy:
        callback = LabelAccuracy("file.pth", **options)
        make_trainer(callback).test(module, LabelledData(), verbose=False)
        return callback

    return run


def test_an_oracle_scores_one_and_a_blind_generator_by_chance(tested) -> None:
    oracle = tested(FakeGenerator(sighted=1.0)).results
    for name in ("test", "new_test"):
        for metric in ("label_accuracy", "label_accuracy_per_image"):
            assert oracle[f"{metric}/{name}"] == 1
            assert oracle[f"{metric}_std/{name}"] == 0
    blind = tested(FakeGenerator(sighted=0.0), num_seeds=200).results
    sets = LabelledData().label_sets["test"]
    k = sets.sum(1)
    assert blind["label_accuracy/test"] == pytest.approx(float((k * k).sum() / k.sum() / NUM_LABELS), abs=0.02)
    assert blind["label_accuracy_per_image/test"] == pytest.approx(float(k.mean() / NUM_LABELS), abs=0.02)


def test_mean_and_standard_deviation_over_the_seeds(tested) -> None:
    module = FakeGenerator(sighted=0.5)
    callback = tested(module, num_seeds=5)
    sets = LabelledData().label_sets["test"]
    index = torch.arange(len(sets))
    pooled, per_image = [], []
    for seed in range(5):
        randomness = IndexRandomness.for_images(5, f"label_accuracy/test/{seed}", index)
        image = module.sample(Batch(torch.zeros(len(sets), 3, SIZE, SIZE), index, labels=sets), randomness)["sample"]
        scores = label_scores(recognised_labels(Stencil()(image), sets), sets)
        pooled.append(scores.pooled)
        per_image.append(scores.per_image)
    for metric, values in {"label_accuracy": pooled, "label_accuracy_per_image": per_image}.items():
        assert callback.results[f"{metric}/test"] == pytest.approx(torch.tensor(values).mean().item(), abs=1e-6)
        assert callback.results[f"{metric}_std/test"] == pytest.approx(torch.tensor(values).std().item(), abs=1e-6)
    assert len(set(pooled)) > 1
    assert pooled != pytest.approx(per_image)
    assert callback.record["label_accuracy_by_seed"]["test"] == pytest.approx(pooled, abs=1e-6)
    assert callback.record["num_labels"]["test"] == int(sets.sum())
    assert callback.record["classifier"] == {"path": "file.pth", "blake2": weights_hash(Stencil())}


def test_the_ceiling_is_the_score_of_the_first_real_test_images(tested) -> None:
    callback = tested(FakeGenerator(1.0), num_real=6)
    assert callback.record["num_real"] == 6
    assert callback.results["label_accuracy_per_image/real"] == pytest.approx(5 / 6)
    assert callback.results["label_accuracy/real"] == pytest.approx(11 / 12)  # the first has one of the 12 labels
    assert callback.results["label_accuracy_per_image/real_new_test"] == pytest.approx(3 / 4)  # of images of its own
    assert "label_accuracy/real_test" not in callback.results
    assert tested(FakeGenerator(1.0), num_real=0).results.keys() >= {"label_accuracy/test"}


def test_what_a_frozen_autoencoder_makes_of_the_real_images_is_a_ceiling_too(tested, monkeypatch) -> None:
    def test_step(self: FakeGenerator, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"batch": batch, "outputs": {}, "reconstruction": batch.image}

    assert "label_accuracy/reconstruction" not in tested(FakeGenerator(1.0), num_real=6).results
    monkeypatch.setattr(FakeGenerator, "test_step", test_step)
    results = tested(FakeGenerator(1.0), num_real=6).results
    assert results["label_accuracy/reconstruction"] == results["label_accuracy/real"] == pytest.approx(11 / 12)


def test_results_and_pictures_do_not_depend_on_the_batch_size(tested, tmp_path: Path) -> None:
    results, pictures = [], []
    for batch_size in (3, 64):
        module = FakeGenerator(0.5)
        results.append(tested(module, batch_size=batch_size, num_seeds=4).results)
        pictures.append((tmp_path / "images" / "label_sets_test" / "step=00000000.png").read_bytes())
        assert max(module.batch_sizes) == min(batch_size, 44)  # batches reach over the seeds
    assert results[0] == results[1]
    assert pictures[0] == pictures[1]


def test_ranks_share_the_rows(stencil: None, make_trainer) -> None:
    def draw(rank: int, world_size: int) -> tuple[Tensor, Tensor, int]:
        module, callback = FakeGenerator(0.5), LabelAccuracy("file.pth")
        callback._classifier = Stencil()
        trainer: Any = SimpleNamespace(
            global_rank=rank, world_size=world_size, datamodule=LabelledData(),
            precision_plugin=make_trainer().precision_plugin,
            strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
        )  # fmt: skip
        recognised, first = callback._draw_all(trainer, module, "test", 3)
        return recognised, first, sum(module.batch_sizes)

    recognised, first, num_rows = draw(0, 1)
    parts = [draw(rank, 2) for rank in range(2)]
    assert [part[2] for part in parts] == [17, 16]
    assert num_rows == 33
    assert torch.equal(recognised.int(), parts[0][0].int() + parts[1][0].int())
    assert torch.equal(first, parts[0][1] + parts[1][1])


def test_assisted_results_are_named_so(tested) -> None:
    callback = tested(FakeGenerator(1.0, assisted=True), num_seeds=2)
    generated = {name for name in callback.results if "/real" not in name}
    assert generated
    assert all("_assisted" in name for name in generated)
    assert {"label_accuracy_assisted/test", "label_accuracy_assisted_std/new_test"} <= generated
    assert callback.record["assisted"]


def test_validation_logs_and_draws_and_the_module_keeps_no_state(make_trainer, stencil: None, tmp_path: Path) -> None:
    module, callback = FakeGenerator(1.0), LabelAccuracy("file.pth")
    trainer = make_trainer(callback)
    names = set(module.state_dict())
    trainer.fit(module, LabelledData())
    assert trainer.callback_metrics["val/label_accuracy/test"] == 1
    assert "val/label_accuracy_std/test" not in trainer.callback_metrics  # one seed has no spread
    assert set(module.state_dict()) == names
    for name in ("test", "new_test"):
        folder = tmp_path / "images" / f"label_sets_{name}"
        assert sorted(path.name for path in folder.iterdir()) == ["step=00000005.png", "step=00000010.png"]

    silent = make_trainer(LabelAccuracy("file.pth", validation_seeds=0))
    module.batch_sizes.clear()
    silent.fit(module, LabelledData())
    assert module.batch_sizes == []


def test_a_missing_classifier_is_said_before_step_0(make_trainer, capsys) -> None:
    trainer = make_trainer(LabelAccuracy(None), max_steps=1)
    module = FakeGenerator(1.0)
    trainer.fit(module, LabelledData())
    trainer.test(module, LabelledData(), verbose=False)
    printed = capsys.readouterr().out
    assert printed.count("python train.py experiment=label_classifier data=blocks") == 1
    assert trainer.callbacks[0].results == {}
    with pytest.raises(ValueError, match="experiment=label_classifier data=blocks"):
        make_trainer(LabelAccuracy(None, required=True)).fit(module, LabelledData())


def test_data_without_label_sets_needs_no_classifier(make_trainer, capsys) -> None:
    data = LabelledData()
    data.label_sets = {}
    callback = LabelAccuracy(None, required=True)
    make_trainer(callback).test(FakeGenerator(1.0), data, verbose=False)
    assert callback.results == {}
    assert "label" not in capsys.readouterr().out


def test_a_classifier_of_other_labels_is_refused(make_trainer, tmp_path: Path) -> None:
    torch.save({"model": LabelClassifier(num_labels=10).resnet.state_dict()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="3 channels and 10 labels, but data=blocks has 3 and 24"):
        make_trainer(LabelAccuracy(str(tmp_path / "other.pth"))).test(FakeGenerator(1.0), LabelledData(), verbose=False)


@pytest.mark.parametrize("option", ["num_seeds", "batch_size", "validation_seeds", "num_real"])
def test_numbers_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        LabelAccuracy("file.pth", **{option: -1})
