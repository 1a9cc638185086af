"""A trained autoencoder, frozen, from the checkpoint of a run or from an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from generative.inpainting import receptive_radius
from generative.networks.autoencoder import Autoencoder
from generative.networks.bottlenecks import GaussianBottleneck
from generative.networks.quantizers import FSQ, SimVQ, VectorQuantizer
from generative.networks.trained import TrainedNetwork


class TrainedAutoencoder(TrainedNetwork[Autoencoder]):
    """A frozen autoencoder.

    Args:
        network: The trained autoencoder.
        path: Where its weights come from, for the record.

    Attributes:
        grid_size: Side G of the grid of latents or tokens.
        patch_size: Side of the patch of one of them, in pixels.
        dilation: How many places of the grid around its own patch an encoding depends on, measured.
    """

    alike: ClassVar[str] = "an autoencoder"
    built_of: ClassVar[Mapping[str, type[nn.Module]]] = {
        f"generative.networks.{part.__name__}": part
        for part in (Autoencoder, VectorQuantizer, SimVQ, FSQ, GaussianBottleneck)
    }

    def __init__(self, network: Autoencoder, path: str | Path) -> None:
        super().__init__(network, path)
        self.grid_size = network.grid_size
        self.patch_size = network.image_size // network.grid_size
        self.dilation = receptive_radius(network.encode, network.image_size, network.in_channels, network.grid_size)

    @classmethod
    def described(cls, path: str | Path) -> Autoencoder:
        """Build the network without memory for its weights, to ask it for its sizes; see ``load``."""
        config, _ = cls.read(path)
        with cls._refusing(path), torch.device("meta"):
            return cls._built(config, path)

    def check_images(self, image_size: int, channels: int) -> None:
        """Check that the autoencoder was trained on images of a shape.

        Args:
            image_size: Side in pixels.
            channels: Number of channels.

        Raises:
            ValueError: It was not.
        """
        own = (self.network.image_size, self.network.in_channels)
        if own != (image_size, channels):
            raise ValueError(
                f"{self.key}={self.path} was trained on images of {own[0]} pixels and {own[1]} channels, but the data have "
                f"{image_size} and {channels}: choose the {self.noun}'s data, or train one on these."
            )

    @classmethod
    def _built(cls, config: Mapping[str, Any], path: str | Path) -> Autoencoder:
        network = super()._built(config, path)
        if not isinstance(network, Autoencoder):
            raise cls._refused(path, f"it holds a {type(network).__name__}")
        return network
