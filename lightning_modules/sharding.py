"""Sharded training of large networks (FSDP, arXiv 2304.11277): each rank keeps its part of every weight, gradient and
optimiser state, and gathers the weights of a block while it computes.

Lightning's ``ModelParallelStrategy`` with torch's second FSDP, ``fully_shard``, and not its ``FSDPStrategy`` with the first:
weights stay tensors with their names, so the EMA, clipping and checkpoints of every other run work on them; and it also runs
on CPU processes, so it can be tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

MESH_AXIS = "data_parallel"  # the strategy's name of it


class FullyShardedStrategy(ModelParallelStrategy):
    """Data-parallel training with weights, gradients, optimiser state and averages sharded over all ranks of all nodes.

    A checkpoint is the one file of plain tensors that every other run writes, in the same layout: a run can change between
    sharded and other trainers, and between numbers of ranks. It is gathered tensor by tensor and written by rank 0.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shard over all ranks; Lightning's default is over the nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights and callbacks are restored before the fit starts, as in all other runs."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimiser's state to this strategy."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights, whole on rank 0."""
        assert self.lightning_module is not None
        return gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return an optimiser's state, whole on rank 0.

        Args:
            optimizer: The optimiser.
        """
        return gathered(optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            weights_only: Not used: nothing but tensors and plain containers is ever read.

        Returns:
            Its whole content, on the CPU.
        """
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's part of the weights.

        Args:
            strict: Whether names must agree.
        """
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: part_of(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of the optimisers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            parts = {
                number: {name: part_of(value, weights[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network: each element of its module lists by itself, then the rest.

    Elements of module lists are the blocks of all networks here; a block is gathered as a whole while it computes.

    Args:
        network: The network; one that is sharded already stays as it is.
        mesh: The ranks.
    """
    if isinstance(network, FSDPModule):
        return
    containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterList)
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    for blocks in reversed(lists):  # inner ones first
        for block in blocks:
            if not isinstance(block, containers) and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # True for the root too: its weights may change before the next forward, when averages are swapped in.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def gather_weights(network: nn.Module) -> None:
    """Hold the whole weights on every rank until ``release_weights``, so that ranks may call the network unequally often.

    Evaluation does: one rank may draw a batch more than another. It needs the memory of the weights alone, without
    gradients and optimiser state.

    Args:
        network: The network; nothing happens to one that is not sharded.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def release_weights(network: nn.Module) -> None:
    """Keep this rank's part of the weights only, as in training.

    Args:
        network: The network; nothing happens to one that is not sharded.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def is_sharded(network: nn.Module) -> bool:
    """Say whether a network's weights are sharded over the ranks.

    Returns:
        Whether all ranks must call it together.
    """
    return isinstance(network, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor.

    Args:
        tensor: A tensor, sharded or not.

    Returns:
        A view: this rank's part, or the tensor itself.
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(whole: Any, like: Tensor | None) -> Any:
    """Shard a whole tensor as another one is; every rank has the whole, so nothing is sent.

    Args:
        whole: A tensor, or anything else, which is returned.
        like: Tensor of the same shape, sharded or not; or None.

    Returns:
        The tensor in the other one's layout, on its device; as it is where shapes differ, as for an optimiser's counters.
    """
    if not isinstance(whole, Tensor) or like is None or whole.shape != like.shape:
        return whole
    whole = whole.to(like.device)
    return (
        distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        if isinstance(like, DTensor)
        else whole
    )


def gathered(state: Any) -> Any:
    """Gather the sharded tensors of a nested state; every rank must call it.

    Args:
        state: Nested dicts, lists and tuples.

    Returns:
        The same with whole tensors on the CPU in the place of sharded ones on rank 0, empty ones on the other ranks, which
        write no file. Without sharded tensors, the state's own values.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0, device="cpu")
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state
