"""How close sets of restored images are to the clean images of the same set, and to a reference set.

Paired: whether restoring changed the distribution of these very images; the Frechet distance of the clean images is then
0. Unpaired: whether the restored images look like the data; clean images, too, are at the distance of a finite set. The
formulas are those of ``generative.metrics.generation``.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from generative.metrics.features import FeatureExtractor, FeatureSet
from generative.metrics.generation import GenerationMetrics, ReferenceFeatures
from generative.metrics.means import NamedMeans


class RestorationDistanceMetrics:
    """Collects the features of named outputs and of their clean images over batches and ranks, and compares them.

    Attributes:
        num_images: Clean images of all ranks behind the last ``compute``.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self._counts = NamedMeans()
        self._clean = FeatureSet()
        self.reset()

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Forget all images.

        Args:
            device: The device over which the ranks talk.
        """
        self.num_images = 0
        self._device = device
        self._counts.reset(device)
        self._clean.reset(device)
        self._outputs: dict[str, GenerationMetrics] = {}
        self._definitions: dict[str, Any] = {}

    def _metrics_of(self, output: str) -> GenerationMetrics:
        if output not in self._outputs:
            self._outputs[output] = GenerationMetrics(self.extractor, output)
            self._outputs[output].reset(self._device)
        return self._outputs[output]

    @torch.no_grad()
    def update(self, outputs: dict[str, Tensor], clean_BCHW: Tensor, index_B: Tensor) -> None:
        """Take in a batch.

        Args:
            outputs: (B, C, H, W) restored images by name, on the extractor's device; clamped to [-1, 1] and rounded to
                8 bits.
            clean_BCHW: (B, C, H, W) clean images in [-1, 1].
            index_B: (B,) int64 indices of the images; each image comes once, on one rank.
        """
        self._clean.add(index_B, self.extractor(clean_BCHW))
        for output, image_BCHW in outputs.items():
            self._counts.add(output, torch.ones(len(index_B)))
            self._metrics_of(output).update(image_BCHW, index_B)

    @torch.no_grad()
    def compute(self, reference: ReferenceFeatures) -> dict[str, float]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Args:
            reference: The images of the unpaired comparison.

        Returns:
            The metrics of ``GenerationMetrics``, named ``<metric>/<output>`` unpaired and ``<metric>_paired/<output>``
            paired, without those that were skipped.
        """
        clean = self._clean.merged().features
        self.num_images = len(clean)
        pairs = ReferenceFeatures(clean, f"the clean images of these {self.num_images} images")
        results: dict[str, float] = {}
        self._definitions = {}
        # The ranks' collectives must pair up, so a rank that never saw an output takes part with no images.
        for output in self._counts.compute():
            metrics = self._metrics_of(output)
            results |= metrics.compute(pairs, paired=True)
            paired = metrics.definition()
            results |= metrics.compute(reference)
            self._definitions[output] = {"paired": paired, "unpaired": metrics.definition()}
        return results

    def definition(self) -> dict[str, Any]:
        """Say what the metrics of the last ``compute`` mean, for the record next to the numbers.

        Returns:
            By output, the definitions of ``paired`` and ``unpaired`` metrics.
        """
        return dict(self._definitions)
