"""Generation: draws images in test and measures how close they are to a reference split (FID and its relatives)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer

from callbacks.distances import DistanceCallback
from datamodules.base import datamodule_of
from datamodules.splits import Split
from generative.checks import checked
from generative.metrics.generation import GenerationMetrics
from generative.metrics.inception import InceptionExtractor
from generative.randomness import generator_for
from generative.ranges import Count
from generative.types import Batch

KEY = "callbacks.generation"


@checked("callbacks.generation")
class Generation(DistanceCallback):
    """Measures generated images in test with ``GenerationMetrics``; see ``generative.metrics.generation``.

    The images are drawn here and not from the test batches, so that their number is free. Image i has the labels of an
    image of the reference split; which one, and all draws, are functions of the evaluation seed and i alone. So
    the results depend neither on the batch size nor on the number of ranks.

    Args:
        num_images: Images to generate, over all ranks.
        reference_split: Split that they are compared with and take their labels from.
        num_reference: Images of that split to compare with, or None for all, at most 50,000.
        batch_size: Images generated at a time on each rank.
        inception: ``weights`` and ``required`` as in ``InceptionSettings``, or None to do without Inception.
        label_classifier: File of a trained label classifier, a second extractor; or None.
        cache_dir: Cache folder for weights and reference features, or None for the user's.

    Attributes:
        results: Metrics of the last test, ``<metric>/sample``; empty without an extractor.
    """

    tasks = frozenset({"generate"})

    def __init__(
        self,
        num_images: Count = 10_000,
        reference_split: Split = "train",
        num_reference: Count | None = None,
        batch_size: Count = 250,
        inception: Mapping[str, Any] | None = None,
        label_classifier: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(
            KEY, "generates nothing", reference_split, num_reference, batch_size, inception, label_classifier, cache_dir
        )
        self.num_images = num_images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.set_up_extractors(trainer, InceptionExtractor)

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        """Draw the images and compare them."""
        results: dict[str, float] = {}
        if not self.extractors:
            return results, {"num_images": 0, "missing": dict(self.missing)}
        metrics = {name: GenerationMetrics(e.to(module.device)) for name, e in self.extractors.items()}
        for each in metrics.values():
            each.reset(module.device)
        self._generate(trainer, module, list(metrics.values()))
        for each in metrics.values():
            results |= each.compute(self.reference(trainer, module, each.extractor))
            each.extractor.to("cpu")  # leaves the device's memory to others
        return results, {
            "num_images": self.num_images,
            "missing": dict(self.missing),
            "labels": f"of labelled data: image i has the labels of image p(i mod n) of the n {self.reference_split} images, "
            "p the permutation of the evaluation seed",
            **{name: each.definition() for name, each in metrics.items()},
        }

    def _generate(self, trainer: Trainer, module: Any, metrics: list[GenerationMetrics]) -> None:
        data = datamodule_of(trainer)
        num_labelled = len(getattr(data.splits, self.reference_split))
        generator = generator_for(module.evaluation_seed, "generation/labels")
        order = torch.randperm(num_labelled, generator=generator)
        for index in self.batches_of_rank(trainer, self.num_images):
            like = data.batch(self.reference_split, order[index % num_labelled], module.device)
            # The real image gives shape and labels; the module must not see it.
            batch = Batch(torch.zeros_like(like.image), index.to(module.device), labels=like.labels)
            with trainer.precision_plugin.forward_context():
                image = module.images_of(batch, module.evaluation_randomness(batch, "generation"))["sample"]
            for each in metrics:
                each.update(image, index)
