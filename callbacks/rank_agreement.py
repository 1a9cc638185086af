"""Agreement of the ranks: equal weights at the start, equal gradients and different draws in the first steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from generative.checks import checked
from generative.ranges import WholeNumber

INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
POSITION_PERIOD = 65_521  # prime, so that no regular shape repeats with it
MIN_DISTINCT_IMAGES = 4  # a few images may come in the same order on two ranks by chance


class RankDisagreementError(RuntimeError):
    """The ranks do not train one network on different draws; the message says in one sentence where they differ."""


@checked("callbacks.rank_agreement")
class RankAgreement(Callback):
    """Stops a run on several ranks whose ranks drift apart, or do the same work twice, while it still costs seconds.

    At the start of a fit, also of a resumed one, the weights of all ranks must be equal to the last bit. In the first
    optimiser steps after it so must the gradients, as they reach the optimiser, while the draws must differ and the
    images must not be the same in all of these steps. What is compared is a digest of the bits of each tensor: two
    all-reduces of 16 bytes a tensor. Later steps, and runs on one rank, cost nothing.

    A weight without a gradient is fine if it has none on any rank. Under FSDP each rank holds its own part of each
    weight and gradient: there is nothing to compare, and only draws and images are checked.

    Args:
        num_steps: Optimiser steps that are checked after each start; 0 checks the weights alone.
    """

    def __init__(self, num_steps: WholeNumber = 3) -> None:
        self.num_steps = num_steps
        self._steps_left = 0
        self._last_step = 0
        self._same_images = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the weights and buffers with which the ranks start.

        Raises:
            RankDisagreementError: They differ.
        """
        self._steps_left = self.num_steps if trainer.world_size > 1 else 0
        self._last_step = trainer.global_step
        self._same_images = True
        if trainer.world_size == 1:
            return
        name = first_difference(pl_module.state_dict().items(), pl_module.device)
        if name is not None:
            raise RankDisagreementError(
                f"The ranks start step {trainer.global_step} with different values of {name}: they were built from "
                "different seeds, configs or files; start all of them with the same command and the same files."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare what the ranks drew and which images they saw.

        Args:
            outputs: Not used.
            batch: This rank's batch.
            batch_idx: Not used.

        Raises:
            RankDisagreementError: Draws are the same on two ranks, or images on all.
        """
        if self._steps_left == 0:
            return
        step = trainer.global_step
        self._steps_left -= step != self._last_step  # not where batches are accumulated still
        self._last_step = step
        seed: int = pl_module.draw_seed  # type: ignore[assignment]
        own = torch.stack([torch.tensor(seed, device=pl_module.device), digest(batch.index)[0]])
        gathered: list[Tensor] = [torch.empty_like(own) for _ in range(trainer.world_size)]
        dist.all_gather(gathered, own)
        seeds, images = torch.stack(gathered).T.tolist()
        if len(set(seeds)) < trainer.world_size:
            raise RankDisagreementError(
                f"Two ranks drew the same noise at step {step}: draws must come from the randomness that loss is given, "
                "whose seed is a function of the rank."
            )
        few = len(batch.index.unique()) < MIN_DISTINCT_IMAGES
        self._same_images &= len(set(images)) == 1 and not few
        if self._steps_left == 0 and self._same_images:
            raise RankDisagreementError(
                f"All {trainer.world_size} ranks saw the same images in each step up to step {step}: the data's training "
                "loader must give each rank its own part of the global batch."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Compare the gradients that the ranks are about to step with.

        Args:
            optimizer: Not used: all gradients of the module are compared.

        Raises:
            RankDisagreementError: They differ.
        """
        if self._steps_left == 0:
            return
        gradients = ((name, p.grad) for name, p in pl_module.named_parameters() if p.requires_grad)
        name = first_difference(gradients, pl_module.device)
        if name is not None:
            raise RankDisagreementError(
                f"The gradients of the ranks differ at step {trainer.global_step}, first in {name}: it is changed after "
                "they are averaged, or the loss reaches it by a way that DDP does not see; a loss must call the network "
                "inside training_step and leave gradients alone."
            )


def digest(tensor: Tensor | None) -> Tensor:
    """Return two numbers that change with any bit of a tensor, and with the place of its values.

    Args:
        tensor: A tensor, or None.

    Returns:
        (2,) int64; of None a value that no tensor is likely to have.
    """
    if tensor is None:
        return torch.full((2,), -1)
    bits = tensor.detach().contiguous().flatten()
    bits = bits.view(INTEGER_OF_SIZE[bits.element_size()]).long()
    place = torch.arange(1, bits.numel() + 1, device=bits.device).remainder_(POSITION_PERIOD).add_(1)
    return torch.stack([bits.sum(), (bits * place).sum()])


def first_difference(tensors: Iterable[tuple[str, Tensor | None]], device: torch.device) -> str | None:
    """Find the first tensor that is not the same on all ranks; each rank must ask for the same names.

    Args:
        tensors: Names and tensors; those of which each rank holds a part only are left out.
        device: The device over which the ranks talk.

    Returns:
        The name, the same on every rank; None where all are equal.
    """
    compared = [(name, digest(tensor)) for name, tensor in tensors if not isinstance(tensor, DTensor)]
    if not compared:
        return None
    smallest = torch.stack([numbers.to(device) for _, numbers in compared])
    largest = smallest.clone()
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    different = (smallest != largest).any(dim=1).nonzero().flatten().tolist()
    return compared[different[0]][0] if different else None
