"""A restorer and a data module small enough to be checked by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from generative.metrics import inception
from generative.randomness import IndexRandomness, Randomness
from generative.types import Batch, State

SPLIT_SIZE, BATCH_SIZE, SIZE = 10, 4, 16  # the last batch of a split is smaller
NOISE_STD = 0.05


class FakeRestorer(LightningModule):
    """Answers with the clean image plus noise, and with the clean image plus a constant."""

    tasks = current_tasks = frozenset({"restore"})

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)
        self.frozen = nn.Dropout().eval()
        self.loss_at_step: dict[int, float] = {}
        self.was_training_in_sample: list[bool] = []

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        self.was_training_in_sample.append(self.training or torch.is_grad_enabled())
        noise = NOISE_STD * randomness.normal(*batch.image.shape[1:])
        return {"sample": batch.image + noise, "mean": batch.image + 0.1}

    def images_of(self, batch: Batch, randomness: Randomness, names: object = None) -> dict[str, Tensor]:
        return self.sample(batch, randomness)

    def diverged(self, images: dict[str, Tensor]) -> dict[str, str]:
        return {name: f"{name} diverged" for name, image in images.items() if not image.isfinite().all()}

    def states(self, batch: Batch, randomness: Randomness) -> Iterator[State]:
        return iter(())

    def evaluation_randomness(self, batch: Batch, purpose: str = "sample") -> IndexRandomness:
        return IndexRandomness.for_images(0, purpose, batch.index, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.network(batch.image.mean().view(1, 1)).square().sum()
        return loss * self.loss_at_step.get(self.global_step, 1.0)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"batch": batch, "outputs": self.sample(batch, self.evaluation_randomness(batch))}

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class FakeData(LightningDataModule):
    """Images in [-0.6, 0.6] that are half hidden."""

    label_names = ()
    splits = SimpleNamespace(train=range(40 * BATCH_SIZE), val=range(SPLIT_SIZE), test=range(SPLIT_SIZE))

    def batch(self, split: str, indices: Any, device: Any = "cpu") -> Batch:
        index = torch.as_tensor(indices)
        randomness = IndexRandomness.for_images(1, split, index, device)
        image = 1.2 * randomness.uniform(1, SIZE, SIZE) - 0.6
        validity = torch.ones_like(image)
        validity[..., : SIZE // 2] = 0
        return Batch(image, index.to(device), degraded=image * validity, validity=validity)

    def object_masks(self, split: str, index: Any) -> None:
        return None

    def _loader(self, split: str) -> DataLoader:
        chunks = torch.arange(len(getattr(self.splits, split))).split(BATCH_SIZE)
        return DataLoader([self.batch(split, chunk) for chunk in chunks], batch_size=None)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")


@pytest.fixture
def restorer() -> FakeRestorer:
    return FakeRestorer()


@pytest.fixture
def data() -> FakeData:
    return FakeData()


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(*callbacks: Callback, **options: Any) -> Trainer:
        defaults = {"max_steps": 10, "val_check_interval": 5, "num_sanity_val_steps": 0, "logger": False}
        return Trainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_model_summary=False,
            **(defaults | options),
        )

    return make


@pytest.fixture
def classifier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The module's ``CLASSIFIER``, which stands for the label classifier of every file."""
    network, module = request.module.CLASSIFIER(), ModuleType("label_classifier")
    module.load_label_classifier = lambda path: network
    monkeypatch.setitem(sys.modules, "generative.judges.label_classifier", module)
    return network


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inception's weights cannot be downloaded."""
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", f"file:///nowhere/{inception.INCEPTION_FILE}")
