"""What the loaders and ``batch`` hand to the modules, in Lightning and without."""

from itertools import islice

import lightning
import pytest
import torch
from lightning import LightningModule

from datamodules.base import ImageDataModule
from datamodules.splits import Splits
from datamodules.store import ImageStore
from generative.degradations import Degradation
from generative.randomness import generator_for
from generative.types import Batch


class AddNoise(Degradation):
    """Noise of a strength that tells training from evaluation; reports which pixels grew."""

    def degrade(self, image_BCHW, randomness, training):
        noise = randomness.normal(*image_BCHW.shape[1:]) * (0.5 if training else 0.1)
        return image_BCHW + noise, (noise > 0).float().amax(1, keepdim=True)


class RandomImages(ImageDataModule):
    def __init__(self, duplicate: bool = False, **settings):
        super().__init__("random", **{"image_size": 6, "channels": 1, "num_classes": 2, **settings})
        self.duplicate = duplicate

    def load_splits(self):
        images = torch.randint(256, (60, 1, 8, 8), generator=generator_for(0, "images")).to(torch.uint8)
        if self.duplicate:
            images[0], images[1] = images[45], images[55]
        labels = torch.nn.functional.one_hot(torch.arange(60) % 2, 2).float()
        stores = [ImageStore.dense(images[a:b], labels[a:b]) for a, b in ((0, 40), (40, 50), (50, 60))]
        return Splits(*stores, source="random", drawn="in order")


def equal(a: Batch, b: Batch) -> bool:
    fields = ("image", "index", "labels", "degraded", "validity")
    return a.step == b.step and all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)


def training_batches(data: RandomImages, count: int) -> list[Batch]:
    return [data.on_after_batch_transfer(raw, 0) for raw in islice(data.train_dataloader(), count)]


def evaluation_batches(data: RandomImages) -> list[Batch]:
    return [data.on_after_batch_transfer(raw, 0) for raw in data.val_dataloader()]


def test_batch_is_in_range_with_labels_and_both_maps():
    (batch,) = training_batches(RandomImages(degradation=AddNoise(), global_batch_size=16), 1)
    assert batch.image.shape == batch.degraded.shape == batch.validity.shape == (16, 1, 6, 6)
    assert -1 <= batch.image.min() < -0.9
    assert 0.9 < batch.image.max() <= 1
    assert torch.equal(batch.labels.argmax(1), batch.index % 2)


def test_border_maps_bytes_to_the_closed_interval():
    data = RandomImages()
    whole = data.splits.val.gather(torch.arange(10), 6)
    assert torch.equal(((data.batch("val", range(10)).image + 1) * 127.5).round().to(torch.uint8), whole)


def test_resumed_training_batches_equal_the_uninterrupted_ones():
    settings = {"degradation": AddNoise(), "horizontal_flip": True, "quarter_turns": True, "global_batch_size": 8}
    whole = training_batches(RandomImages(**settings), 7)
    resumed = RandomImages(**settings)
    resumed.start_step = 4
    for a, b in zip(whole[4:], training_batches(resumed, 3), strict=True):
        assert equal(a, b)


def test_training_draws_differ_between_steps_and_seeds():
    a, b = training_batches(RandomImages(degradation=AddNoise(), global_batch_size=8), 2)
    (c,) = training_batches(RandomImages(degradation=AddNoise(), global_batch_size=8, seed=1), 1)
    assert not torch.equal(a.validity, b.validity)
    assert not torch.equal(a.validity, c.validity)


def test_evaluation_draws_depend_on_the_image_alone():
    by_four = evaluation_batches(RandomImages(degradation=AddNoise(), eval_batch_size=4))
    other = RandomImages(degradation=AddNoise(), eval_batch_size=3, seed=7)
    degraded = torch.cat([batch.degraded for batch in by_four])
    assert torch.equal(degraded, torch.cat([batch.degraded for batch in evaluation_batches(other)]))
    assert torch.equal(degraded[[7, 2]], other.batch("val", [7, 2]).degraded)
    assert not torch.equal(degraded, other.batch("test", torch.arange(10)).degraded)


