"""The label classifier in training: it learns, it is measured on held-out images, and its checkpoint judges alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import composed
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from callbacks import EMA, Classification, LastCheckpoint
from generative.judges.label_classifier import LabelClassifier, load_label_classifier
from generative.metrics.label_accuracy import label_scores, recognised_labels
from generative.randomness import IndexRandomness, StepRandomness, generator_for
from generative.types import Batch
from launch.build import build_callbacks, build_datamodule, build_module, check_data
from launch.errors import UserError
from lightning_modules import LabelClassifierModule
from lightning_modules.label_classifier import shifted

NUM_LABELS, SIZE, NUM_HELDOUT, NUM_STEPS = 3, 16, 50, 20


def batch(indices: range) -> Batch:
    """Images of one or two labels; a label is a bright square in a channel of its own."""
    index = torch.tensor(indices)
    randomness = IndexRandomness.for_images(0, "images", index)
    first, second = (randomness.uniform(2) * NUM_LABELS).long().unbind(1)
    labels = torch.zeros(len(index), NUM_LABELS).scatter(1, first[:, None], 1).scatter(1, second[:, None], 1)
    image = 0.2 * randomness.normal(NUM_LABELS, SIZE, SIZE) - 0.5
    image[:, :, 3:13, 3:13] += labels[:, :, None, None]
    return Batch(image.clamp(-1, 1), index, labels=labels)


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader([batch(range(1000 + i, 1016 + i)) for i in range(0, 640, 16)], batch_size=None)

    def val_dataloader(self) -> DataLoader:
        chunks = [range(start, min(start + 16, NUM_HELDOUT)) for start in range(0, NUM_HELDOUT, 16)]
        return DataLoader([batch(chunk) for chunk in chunks], batch_size=None)

    test_dataloader = val_dataloader


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several threads only wait for each other at batches this small."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def make_module() -> Callable[..., LabelClassifierModule]:
    def make(**kwargs: object) -> LabelClassifierModule:
        torch.manual_seed(0)
        return LabelClassifierModule(
            LabelClassifier(NUM_LABELS, input_size=SIZE),
            optimizer=partial(torch.optim.AdamW, lr=1e-3), learning_rate_factor=lambda step: 1.0, total_steps=NUM_STEPS,
            **kwargs,
        )  # fmt: skip

    return make


def test_a_trained_classifier_and_its_checkpoint(make_module, tmp_path: Path) -> None:
    module, classification, checkpoint = make_module(max_shift=2), Classification(), LastCheckpoint()
    checkpoint.run_config = {"network": {"input_size": SIZE}}
    trainer = Trainer(
        max_steps=NUM_STEPS, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=NUM_STEPS,
        callbacks=[EMA(0.5), classification, checkpoint],
    )  # fmt: skip
    trainer.fit(module, datamodule=Data())
    assert trainer.callback_metrics["val/label_accuracy/heldout"] > 0.85  # by chance: 0.5
    trainer.test(module, datamodule=Data(), verbose=False)
    assert classification.record["num_images"] == NUM_HELDOUT

    heldout = batch(range(NUM_HELDOUT))
    classifier = load_label_classifier(tmp_path / "checkpoints" / "last.ckpt")
    raw = module.network.eval()(heldout.image)
    assert not torch.allclose(classifier(heldout.image), raw, atol=1e-4)  # the averaged weights, not the last ones
    scores = label_scores(recognised_labels(classifier(heldout.image), heldout.labels), heldout.labels)
    assert classification.results == pytest.approx(
        {
            "label_accuracy/heldout": scores.pooled,
            "label_accuracy_per_image/heldout": scores.per_image,
            "exact_sets/heldout": scores.exact,
        }
    )


def test_each_image_is_shifted_by_its_own_whole_pixels() -> None:
    coordinates = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(9.0), indexing="ij"))
    image = coordinates.expand(64, 2, 12, 9)
    randomness = StepRandomness(generator_for(0, "objective"), 64)
    moved = shifted(image, 3, randomness)
    rows, columns = (moved[:, axis] - coordinates[axis] for axis in range(2))
    inner = (slice(None), slice(3, -3), slice(3, -3))
    for shift in (rows[inner], columns[inner]):
        assert (shift == shift[:, :1, :1]).all()
        assert set(shift[:, 0, 0].tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}
    assert not torch.equal(rows[inner][:, 0, 0], columns[inner][:, 0, 0])
    assert moved[:, 0].min() == 0  # beyond the border the border is repeated
    assert moved[:, 0].max() == 11
    assert torch.equal(shifted(image, 0, randomness), image)


def test_what_it_needs_and_what_it_does_not_do(make_module) -> None:
    with pytest.raises(ValueError, match="max_shift"):
        make_module(max_shift=-1)
    module, unlabelled = make_module(), Batch(torch.zeros(2, 3, SIZE, SIZE), torch.arange(2))
    randomness = StepRandomness(generator_for(0, "objective"), 2)
    with pytest.raises(ValueError, match="needs labelled images"):
        module.loss(unlabelled, randomness)
    assert not hasattr(module, "sample")


def test_the_experiment_builds_for_any_labelled_data(tmp_path: Path) -> None:
    config = composed(tmp_path, ["experiment=label_classifier", "data=digits"])
    module = build_module(config)
    assert isinstance(module, LabelClassifierModule)
    assert (module.network.num_labels, module.network.in_channels) == (10, 1)
    assert any(isinstance(callback, Classification) for callback in build_callbacks(config))
    assert config.callbacks.progress.metrics == ["val/label_accuracy/heldout"]


@pytest.mark.parametrize(("data", "flips"), [("digits", False), ("mnist", False), ("scenes", True), ("iclevr", True)])
def test_the_data_say_whether_a_mirrored_image_keeps_its_labels(
    data: str, flips: bool, tmp_path: Path, make_module
) -> None:
    config = composed(tmp_path, ["experiment=label_classifier", f"data={data}"])
    assert config.data.horizontal_flip == flips
    module, keys = make_module(), ("horizontal_flip", "quarter_turns")
    for key in keys:
        moved = SimpleNamespace(
            name=data, mirror_keeps_labels=config.data.mirror_keeps_labels, **{k: k == key for k in keys}
        )
        with nullcontext() if flips else pytest.raises(ValueError, match=rf"data={data} .* set data\.{key}=false"):
            module.check_data(moved)


def test_a_generator_of_labels_refuses_images_that_lose_theirs_and_a_restorer_takes_them(tmp_path: Path) -> None:
    flips = ["experiment=meanflow_scenes", "data=digits", "data.horizontal_flip=true", "data.num_train=3"]
    for task, said in (("generate", "data=digits lose theirs when they are mirrored"), ("restore", "")):
        config = composed(tmp_path, [*flips, f"task={task}", "data.num_val=3", "data.num_test=3"])
        with pytest.raises(UserError, match=said) if said else nullcontext():
            check_data(build_module(config), build_datamodule(config))
