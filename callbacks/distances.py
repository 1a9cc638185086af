"""The base of callbacks that measure distances between sets of images: feature extractors and a reference split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.measuring import MeasuringCallback, SetupError
from datamodules.base import datamodule_of
from datamodules.splits import Split
from files.cache import cache_folder, cached
from generative.metrics.features import INCEPTION, FeatureExtractor, Features, FeatureSet, NetworkExtractor
from generative.metrics.generation import ReferenceFeatures
from generative.metrics.inception import find_inception_weights
from generative.randomness import generator_for
from generative.weight_files import WeightsMissingError

LABEL_CLASSIFIER = "label_classifier"
DEFAULT_NUM_REFERENCE = 50_000  # images, where there are so many: what papers compare with
REFERENCE_SEED = 0  # the reference images are the same whatever the run's seeds


@dataclass(frozen=True)
class InceptionSettings:
    """Where Inception's weights are.

    Attributes:
        weights: torch-fidelity's file, or None for the one in the cache folder, downloaded once.
        required: Whether a run stops before its first step without the weights, instead of continuing without Inception.
    """

    weights: str | Path | None = None
    required: bool = False


class _NotCachedError(Exception):
    """The cache has no usable file."""


class DistanceCallback(MeasuringCallback):
    """Has feature extractors, and the features of a reference split, which it keeps in the cache folder.

    Args:
        key: Config key of the callback, for messages.
        without_extractor: What the callback does in test without any extractor, for a warning.
        reference_split: Split that images are compared with.
        num_reference: Images of that split to compare with, or None for all, at most 50,000.
        batch_size: Reference images whose features are extracted at a time on each rank.
        inception: ``weights`` and ``required`` as in ``InceptionSettings``, or None to do without Inception.
        label_classifier: File of a trained label classifier, a second extractor; or None.
        cache_dir: Cache folder for weights and reference features, or None for the user's.

    Attributes:
        extractors: What gives the features; complete once a fit or test has been set up.
        missing: Why an extractor is absent, by its name.
        results: Metrics of the last test; empty without an extractor.
        record: Numbers of images, definitions and what is missing behind ``results``.
    """

    def __init__(
        self,
        key: str,
        without_extractor: str,
        reference_split: Split,
        num_reference: int | None,
        batch_size: int,
        inception: Mapping[str, Any] | None,
        label_classifier: str | Path | None,
        cache_dir: str | Path | None,
    ) -> None:
        super().__init__()
        self.key = key
        self.reference_split = reference_split
        self.num_reference = num_reference
        self.batch_size = batch_size
        self.inception = None if inception is None else InceptionSettings(**inception)
        self.cache_dir = cache_dir
        self.extractors: dict[str, FeatureExtractor] = {}
        self.missing: dict[str, str] = {}
        self._without_extractor = without_extractor
        self._is_set_up = False
        if label_classifier is not None:
            from generative.judges.label_classifier import load_label_classifier

            network = load_label_classifier(label_classifier)
            resize = f"bilinear with antialiasing to {network.input_size} pixels, where they have another size"
            self.extractors[LABEL_CLASSIFIER] = NetworkExtractor(LABEL_CLASSIFIER, network, resize)

    def set_up_extractors(self, trainer: Trainer, make_inception: Callable[[Path], FeatureExtractor]) -> None:
        """Look for Inception's weights and try the extractors before the first step, once; for the hook ``setup``."""
        if self._is_set_up:
            return
        self._is_set_up = True
        if self.inception is not None:
            self._add_inception(trainer, self.inception.required, make_inception)
        image = datamodule_of(trainer).batch(self.reference_split, [0]).image
        for extractor in self.extractors.values():
            self._try(extractor, image)

    def _add_inception(self, trainer: Trainer, required: bool, make: Callable[[Path], FeatureExtractor]) -> None:
        # One process of each machine downloads; the others find the file.
        found = self._find_weights(download=True) if trainer.local_rank == 0 else None
        trainer.strategy.barrier()
        found = found or self._find_weights(download=False)
        is_everywhere = trainer.strategy.reduce_boolean_decision(isinstance(found, Path))
        if isinstance(found, Path) and not is_everywhere:
            found = WeightsMissingError("the Inception weights are missing on another machine.")
        if isinstance(found, Path):
            self.extractors[INCEPTION] = make(found)
            return
        if required:
            raise found
        self.missing[INCEPTION] = str(found)
        others = ", ".join(self.extractors) or f"no extractor, so it {self._without_extractor} in test"
        rank_zero_warn(f"FID, KID and Inception Score are left out and the run continues with {others}: {found}")

    def _find_weights(self, download: bool) -> Path | WeightsMissingError:
        assert self.inception is not None
        folder = cache_folder(self.cache_dir) / INCEPTION
        try:
            return find_inception_weights(self.inception.weights, folder, download, f"{self.key}.inception.weights")
        except WeightsMissingError as error:
            return error

    def _try(self, extractor: FeatureExtractor, image_BCHW: Tensor) -> None:
        """Find out before the first step, and not after the last, whether an extractor takes the images."""
        try:
            extractor(image_BCHW)
        except (RuntimeError, ValueError) as error:
            shape = tuple(image_BCHW.shape[1:])
            raise SetupError(
                f"the extractor {extractor.name} does not take images of shape {shape} ({error}): set "
                f"{self.key}.{extractor.name}=null or to one that was made for such images."
            ) from error

    def batches_of_rank(self, trainer: Trainer, num_images: int) -> tuple[Tensor, ...]:
        """Split the indices of this rank's share of images into batches; without images there is none."""
        indices = torch.arange(trainer.global_rank, num_images, trainer.world_size)
        return indices.split(self.batch_size) if len(indices) else ()

    def reference(self, trainer: Trainer, module: LightningModule, extractor: FeatureExtractor) -> ReferenceFeatures:
        """Load the features of the reference images, or extract them over all ranks and write them; equal on all ranks."""
        data = datamodule_of(trainer)
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
            for index in self.batches_of_rank(trainer, len(rows)):
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


def _read(path: Path) -> Tensor | None:
    def fail() -> dict[str, Tensor]:
        raise _NotCachedError

    try:
        return cached(path, fail)["features"]
    except _NotCachedError:
        return None
