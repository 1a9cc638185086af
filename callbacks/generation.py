"""Generation: draws images in test and measures how close they are to a reference split (FID and its relatives)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.errors import SetupError
from datamodules.cache import cache_folder, cached
from datamodules.splits import Split
from generative.metrics.features import INCEPTION, FeatureExtractor, Features, FeatureSet, NetworkExtractor
from generative.metrics.generation import GenerationMetrics, ReferenceFeatures
from generative.metrics.inception import InceptionExtractor, WeightsMissingError, find_inception_weights
from generative.randomness import generator_for
from generative.types import Batch

LABEL_CLASSIFIER = "label_classifier"
DEFAULT_NUM_REFERENCE = 50_000  # images, where there are so many: what papers compare with
REFERENCE_SEED = 0  # the reference images are the same whatever the run's seeds


@dataclass(frozen=True)
class InceptionSettings:
    """Where Inception's weights are.

    Attributes:
        weights: torch-fidelity's file, or None for the one in the cache folder, downloaded once.
        required: Whether a run stops before its first step without the weights, instead of going on without Inception.
    """

    weights: str | Path | None = None
    required: bool = False


class _NotCachedError(Exception):
    """The cache has no usable file."""


class Generation(Callback):
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

    Raises:
        ValueError: If a number of images is below 1.

    Attributes:
        extractors: What gives the features; complete once a fit or test has been set up.
        missing: Why an extractor is absent, by its name.
        results: Metrics of the last test, ``<metric>/sample``; empty without an extractor.
        record: Numbers of images, definitions and what is missing behind ``results``.
    """

    def __init__(
        self,
        num_images: int = 10_000,
        reference_split: Split = "train",
        num_reference: int | None = None,
        batch_size: int = 250,
        inception: Mapping[str, Any] | None = None,
        label_classifier: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        for name, value in {"num_images": num_images, "num_reference": num_reference, "batch_size": batch_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"callbacks.generation.{name}={value} must be at least 1.")
        self.num_images = num_images
        self.reference_split = reference_split
        self.num_reference = num_reference
        self.batch_size = batch_size
        self.inception = None if inception is None else InceptionSettings(**inception)
        self.cache_dir = cache_dir
        self.extractors: dict[str, FeatureExtractor] = {}
        self.missing: dict[str, str] = {}
        self.results: dict[str, float] = {}
        self.record: dict[str, Any] = {}
        self._is_set_up = False
        if label_classifier is not None:
            from generative.networks.label_classifier import load_label_classifier

            network = load_label_classifier(label_classifier)
            resize = f"bilinear with antialiasing to {network.input_size} pixels, where they have another size"
            self.extractors[LABEL_CLASSIFIER] = NetworkExtractor(LABEL_CLASSIFIER, network, resize)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for Inception's weights and try the extractors before the first step, once; Lightning's hook.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: ``fit`` or ``test``.
        """
        if self._is_set_up:
            return
        self._is_set_up = True
        if self.inception is not None:
            self._add_inception(trainer, self.inception.required)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        image = data.batch(self.reference_split, [0]).image
        for extractor in self.extractors.values():
            _try(extractor, image)

    def _add_inception(self, trainer: Trainer, required: bool) -> None:
        # One process of each machine downloads; the others find the file.
        found = self._find_weights(download=True) if trainer.local_rank == 0 else None
        trainer.strategy.barrier()
        found = found or self._find_weights(download=False)
        is_everywhere = trainer.strategy.reduce_boolean_decision(isinstance(found, Path))
        if isinstance(found, Path) and not is_everywhere:
            found = WeightsMissingError("the Inception weights are missing on another machine.")
        if isinstance(found, Path):
            self.extractors[INCEPTION] = InceptionExtractor(found)
            return
        if required:
            raise found
        self.missing[INCEPTION] = str(found)
        others = ", ".join(self.extractors) or "no extractor, so it generates nothing in test"
        rank_zero_warn(f"FID, KID and Inception Score are left out and the run goes on with {others}: {found}")

    def _find_weights(self, download: bool) -> Path | WeightsMissingError:
        assert self.inception is not None
        folder = cache_folder(self.cache_dir) / INCEPTION
        try:
            return find_inception_weights(self.inception.weights, folder, download)
        except WeightsMissingError as error:
            return error

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the images, compare them, and keep and log the metrics."""
        self.results, self.record = {}, {"num_images": 0, "missing": dict(self.missing)}
        if not self.extractors:
            return
        metrics = {name: GenerationMetrics(e.to(pl_module.device)) for name, e in self.extractors.items()}
        for each in metrics.values():
            each.reset(pl_module.device)
        self._generate(trainer, pl_module, list(metrics.values()))
        for each in metrics.values():
            self.results |= each.compute(self._reference(trainer, pl_module, each.extractor))
            each.extractor.to("cpu")  # leaves the device's memory to others
        self.record |= {
            "num_images": self.num_images,
            "labels": f"of labelled data: image i has the labels of image p(i mod n) of the n {self.reference_split} images, "
            "p the permutation of the evaluation seed",
            **{name: each.definition() for name, each in metrics.items()},
        }
        # The values are equal on all ranks already; sync_dist only keeps Lightning from warning.
        pl_module.log_dict({f"test/{name}": value for name, value in self.results.items()}, sync_dist=True)

    def _generate(self, trainer: Trainer, module: Any, metrics: list[GenerationMetrics]) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        num_labelled = len(getattr(data.splits, self.reference_split))
        generator = generator_for(module.evaluation_seed, "generation/labels")
        order = torch.randperm(num_labelled, generator=generator)
        for index in self._batches_of_rank(trainer, self.num_images):
            like = data.batch(self.reference_split, order[index % num_labelled], module.device)
            # The real image gives shape and labels; the module must not see it.
            batch = Batch(torch.zeros_like(like.image), index.to(module.device), labels=like.labels)
            with trainer.precision_plugin.forward_context():
                image = module.sample(batch, module.evaluation_randomness(batch, "generation"))["sample"]
            for each in metrics:
                each.update(image, index)

    def _batches_of_rank(self, trainer: Trainer, num_images: int) -> tuple[Tensor, ...]:
        """Split the indices of this rank's images; without images there is no batch."""
        indices = torch.arange(trainer.global_rank, num_images, trainer.world_size)
        return indices.split(self.batch_size) if len(indices) else ()

    def _reference(self, trainer: Trainer, module: LightningModule, extractor: FeatureExtractor) -> ReferenceFeatures:
        """Load the features of the reference images, or extract them over all ranks and write them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        split = self.reference_split
        num_split = len(getattr(data.splits, split))
        rows = torch.randperm(num_split, generator=generator_for(REFERENCE_SEED, "generation/reference"))
        rows = rows[: min(self.num_reference or DEFAULT_NUM_REFERENCE, num_split)]
        record = data.record()
        identity = {key: record[key] for key in ("name", "fingerprint", "image_size", "channels")}
        path = self._cache_file(extractor, {**identity, "split": split, "num_reference": len(rows)})
        features = _read(path)
        # Ranks of another machine may have another cache: all extract together, or none does.
        if not trainer.strategy.reduce_boolean_decision(features is not None):
            collected = FeatureSet()
            collected.reset(module.device)
            for index in self._batches_of_rank(trainer, len(rows)):
                image = data.batch(split, rows[index], module.device).image
                collected.add(index, Features(extractor(image).features))
            features = collected.merged().features
            if trainer.local_rank == 0:
                cached(path, lambda: {"features": features})
        assert features is not None
        return ReferenceFeatures(
            features,
            f"the first {len(rows)} of {num_split} {split} images of {identity['name']} ({identity['fingerprint']}) in "
            f"the permutation of seed {REFERENCE_SEED}, {identity['image_size']} pixels",
        )

    def _cache_file(self, extractor: FeatureExtractor, images: dict[str, Any]) -> Path:
        key = json.dumps({"extractor": extractor.definition(), "images": images}, sort_keys=True)
        digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        name = f"{images['name']}-{images['split']}-{images['num_reference']}-{extractor.name}-{digest}.pt"
        return cache_folder(self.cache_dir) / "reference_features" / name


def _try(extractor: FeatureExtractor, image_BCHW: Tensor) -> None:
    """Find out before the first step, and not after the last, whether an extractor takes the images."""
    try:
        extractor(image_BCHW)
    except (RuntimeError, ValueError) as error:
        shape = tuple(image_BCHW.shape[1:])
        raise SetupError(
            f"the extractor {extractor.name} does not take images of shape {shape} ({error}): set "
            f"callbacks.generation.{extractor.name}=null or to one that was made for such images."
        ) from error


def _read(path: Path) -> Tensor | None:
    def fail() -> dict[str, Tensor]:
        raise _NotCachedError

    try:
        return cached(path, fail)["features"]
    except _NotCachedError:
        return None
