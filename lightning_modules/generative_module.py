"""The base of the paradigms of generative modelling: a module that makes images says which, how, and by what steps."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from files.words import count
from generative.networks import ImageNetwork
from generative.randomness import Randomness
from generative.types import Batch, State
from lightning_modules.base import TrainingModule
from lightning_modules.contract import ANSWERING, Output, fault_of_outputs

MAX_TRIED_CALLS = 20  # network calls of the image that is made before the first step, to see that it can be made


class GenerativeModule(TrainingModule):
    """A paradigm of generative modelling: it makes named images of a batch.

    Attributes:
        feather: Pixels around a hole in which an output's own pixels go over into the known ones.
        network_sees_pixels: Whether the network's input are images pixel by pixel, so that it can go over them in tiles.
        sampling_times: Number of images and seconds of each call of ``images_of``, while they are measured; else None.
    """

    feather: int = 0
    network_sees_pixels: bool = True
    sampling_times: list[tuple[int, float]] | None = None
    _wanted: Set[str] | None = None
    _diverged: dict[str, Tensor] | None = None  # by output of an evaluation, (2,) images that diverged, and all

    @property
    @abstractmethod
    def outputs(self) -> dict[str, Output]:
        """The images that ``sample`` makes, by name; the one that is asked for first of all stands first.

        ``sample`` is one plausible image and ``mean`` the answer of least squared error, wherever a module has them.
        """

    @property
    def uses_labels(self) -> bool:
        """Whether ``sample`` looks at the labels of a batch; what draws images from noise says it itself."""
        return False

    @abstractmethod
    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """Make the outputs.

        Args:
            batch: Batch on the module's device.

        Returns:
            (B, C, H, W) images in [-1, 1] by the names of ``outputs``; those that ``wants`` does not ask for may be absent.
        """

    def states(self, batch: Batch, randomness: Randomness) -> Iterator[State]:
        """Yield what the sampler goes through on its way to an output; nothing where there are no steps."""
        return iter(())

    def sampling_record(self) -> dict[str, Any]:
        """Describe how ``sample`` makes its outputs, for the record next to the metrics.

        Returns:
            Plain values; the network calls are known from ``outputs``.
        """
        return {}

    def pixel_networks(self) -> list[ImageNetwork]:
        """Return the networks that see images pixel by pixel: over larger ones each of them goes in tiles."""
        network = getattr(self, "network", None)
        return [network] if isinstance(network, ImageNetwork) and self.network_sees_pixels else []

    @property
    def knows_likelihood(self) -> bool:
        """Whether ``bits_per_dimension`` has an answer."""
        return False

    def bits_per_dimension(
        self, batch: Batch, continuous_BCHW: Tensor, randomness: Randomness, num_calls: int
    ) -> dict[str, Tensor]:
        """Say how probable the clean images are to what ``sample`` draws from (``generative.likelihood``).

        Args:
            batch: Batch on the module's device; gradients may pass.
            continuous_BCHW: (B, C, H, W) clean images with uniform noise of one grey level.
            num_calls: Network calls an image.

        Returns:
            (B,) bits per dimension by the metric's key.

        Raises:
            NotImplementedError: The module does not know them.
        """
        raise NotImplementedError(f"{type(self).__name__} knows no likelihood of images.")

    def wants(self, name: str) -> bool:
        """Whether ``sample`` is asked for an output: one that costs network calls is left out where it is not."""
        return self._wanted is None or name in self._wanted

    def images_of(self, batch: Batch, randomness: Randomness, names: Set[str] | None = None) -> dict[str, Tensor]:
        """Return what ``sample`` makes, checked and, where that is asked for, timed: what callbacks and scripts call.

        Args:
            batch: Batch on the module's device.
            names: The outputs that are needed; others may be left out. None for all, which alone are timed.

        Returns:
            (B, C, H, W) images in [-1, 1] by the names of ``outputs``.

        Raises:
            ValueError: ``sample`` made something else.
        """
        begin = self._clock()
        self._wanted = names
        try:
            images = self.sample(batch, randomness)
        finally:
            self._wanted = None
        if self.sampling_times is not None and names is None:
            self.sampling_times.append((len(batch.image), self._clock() - begin))
        needed = self.outputs.keys() if names is None else names
        if not needed <= images.keys() <= self.outputs.keys():
            raise ValueError(
                f"{type(self).__name__}.sample makes {', '.join(images) or 'nothing'}, but its outputs are "
                f"{', '.join(self.outputs)}: give both the same names."
            )
        for name, image in images.items():
            if image.shape != batch.image.shape:
                raise ValueError(
                    f"{type(self).__name__}.sample makes {name} of the shape {tuple(image.shape)} of images of the shape "
                    f"{tuple(batch.image.shape)}: they must be equal."
                )
        if self._diverged is not None:
            for name, image in images.items():
                counted = torch.stack([_diverged_rows(image).sum(), torch.tensor(len(image), device=image.device)])
                self._diverged[name] = counted + self._diverged[name] if name in self._diverged else counted
        return images

    def diverged(self, images: Mapping[str, Tensor]) -> dict[str, str]:
        """Find images with values that are no numbers, which a file would hold as black.

        Args:
            images: (B, C, H, W) images by name, such as that of the output.

        Returns:
            A sentence by name that says what diverged and how it was made; empty where all is well.
        """
        counts = {name: (int(_diverged_rows(image).sum()), len(image)) for name, image in images.items()}
        return {name: self._words_of_diverged(name, *count) for name, count in counts.items() if count[0]}

    def _words_of_diverged(self, name: str, number: int, of: int) -> str:
        record, output = self.sampling_record(), self.outputs.get(name)
        how = [f"{key}={record[key]}" for key in ("sampler", "num_steps", "guidance") if record.get(key) is not None]
        if output is not None and output.num_network_calls is not None:
            how.append(f"{count(round(output.num_network_calls), 'network call')} each")
        made = f" (made with {', '.join(how)})" if how else ""
        return (
            f"{name} diverged: {number} of {count(of, 'image')}{made} "
            f"{'holds' if of == 1 else 'hold'} values that are no numbers: choose another number of steps, sampler or "
            "guidance, unless the weights themselves are not finite."
        )

    def on_validation_epoch_start(self) -> None:
        self._diverged = {}

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._tell_diverged("validation")

    def on_test_epoch_end(self) -> None:
        self._tell_diverged("test")

    def _tell_diverged(self, what: str) -> None:
        """Say in a line for each output how many of the images that the callbacks had made diverged, on any rank."""
        counted, self._diverged = self._diverged or {}, None
        for name in self.outputs:
            mine = counted.get(name, torch.zeros(2, dtype=torch.int64, device=self.device))
            number, of = torch.as_tensor(self.trainer.strategy.reduce(mine, reduce_op="sum")).tolist()
            if number:
                self.print(f"{what}: {self._words_of_diverged(name, number, of)}")

    def _clock(self) -> float:
        if self.sampling_times is not None and self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def check_contract(self) -> None:
        super().check_contract()
        fault = fault_of_outputs(type(self).__name__, self.current_tasks, self.outputs)
        if fault is None and "generate" in self.tasks and type(self).uses_labels is GenerativeModule.uses_labels:
            fault = f"{type(self).__name__} generates, so it must say whether it draws of labels: define uses_labels"
        if fault:
            raise ValueError(f"{fault}.")

    def try_outputs(self, batch: Batch) -> None:
        """Make the outputs of a batch before the first step: a fault is said now, and not at the first grid.

        Args:
            batch: A batch of evaluation; nothing is done where its outputs take many network calls.
        """
        if sum(each.num_network_calls or 0 for each in self.outputs.values()) > MAX_TRIED_CALLS:
            return
        modes = [(child, child.training) for child in self.modules()]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self.eval()
            self.images_of(batch, self.evaluation_randomness(batch))
        for child, mode in modes:
            child.training = mode

    def evaluation_step(self, batch: Batch) -> Mapping[str, Any]:
        """``outputs``, what is made of these very images; of pure generators none."""
        if not self.current_tasks & ANSWERING:
            return self.offered(batch)
        return self.offered(batch, outputs=lambda: self.images_of(batch, self.evaluation_randomness(batch)))


def _diverged_rows(image_BCHW: Tensor) -> Tensor:
    return ~image_BCHW.flatten(1).isfinite().all(1)
