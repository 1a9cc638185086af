"""Accumulated batches, and those of several ranks, train as one large batch does, also where their terms are unequally many."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from generative import ranks
from generative.objectives import GammaRatio, MaskedTokenObjective
from generative.randomness import IndexRandomness, Randomness
from generative.types import Batch, Condition, LossOutput
from lightning_modules import TrainingModule

K, N, B = 5, 16, 8


class Table(nn.Module):
    """Guesses a token by its neighbour."""

    mask_token = K

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Embedding(K + 1, K)

    def forward(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
        return self.logits(tokens_BN.roll(1, dims=1))


class Guesser(TrainingModule):
    """Draws the masks by the index of an image, so that they do not depend on how the images are batched."""

    def __init__(self, objective: MaskedTokenObjective) -> None:
        torch.manual_seed(0)
        super().__init__(Table(), lambda parameters: torch.optim.SGD(parameters, lr=1.0), lambda step: 1.0, 1)
        self.objective = objective

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        randomness = IndexRandomness.for_images(3, "mask", batch.index)
        return self.objective(self.network, batch.encoded, None, Condition(), randomness)


def batch_of(rows: slice) -> Batch:
    tokens = torch.randint(K, (B, N), generator=torch.Generator().manual_seed(1))
    return Batch(torch.zeros(B, 1, 1, 1)[rows], torch.arange(B)[rows], encoded=tokens[rows])


def trained(objective: MaskedTokenObjective, size: int, accumulated: int) -> Tensor:
    """Weights after one step of batches of some size."""
    module = Guesser(objective)
    trainer = Trainer(
        max_steps=1, accumulate_grad_batches=accumulated, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    parts = [batch_of(slice(first, first + size)) for first in range(0, B, size)]
    trainer.fit(module, DataLoader(parts, batch_size=None))
    assert trainer.global_step == 1
    return module.network.logits.weight.detach()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_accumulated_batches_equal_one_large_batch(loss_on: str) -> None:
    objective = MaskedTokenObjective(GammaRatio(), loss_on)
    expected = trained(objective, B, 1)
    assert not torch.equal(expected, Table().logits.weight)
    torch.testing.assert_close(trained(objective, 4, 2), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained(objective, 2, 4), expected, rtol=1e-5, atol=1e-6)
    if loss_on == "masked":  # the epoch ends within the eight batches of a step
        torch.testing.assert_close(trained(objective, 2, 8), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_ranks_equal_one_large_batch(loss_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, one after the other; their sums meet in ``all_reduce``, whose result is known beforehand."""
    module = Guesser(MaskedTokenObjective(GammaRatio(), loss_on))
    parts = [batch_of(slice(0, 4)), batch_of(slice(4, 8))]

    def outcome(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = module.loss(batch, IndexRandomness([]))
        (gradient,) = torch.autograd.grad(output.loss, module.network.logits.weight)
        return gradient, output.logs | {"loss": output.loss.detach()}

    expected_gradient, expected_logs = outcome(batch_of(slice(0, 8)))
    draw = module.objective.mask
    counts = [draw(part.encoded, None, IndexRandomness.for_images(3, "mask", part.index)).sum() for part in parts]
    assert counts[0] != counts[1]
    fake = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        all_reduce=lambda value: value.copy_(sum(counts)),
    )
    monkeypatch.setattr(ranks, "dist", fake)
    gradients, logs = zip(*map(outcome, parts), strict=True)
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, expected_gradient, rtol=1e-5, atol=1e-7)
    for name, value in expected_logs.items():
        torch.testing.assert_close((logs[0][name] + logs[1][name]) / 2, value, rtol=1e-5, atol=1e-7)
