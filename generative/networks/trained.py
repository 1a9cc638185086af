"""A trained network, frozen, from the checkpoint of a run or from an export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Self

import torch
from torch import Tensor, nn

from generative.export import SUFFIX, read_network
from generative.frozen import Frozen, Network
from generative.weights import (
    LoadMemoryError,
    NotLoadedError,
    checkpoint_fault,
    is_out_of_memory,
    network_weights,
    read_checkpoint,
    weights_hash,
)


class RefusedError(ValueError):
    """A file is not what it was named for; the message says so in one sentence."""


class TrainedNetwork(Frozen[Network], Generic[Network]):
    """A frozen network, known by its weights.

    Args:
        network: The trained network.
        path: Where its weights come from, for the record.

    Attributes:
        key: Config key that names it.
        noun: What it is called in messages.
        alike: What networks of its kind are called there, with an article.
        example: An experiment that trains one.
        built_of: Classes that a checkpoint may name, by their names: anything else could run code.
        hash: Hash of the weights.
    """

    key: ClassVar[str]
    noun: ClassVar[str]
    alike: ClassVar[str]
    example: ClassVar[str]
    built_of: ClassVar[Mapping[str, type[nn.Module]]]

    def __init__(self, network: Network, path: str | Path) -> None:
        super().__init__(network)
        self.path = str(path)
        self.hash = weights_hash(network)

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

    def settings(self) -> Mapping[str, Any]:
        """Return what the network is built from: its class and arguments."""
        return self.read(self.path)[0]

    def record(self) -> dict[str, Any]:
        """Identify the network.

        Returns:
            Plain values: two with equal hashes give equal answers.
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
            raise cls._refused(path, f"its config and weights are not those of {cls.alike}") from error

    @classmethod
    def _read_exported(cls, path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        weights, metadata = read_network(path)
        try:
            return json.loads(metadata["network"]), weights
        except (KeyError, ValueError, RecursionError) as error:
            raise cls._refused(path, f"its config and weights are not those of {cls.alike}") from error

    @classmethod
    def _built(cls, config: Mapping[str, Any], path: str | Path) -> Network:
        """Build the network of a config, or refuse another kind of it."""
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten, so they must not cost a draw
            network: Any = cls._build(config)
        return network

    @classmethod
    def _build(cls, node: Mapping[str, Any]) -> nn.Module:
        arguments = {
            key: cls._build(value) if isinstance(value, Mapping) else value
            for key, value in node.items()
            if key != "_target_"
        }
        return cls.built_of[node["_target_"]](**arguments)

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
            raise cls._refused(path, f"its config and weights are not those of {cls.alike}") from error

    @classmethod
    def _refused(cls, path: str | Path, reason: str) -> RefusedError:
        return RefusedError(
            f"{cls.key}={path} is no {cls.noun}: {reason}; give a run of experiment={cls.example} or one like it."
        )
