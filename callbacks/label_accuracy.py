"""Label accuracy of a generator: draws the label sets of the data under several seeds and has a classifier judge them.

Shape suffixes: B batch, S label sets, R rows (a label set under a seed), C channels, H height, W width, L labels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.image_grid import keep_image, tell_diverged, trained_steps
from callbacks.judge import load_judge, missing_judge
from callbacks.measuring import MeasuringCallback, SetupError, first_rows, log_metrics
from datamodules.base import datamodule_of
from files.grids import picture_grid
from generative.checks import checked
from generative.judges.label_classifier import LabelClassifier
from generative.metrics.by_image import ImageSums, ImageValues
from generative.metrics.catalogue import STD, Metric, value_name
from generative.metrics.label_accuracy import (
    ASSISTED,
    METRICS,
    REAL,
    RECONSTRUCTED,
    LabelAccuracyMetrics,
    label_scores,
    recognised_labels,
)
from generative.randomness import IndexRandomness, generator_for
from generative.ranges import Count, WholeNumber
from generative.types import Batch
from generative.weights import weights_hash

POOLED, PER_IMAGE, _ = METRICS
GRID_ROWS = 4
MISSED = "✗ "


@checked("callbacks.label_accuracy")
class LabelAccuracy(MeasuringCallback):
    """Measures in validation and test how many labels of the data's label sets a classifier sees in generated images.

    One image is drawn for each label set and seed, with draws that depend on nothing else: neither on the batch size nor
    on the number of ranks, which share the work. The images of the first seed go to ``images/label_sets_<set>``. In test
    the classifier also judges real held-out images, the ceiling, and of a module that works with a frozen autoencoder what
    this one makes of them. Data without label sets has nothing to measure.

    Args:
        classifier: Checkpoint file of the label classifier; without one nothing is measured, and the run says so.
        required: Whether a missing classifier is an error instead.
        num_seeds: Seeds in test.
        validation_seeds: Seeds in validation; 0 measures and draws nothing there.
        batch_size: Images drawn at a time and rank; results do not depend on it.
        num_real: Real test images with a smaller index are judged.

    Attributes:
        results: Metrics of the last test, ``label_accuracy/<set>`` and so on; see ``record`` for their definitions.
        record: Definitions, numbers of seeds, sets and images, values of the seeds, and the classifier.
    """

    tasks = frozenset({"generate"})

    def __init__(
        self,
        classifier: str | None = None,
        required: bool = False,
        num_seeds: Count = 16,
        validation_seeds: WholeNumber = 1,
        batch_size: Count = 64,
        num_real: WholeNumber = 1000,
    ) -> None:
        super().__init__()
        self.classifier_path = classifier
        self.required = required
        self.num_seeds = num_seeds
        self.validation_seeds = validation_seeds
        self.batch_size = batch_size
        self.num_real = num_real
        self._classifier: LabelClassifier | None = None
        self._has_said_so = False
        self._real = LabelAccuracyMetrics(REAL)
        self._reconstructed = LabelAccuracyMetrics(RECONSTRUCTED)
        self._by_set = ImageSums()

    # Before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the classifier, or say that there is none.

        Raises:
            SetupError: The module draws nothing, or the classifier is missing but required, cannot be read, or is of another
                kind of images.
        """
        super().setup(trainer, pl_module, stage)
        data = datamodule_of(trainer)
        if self._classifier is not None or not data.label_sets:
            return
        if self.classifier_path is None:
            missing = missing_judge("label accuracy", data)
            if self.required:
                raise SetupError(missing)
            if not self._has_said_so:
                trainer.print(missing)
            self._has_said_so = True
            return
        self._classifier = load_judge(self.classifier_path, data, len(data.label_names))

    # Validation and test

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._classifier is None or self.validation_seeds == 0:
            return
        results: dict[str, float] = {}
        for name in datamodule_of(trainer).label_sets:
            results |= self._measure(trainer, pl_module, name, self.validation_seeds)[0]
        log_metrics(pl_module, "val", results)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._real.reset(pl_module.device)
        self._reconstructed.reset(pl_module.device)
        self._by_set.reset()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        rows = first_rows(batch, self.num_real)
        if self._classifier is None or batch.labels is None or len(rows) == 0:
            return
        self._real.update(self._judge(batch.image[rows]), batch.labels[rows])
        if (reconstruction := outputs.get("reconstruction")) is not None:
            self._reconstructed.update(self._judge(reconstruction[rows]), batch.labels[rows])

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        """Draw and judge."""
        if self._classifier is None:
            return {}, {}
        data = datamodule_of(trainer)
        results: dict[str, float] = {}
        by_seed: dict[str, list[float]] = {}
        for name in data.label_sets:
            measured, scores = self._measure(trainer, module, name, self.num_seeds)
            results |= measured
            by_seed[name] = [round(score, 6) for score in scores]
            results |= self._judged_real(trainer, module, name)
        results |= self._real.compute() | self._reconstructed.compute()
        return results, {
            "definitions": self._real.definition()
            | {
                "<metric>/<set>": "mean over the seeds; one image a label set and seed",
                "<metric>_std/<set>": "sample standard deviation over the seeds",
                "<metric>/real_<set>": "the same classifier on real images of such label sets, where the test split has none",
                "<metric>/real": "the same classifier on real held-out images of the run's data: the ceiling",
                "<metric>/reconstruction": "the same on what the tokenizer or autoencoder that the module works with makes of "
                "these images: its own ceiling",
            },
            "num_seeds": self.num_seeds,
            "label_sets": {name: len(sets) for name, sets in data.label_sets.items()},
            "num_labels": {name: int((sets > 0).sum()) for name, sets in data.label_sets.items()},
            "num_real": self._real.num_images,
            "label_accuracy_by_seed": by_seed,
            "assisted": _assisted(module),
            "classifier": {"path": str(self.classifier_path), "blake2": weights_hash(self._classifier)},
        }

    def values_by_image(self) -> dict[str, ImageValues]:
        return self._by_set.merged()

    def _judged_real(self, trainer: Trainer, module: LightningModule, name: str) -> dict[str, float]:
        """Judge real images of a group of label sets that has its own: their ceiling."""
        found = datamodule_of(trainer).real_images(name, self.num_real)
        if found is None:
            return {}
        metrics = LabelAccuracyMetrics(f"{REAL}_{name}")
        metrics.reset(module.device)
        own_rows = torch.arange(len(found[0]))[trainer.global_rank :: trainer.world_size]
        for rows in own_rows.split(self.batch_size):
            metrics.update(self._judge(found[0][rows].to(module.device)), found[1][rows].to(module.device))
        return metrics.compute()

    # The work

    def _measure(
        self, trainer: Trainer, module: LightningModule, name: str, num_seeds: int
    ) -> tuple[dict[str, float], list[float]]:
        """Draw a group of label sets, keep the first seed's pictures, and return metrics and the seeds' pooled scores."""
        data = datamodule_of(trainer)
        sets_SL = data.label_sets[name]
        recognised_RL, first_SCHW = self._draw_all(trainer, module, name, num_seeds)
        recognised = recognised_RL.unflatten(0, (num_seeds, len(sets_SL)))
        if trainer.is_global_zero:
            step = trained_steps(trainer, module)
            notes = _notes(recognised[0], sets_SL, data.label_names)
            title = f"label sets {name} · step {step:,} · {MISSED}not among the classifier's most likely labels"
            key = f"label_sets_{name}"
            if not tell_diverged(trainer, module, key, {"sample": first_SCHW}):
                keep_image(trainer, key, picture_grid(first_SCHW, title, notes, max_rows=GRID_ROWS), step)
        scores = [label_scores(seed_SL, sets_SL) for seed_SL in recognised]
        pooled, per_image = [score.pooled for score in scores], [score.per_image for score in scores]
        variant = (ASSISTED.suffix,) if _assisted(module) else ()
        metric = POOLED.variant(*variant)
        if trainer.is_global_zero:  # the ranks have the same
            num_labels_S = (sets_SL > 0).sum(1) * num_seeds
            right_S = recognised.sum((0, 2)) / num_labels_S
            self._by_set.add(value_name(metric.key, name), right_S, torch.arange(len(sets_SL)), num_labels_S)
        return _statistics(metric, name, pooled) | _statistics(PER_IMAGE.variant(*variant), name, per_image), pooled

    @torch.no_grad()
    def _draw_all(self, trainer: Trainer, module: LightningModule, name: str, num_seeds: int) -> tuple[Tensor, Tensor]:
        """Return (R, L) recognised labels, seed by seed, and the first seed's (S, C, H, W) images, on every rank.

        Labels are 1 where recognised, 0 where not, and NaN of an image that diverged, in which nothing can be seen.
        """
        data = datamodule_of(trainer)
        sets_SL = data.label_sets[name].to(module.device)
        num_sets = len(sets_SL)
        # Each rank fills in its own rows and leaves the others zero, so that a sum over the ranks merges them.
        recognised_RL = torch.zeros(num_seeds * num_sets, sets_SL.shape[1], device=module.device)
        first_SCHW = torch.zeros(num_sets, data.channels, data.image_size, data.image_size, device=module.device)
        own_rows = torch.arange(len(recognised_RL))[trainer.global_rank :: trainer.world_size]
        for rows in own_rows.split(self.batch_size):
            index = rows % num_sets
            labels = sets_SL[index]
            image = self._draw(trainer, module, name, rows // num_sets, index, labels, first_SCHW.shape[1:])
            diverged = ~image.flatten(1).isfinite().all(1, keepdim=True)
            recognised_RL[rows] = recognised_labels(self._judge(image), labels).float().masked_fill(diverged, torch.nan)
            is_first = rows < num_sets
            first_SCHW[index[is_first]] = image[is_first]
        merged = (trainer.strategy.reduce(tensor, reduce_op="sum") for tensor in (recognised_RL, first_SCHW))
        recognised, first = (tensor.cpu() for tensor in merged if isinstance(tensor, Tensor))
        return recognised, first

    def _draw(
        self,
        trainer: Trainer,
        module: Any,
        name: str,
        seed_B: Tensor,
        index_B: Tensor,
        labels_BL: Tensor,
        shape: Sequence[int],
    ) -> Tensor:
        """Draw a batch whose rows may be of different seeds; each row has its own stream."""
        generators = [
            generator_for(module.evaluation_seed, f"label_accuracy/{name}/{seed}", step=index)
            for seed, index in zip(seed_B.tolist(), index_B.tolist(), strict=True)
        ]
        blank = torch.zeros(len(index_B), *shape, device=module.device)
        batch = Batch(image=blank, index=index_B.to(module.device), labels=labels_BL)
        with trainer.precision_plugin.forward_context():
            return module.images_of(batch, IndexRandomness(generators, module.device))["sample"].float()

    def _judge(self, image_BCHW: Tensor) -> Tensor:
        assert self._classifier is not None
        return self._classifier.to(image_BCHW.device)(image_BCHW)


def _notes(recognised_SL: Tensor, sets_SL: Tensor, names: Sequence[str]) -> list[str]:
    def words(present: Tensor, seen: Tensor) -> str:
        return "\n".join(("" if seen[i] > 0 else MISSED) + names[i] for i in present.nonzero().flatten().tolist())

    return [words(present, seen) for present, seen in zip(sets_SL > 0, recognised_SL, strict=True)]


def _statistics(metric: Metric, name: str, values: list[float]) -> dict[str, float]:
    results = {f"{metric.key}/{name}": statistics.fmean(values)}
    spread = statistics.stdev(values) if len(values) > 1 and math.isfinite(sum(values)) else math.nan
    return results | ({f"{metric.variant(STD).key}/{name}": spread} if len(values) > 1 else {})


def _assisted(module: Any) -> bool:
    return bool(module.sampling_record().get("assisted"))
