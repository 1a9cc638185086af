"""The base of all modules: steps, optimiser, logging and evaluation; a kind of module adds ``loss`` and says what it is.

What makes images is a ``lightning_modules.generative_module.GenerativeModule``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from generative.randomness import IndexRandomness, Randomness, StepRandomness, generator_for
from generative.types import Batch, LossOutput
from lightning_modules.compiled import CompiledTraining
from lightning_modules.composed import ComposedSchedule
from lightning_modules.contract import Described, OnDemand
from lightning_modules.parameter_groups import ParameterGroups, decay_groups, split_single_group
from lightning_modules.sharding import MESH_AXIS, gather_weights, release_weights, shard

OptimizerFactory = Callable[[ParameterGroups], Optimizer]


class ImageData(Protocol):
    """What a module may ask of its data.

    Attributes:
        image_size: Side of the images in pixels.
        num_classes: Length of the labels; 0 without labels.
        name: Name of the data set.
        horizontal_flip: Whether training images are mirrored at random.
        quarter_turns: Whether training images are turned by multiples of 90 degrees at random.
        mirror_keeps_labels: Whether a mirrored or turned image still has its labels.
    """

    name: str
    image_size: int
    channels: int
    num_classes: int
    horizontal_flip: bool
    quarter_turns: bool
    mirror_keeps_labels: bool

    @property
    def splits(self) -> Any:
        """The splits; each has a length."""

    def batch(
        self, split: Literal["train", "val", "test"], indices: Sequence[int], device: torch.device | str = "cpu"
    ) -> Batch:
        """Return some images as evaluation sees them."""


def check_labels_kept(data: ImageData) -> None:
    """Check that the views of the training images that a module learns labels of still have them.

    Raises:
        ValueError: Mirrored or turned images lose theirs.
    """
    for key, done in (("horizontal_flip", "mirrored"), ("quarter_turns", "turned")):
        if getattr(data, key) and not data.mirror_keeps_labels:
            raise ValueError(
                f"data.{key}=true would teach wrong labels: images of data={data.name} lose theirs when they are {done}; "
                f"set data.{key}=false."
            )


class TrainingModule(Described, LightningModule, ABC):
    """A network in training; what makes images is a ``GenerativeModule``.

    Args:
        network: The trainable network; its parameters are what the EMA tracks.
        optimizer: Makes the optimiser from the parameters in two groups, with and without weight decay (``decay_groups``).
        learning_rate_factor: Optimiser step -> factor of the learning rate.
        total_steps: Optimiser steps of the whole run.
        seed: The run's seed; every draw in training is a function of (seed, purpose, step, rank).
        evaluation_seed: Seed of the draws in validation, test and grids; the same for all runs that are compared.
        compile: Whether the network's training forward is compiled; the first step then takes the better part of a minute.
            ``auto`` is decided before a training begins, and means false to a module that is built for anything else.

    Attributes:
        trained_method: The method of the network that the loss calls, and which is compiled.
        trained_steps: Optimiser steps behind weights that were loaded from a checkpoint.
        draw_seed: Seed of the last training step's draws, for those who check that ranks draw differently.
    """

    training_only: ClassVar[Mapping[str, Any]] = {"compile": False}
    trained_method: ClassVar[str] = "forward"

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory,
        learning_rate_factor: Callable[[int], float],
        total_steps: int,
        seed: int = 0,
        evaluation_seed: int = 0,
        compile: bool | Literal["auto"] = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer_factory = optimizer
        self.learning_rate_factor = learning_rate_factor
        self.total_steps = total_steps
        self.seed = seed
        self.evaluation_seed = evaluation_seed
        self.trained_steps = 0
        self.draw_seed = 0
        self.compile_training = compile is True
        self._compiled: CompiledTraining | None = None  # made by the first step: nothing else needs it
        self._batch_weights: list[Tensor] = []  # of the batches accumulated so far
        self._drops_out = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in network.modules())

    @abstractmethod
    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        """Return the training loss of a batch.

        Args:
            batch: Batch on the module's device.

        Returns:
            The loss and what to log with it.
        """

    def check_data(self, data: ImageData) -> None:
        """Check that the data are such as the module can work with; called once, before the first step.

        Args:
            data: The data, set up.
        """
        return

    def measure(self, data: Any) -> None:
        """Look at the training images before a training begins, as whether there is something to compute of them once.

        Args:
            data: The data, set up (``datamodules.base.ImageDataModule``).
        """
        return

    def setup(self, stage: str) -> None:
        """Look at the training images; what a checkpoint holds of that takes its place."""
        if stage == "fit":
            self.measure(self.trainer.datamodule)  # type: ignore[attr-defined]

    def check_training(self) -> None:
        """Check that training will teach what sampling asks for; called once, before the first step of a training."""
        return

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self.total_steps))

    def evaluation_randomness(self, batch: Batch, purpose: str = "sample") -> IndexRandomness:
        """Return draws that depend on each image's index alone.

        Args:
            batch: Batch whose ``index`` seeds the streams.

        Returns:
            One stream per image.
        """
        return IndexRandomness.for_images(self.evaluation_seed, purpose, batch.index, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take the loss of a batch."""
        if self._drops_out:  # dropout knows no generator of its own: it draws from the global one
            torch.manual_seed(generator_for(self.seed, "dropout", batch.step, self.global_rank).initial_seed())
        generator = generator_for(self.seed, "objective", batch.step, self.global_rank, self.device)
        self.draw_seed = generator.initial_seed()
        output = self._training_loss(batch, StepRandomness(generator, len(batch.image)))
        interval = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % interval == 0:  # the steps at which the trainer writes
            rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
            logs = {"loss": output.loss.detach(), **output.logs, "learning_rate": torch.tensor(rate)}
            means = {f"train/{name}": value for name, value in logs.items()}
            means["step"] = torch.tensor(float(self.global_step + 1))  # Lightning's own count is one behind the grids'
            self.log_dict(
                means, batch_size=len(batch.image), sync_dist=True
            )  # of the whole batch, not of rank 0's part
        if output.weight is None or self.trainer.accumulate_grad_batches == 1:
            return output.loss
        self._batch_weights.append(output.weight)
        return output.loss * (output.weight / self._batch_weights[0])

    def _training_loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        """Take the loss, through the compiled network where that is asked for, and tell once what compiling took."""
        if not self.compile_training:
            return self.loss(batch, randomness)
        if self._compiled is None:
            self._compiled = CompiledTraining(self.network, self.trained_method)
        begins = self._compiled.seconds is None
        with self._compiled.used():
            output = self.loss(batch, randomness)
        if begins and self._compiled.seconds is not None:
            self.print(f"the network was compiled in {self._compiled.seconds:.0f} s")
        return output

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the gradient that of the mean over all terms of the accumulated batches, before clipping.

        Lightning adds up the gradients of the batches' losses over their number; those came weighted relative to the first.
        """
        if self._batch_weights:
            factor = self.accumulated_factor
            self._batch_weights.clear()
            for parameter in self.trainable_parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    @property
    def accumulated_factor(self) -> float:
        """What makes the gradients of the accumulated batches, and the sum of their losses, those of the mean of all terms."""
        if not self._batch_weights:
            return 1.0
        first, total = float(self._batch_weights[0]), float(torch.stack(self._batch_weights).sum())
        return self.trainer.accumulate_grad_batches * first / total

    def configure_model(self) -> None:
        """Shard the network where the trainer does, also called again before a test."""
        if self.device_mesh is not None:
            shard(self.network, self.device_mesh[MESH_AXIS])

    def on_validation_start(self) -> None:
        """Evaluate the same network on every rank, behind those of the callbacks.

        Buffers that learn by no gradient, as the statistics of batch norm, are each rank's own after a training step;
        those of rank 0 are the ones in the checkpoint.
        """
        gather_weights(self.network)
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def on_validation_end(self) -> None:
        """Go back to this rank's part of the weights."""
        release_weights(self.network)

    on_test_start = on_validation_start
    on_test_end = on_validation_end

    def evaluation_step(self, batch: Batch) -> Mapping[str, Any]:
        """Offer what the callbacks measure in validation and test; a kind of module adds to the batch.

        Args:
            batch: Batch on the module's device.

        Returns:
            The ``batch``, and by name what is made of it where a callback asks (``offered``).
        """
        return self.offered(batch)

    def offered(self, batch: Batch, **makers: Callable[[], Any]) -> OnDemand:
        """Return a batch and what can be made of it, in the precision of the steps.

        Args:
            **makers: What makes an entry, by its name; without ``outputs`` these are none.

        Returns:
            The entries.
        """
        trainer = self._trainer
        makers = {"outputs": dict, **makers}
        return OnDemand({"batch": batch}, makers, trainer.precision_plugin.forward_context if trainer else nullcontext)

    def validation_step(self, batch: Batch, batch_idx: int) -> Mapping[str, Any]:
        """Hand a batch to the callbacks that measure."""
        return self.evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        """Let the loggers count validation by the optimiser steps behind the weights."""
        self.log("step", float(self.global_step), sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> Mapping[str, Any]:
        """Hand a batch to the callbacks that measure."""
        return self.evaluation_step(batch)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser moves: the network, and in some paradigms a helper of its training."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the optimiser of a run that was begun before its parameters stood in two groups.

        Args:
            checkpoint: The checkpoint, changed in place.
        """
        parameters = self.trainable_parameters()
        split_single_group(checkpoint, parameters, decay_groups(parameters, self))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build optimiser and learning-rate schedule, stepped each optimiser step."""
        optimizer: Any = self.optimizer_factory(decay_groups(self.trainable_parameters(), self))
        # A fused optimiser would divide by the loss scale in its step, after clipping: the scaler does so before.
        optimizer._step_supports_amp_scaling = False
        schedule = ComposedSchedule(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
