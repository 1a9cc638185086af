"""Labels kept by a restorer: known flips, the confusion table, the picture, and what is said without a judge."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import FakeData, FakeRestorer
from torch import Tensor, nn

import callbacks.judge as judge
from callbacks import LabelKept
from files.grids import read_grid
from generative.judges.label_classifier import LabelClassifier, TrainedOn
from generative.randomness import Randomness
from generative.types import Batch
from generative.weights import weights_hash

NUM_LABELS, NUM_IMAGES, SIZE = 5, 30, 16
MISREAD = 7  # image that the judge misreads when it is clean


class Stencil(nn.Module):
    """A stand-in judge: the probabilities stand in the first row of pixels."""

    num_labels, in_channels, trained_on = NUM_LABELS, 1, None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return image[:, 0, 0, :NUM_LABELS] * self.weight


def written(label_B: Tensor) -> Tensor:
    image = torch.zeros(len(label_B), 1, SIZE, SIZE)
    image[torch.arange(len(label_B)), 0, 0, label_B] = 1
    return image


class LabelledData(FakeData):
    """Image i has label i % 5 and met degradation i % 2."""

    name, channels, image_size, num_classes = "blocks", 1, SIZE, NUM_LABELS
    degradation = SimpleNamespace(kinds=("noise", "block"))
    splits = SimpleNamespace(
        train=SimpleNamespace(has_one_label=lambda: True), val=range(NUM_IMAGES), test=range(NUM_IMAGES)
    )

    def batch(self, split: str, indices: Any, device: Any = "cpu") -> Batch:
        index = torch.as_tensor(indices)
        label = index % NUM_LABELS
        image = written(torch.where(index == MISREAD, 0, label))
        labels = nn.functional.one_hot(label, NUM_LABELS).float()
        return Batch(image, index, labels=labels, degraded=0 * image, validity=image[:, :1], kind=index % 2)


class Confused(FakeRestorer):
    """``mean`` is right; ``sample`` takes every 0 that met the block, and no other, for a 3."""

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        label = batch.labels.argmax(1)
        flips = (label == 0) & (batch.index % 2 == 1)
        return {"sample": written(torch.where(flips, 3, label)), "mean": written(label)}


@pytest.fixture
def tested(make_trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LabelKept]:
    monkeypatch.setattr(judge, "load_label_classifier", lambda path: Stencil())

    def run(data: LabelledData, **options: Any) -> LabelKept:
        callback = LabelKept("runs/2026_abc/checkpoints/last.ckpt", **options)
        make_trainer(callback).test(Confused(), data, verbose=False)
        return callback

    return run


def test_known_flips_are_measured_counted_and_shown(tested, tmp_path: Path) -> None:
    callback = tested(LabelledData(), num_shown=2)
    judged = NUM_IMAGES - 1
    assert callback.results == pytest.approx(
        {
            "label_kept/mean": 1, "label_kept_by_degradation/mean/noise": 1, "label_kept_by_degradation/mean/block": 1,
            "label_kept/sample": 1 - 3 / judged, "label_kept_by_degradation/sample/noise": 1,
            "label_kept_by_degradation/sample/block": 1 - 3 / 14,
            "label_kept/degraded": 6 / judged,  # an empty one is taken for the first class
            "label_kept_by_degradation/degraded/noise": 3 / 15, "label_kept_by_degradation/degraded/block": 3 / 14,
        }
    )  # fmt: skip
    record = callback.record
    assert (record["split"], record["num_images"]) == ("test", NUM_IMAGES)
    assert record["num_judged"]["label_kept/sample"] == judged
    assert record["classifier"] == {
        "name": "2026_abc",
        "blake2": weights_hash(Stencil()),
        "clean_accuracy": pytest.approx(judged / NUM_IMAGES),
    }
    with (tmp_path / record["flips"]).open() as file:
        cells = [row for row in csv.DictReader(file) if row["output"] == "sample"]
    assert [tuple(row.values()) for row in cells if row["clean"] != row["restored"]] == [
        ("sample", "block", "0", "3", "3")
    ]
    assert sum(int(row["images"]) for row in cells) == judged
    pictures = read_grid(tmp_path / "images" / "label_flips_sample" / "step=00000000.png")
    notes = {name: [note for _, note in each] for name, each in pictures.items()}
    assert notes == {"clean": ["0", "0"], "degraded": ["block: 0", "block: 0"], "sample": ["→ 3", "→ 3"]}
    assert not (tmp_path / "images" / "label_flips_mean").exists()  # nothing to show


def test_results_do_not_depend_on_the_batches_nor_pictures(tested, tmp_path: Path, monkeypatch) -> None:
    outcomes = []
    for size in (4, 30):
        monkeypatch.setattr("conftest.BATCH_SIZE", size)
        results = tested(LabelledData()).results
        picture = tmp_path / "images" / "label_flips_sample" / "step=00000000.png"
        outcomes.append((results, picture.read_bytes(), (tmp_path / "label_flips.csv").read_bytes()))
    assert outcomes[0] == outcomes[1]


def test_fewer_images_and_validation(tested, make_trainer, tmp_path: Path) -> None:
    assert tested(LabelledData(), num_images=10).record["num_images"] == 10
    for number, logged in {5: 1.0, NUM_IMAGES: 1 - 3 / 29, 0: None}.items():
        trainer = make_trainer(LabelKept("judge.pth", validation_images=number))
        trainer.validate(Confused(), LabelledData(), verbose=False)
        value = trainer.callback_metrics.get("val/label_kept/sample")
        assert value == (None if logged is None else pytest.approx(logged))


def test_objects_are_told_apart_by_what_the_hole_hides(tested, monkeypatch) -> None:
    class Scenes(LabelledData):
        def batch(self, split: str, indices: Any, device: Any = "cpu") -> Batch:
            batch = super().batch(split, indices, device)
            batch.validity = torch.ones_like(batch.image)
            batch.validity[batch.index < 10, :, :, :8] = 0
            return batch

        def object_masks(self, split: str, index: Tensor) -> Tensor:
            masks = torch.zeros(len(index), NUM_LABELS, SIZE, SIZE, dtype=torch.bool)
            masks[:, 0, :, 2:6] = masks[:, 1, :, 4:12] = masks[:, 2, :, 12:] = True
            return masks & (torch.arange(NUM_LABELS) == (index % NUM_LABELS)[:, None])[:, :, None, None]

    callback = tested(Scenes())
    seen = {"visible": (1, 1), "half_hidden": (1, 2), "hidden": (1 / 2, 2)}  # of 0 and 5 the latter met the block
    for visibility, (share, count) in seen.items():  # the third scene alone has a visible object: 7 is misread
        for metric in ("object_kept", "label_kept"):
            name = f"{metric}_by_visibility/sample/{visibility}"
            assert (callback.results[name], callback.record["num_judged"][name]) == (share, count)


def test_without_a_judge_or_labels_it_is_left_out_with_one_line(make_trainer, capsys) -> None:
    callback, data = LabelKept(None), LabelledData()
    trainer = make_trainer(callback)
    for _ in range(2):  # said once
        trainer.test(Confused(), data, verbose=False)
    said = "No label_kept: there is no label classifier of blocks at 16 pixels; train one with python train.py"
    assert capsys.readouterr().out.count(said) == 1
    data.num_classes = 0
    unlabelled = LabelKept("judge.pth")
    make_trainer(unlabelled).test(Confused(), data, verbose=False)
    assert "the images of blocks have no labels that could be kept" in capsys.readouterr().out
    assert callback.results == callback.record == unlabelled.results == {}


def test_a_judge_of_other_data_is_refused(make_trainer, tmp_path: Path) -> None:
    classifier = LabelClassifier(NUM_LABELS, input_size=SIZE, in_channels=1, blocks=[1, 1, 1, 1])
    config = {"network": {"input_size": SIZE}, "data": {"name": "blocks", "image_size": 32}}
    weights = {f"network.{name}": value for name, value in classifier.state_dict().items()}
    torch.save({"global_step": 1, "state_dict": weights, "config": config}, tmp_path / "judge.ckpt")
    with pytest.raises(ValueError, match="was trained on blocks at 32 pixels, but data=blocks has 16 pixels"):
        make_trainer(LabelKept(str(tmp_path / "judge.ckpt"))).test(Confused(), LabelledData(), verbose=False)
    assert judge.load_label_classifier(tmp_path / "judge.ckpt").trained_on == TrainedOn("blocks", 32)