def test_flip_mirrors_about_half_of_the_images():
    plain = training_batches(RandomImages(global_batch_size=40), 5)
    flipped = training_batches(RandomImages(global_batch_size=40, horizontal_flip=True), 5)
    a, b = (torch.cat([batch.image for batch in batches]) for batches in (plain, flipped))
    mirrored = (a.flip(-1) == b).flatten(1).all(1)
    assert torch.equal(torch.where(mirrored[:, None, None, None], a.flip(-1), a), b)
    assert 60 < mirrored.sum() < 140


@pytest.mark.parametrize("mirrored", [False, True])
def test_quarter_turns_show_every_view_alike_often_beside_the_same_flips(mirrored: bool):
    plain = training_batches(RandomImages(global_batch_size=40, horizontal_flip=mirrored), 10)
    turned = training_batches(RandomImages(global_batch_size=40, horizontal_flip=mirrored, quarter_turns=True), 10)
    a, b = (torch.cat([batch.image for batch in batches]) for batches in (plain, turned))
    views = torch.stack([torch.rot90(a, turns, (2, 3)) for turns in range(4)])
    same = (
        (views == b).flatten(2).all(2)
    )  # turning is on top of the draws of flips and crops, which stay what they were
    assert torch.equal(same.sum(0), torch.ones(400, dtype=torch.int64))
    assert same.sum(1).min() > 70


def test_images_in_an_evaluation_split_leave_training():
    data = RandomImages(duplicate=True)
    assert len(data.splits.train) == 38
    record = data.record()
    assert record["removed_from_train"] == 2
    assert record["images"] == {"train": 38, "val": 10, "test": 10}
    assert set(record["identical_images"].values()) == {0}


def test_fingerprint_follows_the_pixels():
    assert RandomImages().record()["fingerprint"] == RandomImages(seed=5).record()["fingerprint"]
    assert RandomImages().record()["fingerprint"] != RandomImages(duplicate=True).record()["fingerprint"]


def test_limits_keep_the_first_images():
    data = RandomImages(num_train=8, num_val=3)
    assert [len(store) for store in (data.splits.train, data.splits.val, data.splits.test)] == [8, 3, 10]
    assert torch.equal(data.batch("val", [2]).image, RandomImages().batch("val", [2]).image)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"image_size": 9}, r"data\.image_size=8"),
        ({"channels": 3}, r"data\.channels=3"),
        ({"num_classes": 10}, r"data\.num_classes=10"),
        ({"num_test": 0}, r"data\.num_test"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_named(settings, key):
    with pytest.raises(ValueError, match=key):
        RandomImages(**settings).setup()


class Recorder(LightningModule):
    """Keeps the batches that Lightning hands over."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: dict[str, list[Batch]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.batches["train"].append(batch)
        return self.weight * batch.image.mean()

    def validation_step(self, batch, batch_idx):
        self.batches["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.batches["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_hands_over_the_same_batches(tmp_path):
    settings = {"degradation": AddNoise(), "global_batch_size": 8, "eval_batch_size": 4}
    data, module = RandomImages(**settings), Recorder()
    data.start_step = 2
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=6,
        val_check_interval=6,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    for split, expected in (
        ("train", training_batches(RandomImages(**settings), 8)[2:]),
        ("val", evaluation_batches(RandomImages(**settings))),
    ):
        assert len(module.batches[split]) == len(expected)
        assert all(equal(a, b) for a, b in zip(module.batches[split], expected, strict=True))
    indices = torch.cat([batch.index for batch in module.batches["test"]])
    assert torch.equal(
        torch.cat([batch.degraded for batch in module.batches["test"]]), data.batch("test", indices).degraded
    )
