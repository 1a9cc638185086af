"""Two real processes: what differs between ranks is found and named, what is in order passes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import on_two_ranks
from torch import nn

from callbacks.rank_agreement import RankAgreement, RankDisagreementError, digest
from generative.types import Batch

Fault = Callable[[int, nn.Module, SimpleNamespace, Batch], None]


def other_weights(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    with torch.no_grad():
        network[1].bias[3] += 1e-7 * rank


def other_buffer(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    network[2].running_mean[0] += rank


def other_gradient(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    network[1].weight.grad[2, 1] += 1e-6 * rank


def swapped_gradient(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    if rank:
        network[0].bias.grad = network[0].bias.grad.flip(0)


def missing_gradient(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    if rank:
        network[0].weight.grad = None


def unused_everywhere(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    network[0].weight.grad = None


def same_noise(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    module.draw_seed = 7


def same_images(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    batch.index = torch.arange(8)


def same_few_images(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None:
    batch.index = torch.zeros(8, dtype=torch.int64)  # a data set of one image


def nothing(rank: int, network: nn.Module, module: SimpleNamespace, batch: Batch) -> None: ...


CASES: dict[str, tuple[str, Fault, str | None]] = {
    "nothing": ("start", nothing, None),
    "other weights": ("start", other_weights, "network.1.bias"),
    "other buffer": ("start", other_buffer, "network.2.running_mean"),
    "other gradient": ("step", other_gradient, "first in network.1.weight"),
    "swapped gradient": ("step", swapped_gradient, "first in network.0.bias"),
    "missing gradient": ("step", missing_gradient, "first in network.0.weight"),
    "unused everywhere": ("step", unused_everywhere, None),
    "other gradient of several batches": ("accumulated", other_gradient, "first in network.1.weight"),
    "same noise": ("step", same_noise, "same noise at step 1"),
    "same images": ("step", same_images, "same images"),
    "same few images": ("step", same_few_images, None),
}


def fit(rank: int, fault: Fault, when: str) -> str | None:
    """Go through the hooks of five steps and return what the callback says."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    module: Any = SimpleNamespace(
        device=torch.device("cpu"),
        draw_seed=rank,
        state_dict=lambda: network.state_dict(prefix="network."),
        named_parameters=lambda: network.named_parameters("network"),
    )
    trainer: Any = SimpleNamespace(world_size=2, global_step=0)
    batch = Batch(torch.zeros(8, 1, 2, 2), torch.arange(8) + 8 * rank)
    agreement = RankAgreement(num_steps=3)
    try:
        if when == "start":
            fault(rank, network, module, batch)
        agreement.on_train_start(trainer, module)
        num_batches = 4 if when == "accumulated" else 1  # a step
        for index in range(5 * num_batches):
            step = trainer.global_step = index // num_batches
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter).cumsum(0) * (step + 1)
            if when != "start":
                fault(rank, network, module, batch)
            if (index + 1) % num_batches == 0:
                agreement.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
                trainer.global_step = step + 1
            agreement.on_train_batch_end(trainer, module, None, batch, index)
    except RankDisagreementError as error:
        return str(error)
    return None


def fit_all(rank: int) -> dict[str, str | None]:
    return {name: fit(rank, fault, when) for name, (when, fault, _) in CASES.items()}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    """What each rank said in each case."""
    return on_two_ranks(fit_all, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_ranks_are_compared(case: str, said: list[dict[str, str | None]]) -> None:
    expected = CASES[case][2]
    messages = [said[rank][case] for rank in range(2)]
    assert messages[0] == messages[1]  # both ranks stop, with one voice
    if expected is None:
        assert messages[0] is None
    else:
        assert messages[0] is not None
        assert expected in messages[0]


def test_one_rank_compares_nothing() -> None:
    agreement = RankAgreement()
    trainer: Any = SimpleNamespace(world_size=1, global_step=0)
    agreement.on_train_start(trainer, None)  # type: ignore[arg-type]
    agreement.on_before_optimizer_step(trainer, None, None)  # type: ignore[arg-type]
    agreement.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_digest_sees_every_bit_and_place(dtype: torch.dtype) -> None:
    tensor = (torch.arange(12).reshape(3, 4) % 5).to(dtype)
    changed = tensor.clone()
    changed[1, 2] = not changed[1, 2] if dtype == torch.bool else changed[1, 2] + 1
    assert not torch.equal(digest(tensor), digest(changed))
    if dtype != torch.bool:
        assert not torch.equal(digest(tensor), digest(tensor.flip(1)))
    assert torch.equal(digest(tensor), digest(tensor.T.contiguous().T))
