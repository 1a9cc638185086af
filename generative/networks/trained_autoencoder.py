"""A trained autoencoder, frozen, from the checkpoint of a run or from an export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from generative.export import SUFFIX, read_network
from generative.frozen import Frozen
from generative.inpainting import receptive_radius
from generative.networks.autoencoder import Autoencoder
from generative.networks.bottlenecks import GaussianBottleneck
from generative.networks.quantizers import FSQ, SimVQ, VectorQuantizer
from generative.weights import (
    LoadMemoryError,
    NotLoadedError,
    checkpoint_fault,
    is_out_of_memory,
    network_weights,
    read_checkpoint,
    weights_hash,
)

NOT_ALIKE = "its config and weights are not those of an autoencoder"
# A checkpoint may name nothing else to be built: it could otherwise run code.
PARTS: dict[str, type[nn.Module]] = {
    f"generative.networks.{part.__name__}": part
    for part in (Autoencoder, VectorQuantizer, SimVQ, FSQ, GaussianBottleneck)
}


class RefusedError(ValueError):
    """A file is not what it was named for; the message says so in one sentence."""


class TrainedAutoencoder(Frozen[Autoencoder]):
    """A frozen autoencoder, known by its weights.

    Args:
        network: The trained autoencoder.
        path: Where its weights come from, for the record.

    Attributes:
        key: Config key that names it.
        noun: What it is called in messages.
        example: An experiment that trains one.
        grid_size: Side G of the grid of latents or tokens.
        patch_size: Side of the patch of one of them, in pixels.
        hash: Hash of the weights.
        dilation: How many places of the grid around its own patch an encoding depends on, measured.
    """

    key: ClassVar[str]
    noun: ClassVar[str]
    example: ClassVar[str]

    def __init__(self, network: Autoencoder, path: str | Path) -> None:
        super().__init__(network)
        self.path = str(path)
        self.grid_size = network.grid_size
        self.patch_size = network.image_size // network.grid_size
        self.hash = weights_hash(network)
        self.dilation = receptive_radius(network.encode, network.image_size, network.in_channels, network.grid_size)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a trained one; nothing but tensors and plain containers is unpickled.

        Args:
            path: Checkpoint of a run, whose averaged weights are used where it has them; or the ``model.safetensors`` of an
                exported one.

        Raises:
            ValueError: If the file is missing or is no such checkpoint.
            LoadMemoryError: If it needs more memory than there is.
        """
        config, weights = cls.read(path)
        with cls._refusing(path):
            network = cls._built(config, path)
            network.load_state_dict(weights)
        return cls(network, path)

    @classmethod
    def read(cls, path: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        """Read what one is built from; see ``load``.

        Args:
            path: Checkpoint of a run, or ``model.safetensors`` of an export.

        Returns:
            The config of its network, and the weights by the network's own names.
        """
        return cls._read_exported(Path(path)) if Path(path).suffix == SUFFIX else cls._read_run(path)

    @classmethod
    def described(cls, path: str | Path) -> Autoencoder:
        """Build the network without memory for its weights, to ask it for its sizes; see ``load``."""
        config, _ = cls.read(path)
        with cls._refusing(path), torch.device("meta"):
            return cls._built(config, path)

    def settings(self) -> Mapping[str, Any]:
        """Return what the network is built from: its class and arguments."""
        return self.read(self.path)[0]

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

    def record(self) -> dict[str, Any]:
        """Identify the autoencoder.

        Returns:
            Plain values: two with equal hashes give equal encodings.
        """
        return {"path": self.path, "hash": self.hash}

    @classmethod
    def _read_run(cls, path: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        try:
            checkpoint = read_checkpoint(path)
        except FileNotFoundError as error:
            raise ValueError(f"{cls.key}={path} does not exist.") from error
        except NotLoadedError as error:
            raise cls._refused(path, str(error)) from error
        if fault := checkpoint_fault(checkpoint):
            raise cls._refused(path, fault)
        try:
            return checkpoint["config"]["network"], network_weights(checkpoint)
        except (KeyError, TypeError) as error:
            raise cls._refused(path, NOT_ALIKE) from error

    @classmethod
    def _read_exported(cls, path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        weights, metadata = read_network(path)
        try:
            return json.loads(metadata["network"]), weights
        except (KeyError, ValueError, RecursionError) as error:
            raise cls._refused(path, NOT_ALIKE) from error

    @classmethod
    def _built(cls, config: Mapping[str, Any], path: str | Path) -> Autoencoder:
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten, so they must not cost a draw
            network = _build(config)
        if not isinstance(network, Autoencoder):
            raise cls._refused(path, f"it holds a {type(network).__name__}")
        return network

    @classmethod
    @contextmanager
    def _refusing(cls, path: str | Path) -> Iterator[None]:
        """Say in one sentence what wrong configs and weights raise."""
        try:
            yield
        except RefusedError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise LoadMemoryError(f"{cls.key}={path} does not fit into the memory that is left: {error}") from error
            raise cls._refused(path, NOT_ALIKE) from error

    @classmethod
    def _refused(cls, path: str | Path, reason: str) -> RefusedError:
        return RefusedError(
            f"{cls.key}={path} is no {cls.noun}: {reason}; give a run of experiment={cls.example} or one like it."
        )


def _build(node: Mapping[str, Any]) -> nn.Module:
    arguments = {
        key: _build(value) if isinstance(value, Mapping) else value for key, value in node.items() if key != "_target_"
    }
    return PARTS[node["_target_"]](**arguments)
