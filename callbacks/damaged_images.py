"""Counts the image files that cannot be decoded and that a run continues without."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from datamodules.base import ImageDataModule, datamodule_of

_KEY = "damaged_images"


class DamagedImages(Callback):
    """Logs ``data/damaged_images`` where ``data.damaged=skip``: images left out or replaced so far, each counted once.

    The replaced ones are those that all ranks have drawn; the checkpoint keeps them, so that a resumed run continues
    counting. At the end ``run.json`` has the number and the first names.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        datamodule_of(trainer).damaged_met.update(checkpoint.get(_KEY, ()))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if _counts(data := datamodule_of(trainer)):
            _merge(trainer, data)
            checkpoint[_KEY] = sorted(data.damaged_met)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _counts(data := datamodule_of(trainer)) and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            _merge(trainer, data)
            pl_module.log("data/damaged_images", float(len(data.splits.damaged) + len(data.damaged_met)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _counts(data := datamodule_of(trainer)):
            _merge(trainer, data)


def _counts(data: ImageDataModule) -> bool:
    return data.damaged == "skip"


def _merge(trainer: Trainer, data: ImageDataModule) -> None:
    if trainer.world_size > 1:
        met: list[set[int]] = [set()] * trainer.world_size
        dist.all_gather_object(met, data.damaged_met)
        data.damaged_met.update(*met)
