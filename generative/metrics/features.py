"""Features of images, for distances between sets of images.

Shape suffixes: N images of all ranks, B batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from files.pixels import from_levels, to_bytes
from generative.float32 import whole_float32
from generative.frozen import Frozen
from generative.weights import weights_hash

INCEPTION = "inception"  # the one extractor whose metrics are called ``fid`` and ``kid``


class Features(NamedTuple):
    """What an extractor says about images.

    Attributes:
        features: (B, D) float32 features.
        logits: (B, K) float32 class logits, or None where the extractor has no classes.
    """

    features: Tensor
    logits: Tensor | None = None


class FeatureExtractor(Frozen[nn.Module], ABC):
    """Maps images to features; it sees the images as 8-bit files hold them.

    Args:
        name: Name of the extractor, part of the metrics' names.
        network: The network; it is frozen.
        resize: How images are brought to the network's input size, in words.
        library: Where the network's code comes from, with its version.

    Attributes:
        fingerprint: Hash of the network's weights.
    """

    def __init__(self, name: str, network: nn.Module, resize: str, library: str) -> None:
        self.name = name
        super().__init__(network)
        self.resize = resize
        self.library = library
        self.fingerprint = weights_hash(network)

    @abstractmethod
    def __call__(self, image_BCHW: Tensor) -> Features:
        """Extract the features of a batch.

        Args:
            image_BCHW: (B, C, H, W) images; clamped to [-1, 1] and rounded to 8 bits.

        Returns:
            Features and, where there are classes, logits, on the images' device.
        """

    def definition(self) -> dict[str, str]:
        """Identify the extractor: two with equal definitions give equal features.

        Returns:
            Plain values.
        """
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "resize": self.resize,
            "library": self.library,
        }


class NetworkExtractor(FeatureExtractor):
    """Another network with a method ``features``: (B, C, H, W) images in [-1, 1] -> (B, D).

    Args:
        name: Name of the network in the metrics' names; never that of Inception, whose metrics alone are ``fid``.
        network: The network, already with its weights.
        resize: How it brings images to its input size, in words.

    Raises:
        ValueError: If the name is Inception's or would not make a metric's name.
        TypeError: If the network has no such method.
    """

    def __init__(self, name: str, network: nn.Module, resize: str) -> None:
        if name == INCEPTION or not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(
                f"The extractor {name!r} needs a name of its own, in small letters, digits and underscores."
            )
        if not callable(getattr(network, "features", None)):
            raise TypeError(f"The extractor {name} needs a network with a method features(image_BCHW) -> (B, D).")
        super().__init__(name, network, resize, type(network).__name__)

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> Features:
        with whole_float32(image_BCHW.device):
            features = self.network.features(from_levels(to_bytes(image_BCHW)))  # type: ignore[operator]
        return Features(features.float())


class FeatureSet:
    """Features of a set of images, in the order of the images' indices whatever batch and rank they came from."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Forget all images.

        Args:
            device: The device over which the ranks talk; the features themselves wait on the CPU.
        """
        self._device = torch.device(device)
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, index_B: Tensor, features: Features) -> None:
        """Take in a batch.

        Args:
            index_B: (B,) int64 indices of the images; each image is added once, on one rank.
        """
        logits = features.features[:, :0] if features.logits is None else features.logits
        self._rows.append((index_B.cpu(), features.features.float().cpu(), logits.float().cpu()))

    def merged(self) -> Features:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Returns:
            (N, D) features and (N, K) logits on the CPU; (0, 0) features when no rank took in an image.
        """
        empty = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0), torch.zeros(0, 0))
        index, features, logits = (
            _gather(torch.cat(rows), self._device) for rows in zip(*(self._rows or [empty]), strict=True)
        )
        order = index.argsort()
        return Features(features[order], logits[order] if logits.shape[1] else None)


def _gather(rows: Tensor, device: torch.device) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    # A rank without images does not know the number of columns; its part is left out.
    parts = [part.cpu() for part in gather_all_tensors(rows.to(device))]
    return torch.cat([part for part in parts if len(part)] or parts[:1])
