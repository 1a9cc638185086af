"""A diverged run stops before the EMA and the checkpoint take it in, and says where it can continue."""

from __future__ import annotations

import math
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import FakeRestorer
from helpers import assert_same_state
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from callbacks import EMA, LastCheckpoint, NonFiniteGuard, NonFiniteLossError, SpikeError, SpikeGuard
from callbacks.checkpoint import AtomicCheckpointIO
from callbacks.guards import good_checkpoint
from generative.types import Batch
from launch.errors import exit_code


def test_the_message_names_the_step_and_the_last_good_checkpoint(restorer, data, make_trainer, tmp_path) -> None:
    restorer.loss_at_step = {7: math.nan}
    ema = EMA()
    trainer = make_trainer(NonFiniteGuard(), ema, LastCheckpoint(every_n_steps=3))
    with pytest.raises(
        NonFiniteLossError, match=r"step 7 because the loss is nan; the last good checkpoint is"
    ) as error:
        trainer.fit(restorer, data)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert str(path) in str(error.value)
    assert torch.load(path, weights_only=True)["global_step"] == 6
    assert ema.num_updates == 7
    assert all(average.isfinite().all() for average in ema.average.values())


def test_a_bad_checkpoint_is_never_the_one_to_go_on_from(restorer, data, make_trainer, tmp_path) -> None:
    """As one of another program, or of a version without guards, may be."""
    restorer.loss_at_step = {4: math.nan}
    trainer = make_trainer(NonFiniteGuard(), LastCheckpoint(2), plugins=[AtomicCheckpointIO()], max_steps=4)
    trainer.fit(restorer, data)
    last, previous = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    bad = torch.load(last, weights_only=True)
    next(iter(bad["state_dict"].values())).fill_(math.nan)
    torch.save(bad, last)
    assert f"the last good checkpoint is {previous} of step 2 (resume= passes over {last}" in good_checkpoint(trainer)
    shutil.copy(last, previous)
    assert "no good checkpoint is there" in good_checkpoint(trainer)


def test_without_a_checkpoint_the_message_says_so(restorer, data, make_trainer) -> None:
    restorer.loss_at_step = {0: math.inf}
    with pytest.raises(NonFiniteLossError, match="step 0 because the loss is inf; no checkpoint had been written"):
        make_trainer(NonFiniteGuard()).fit(restorer, data)


def test_bad_weights_never_replace_a_good_checkpoint(restorer, data, make_trainer, tmp_path) -> None:
    guard = NonFiniteGuard()
    trainer = make_trainer(guard, LastCheckpoint(every_n_steps=5), max_steps=5, val_check_interval=None)
    trainer.fit(restorer, data)
    path = tmp_path / "checkpoints" / "last.ckpt"
    before = path.read_bytes()
    with torch.no_grad():
        restorer.network.weight.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"the weight network\.weight is not finite"):
        trainer.save_checkpoint(path)
    assert path.read_bytes() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_first_bad_step_is_noted_and_read_later(make_trainer, restorer) -> None:
    guard, trainer = NonFiniteGuard(every_n_steps=1000), make_trainer()
    losses = [1.0, 2.0, math.nan, 1.0, math.inf]
    for step, loss in enumerate(losses):
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
        guard.on_before_backward(trainer, restorer, torch.tensor(loss, device="cuda"))
    with pytest.raises(NonFiniteLossError, match="step 2 because the loss is not finite"):
        guard.on_save_checkpoint(trainer, restorer, {"state_dict": {}})


class Noisy(FakeRestorer):
    """Losses that vary a little around a level, and a spike where a step is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(4, 1)
        self.seen: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.global_step)
        x = torch.randn(16, 4, generator=generator)
        loss = (self.network(x) - x.sum(1, keepdim=True) - torch.randn(16, 1, generator=generator)).square().mean()
        self.seen.append(self.global_step)
        return loss * self.loss_at_step.get(self.global_step, 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class LeaveOut(Callback):
    """What the guard is compared with: the step has no gradient from the first."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step in self.steps:
            optimizer.zero_grad()


def fitted(make_trainer, data, *callbacks: Callback, spikes: dict[int, float] | None = None, **options) -> tuple:
    module, ema = Noisy(), EMA(0.9)
    module.loss_at_step = spikes or {}
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(*callbacks, ema, LastCheckpoint(), max_steps=30, val_check_interval=None, **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module.state_dict(), ema.state_dict(), trainer.optimizers[0].state_dict()


def test_a_spike_leaves_weights_moments_and_average_alone(make_trainer, data) -> None:
    guard = SpikeGuard(window=10)
    with pytest.warns(
        UserWarning, match=r"step 17 is left out: the loss is .* where the median of the last 10 steps is"
    ):
        guarded = fitted(make_trainer, data, guard, spikes={17: 1e4, 23: 1e4}, gradient_clip_val=1.0)
    assert guard.num_skipped == 2
    assert_same_state(guarded, fitted(make_trainer, data, LeaveOut(17, 23), gradient_clip_val=1.0))
    assert guarded[1]["num_updates"] == 28
    unguarded = fitted(make_trainer, data, spikes={17: 1e4, 23: 1e4}, gradient_clip_val=1.0)
    assert not torch.equal(unguarded[0]["network.weight"], guarded[0]["network.weight"])


def test_a_gradient_spike_without_a_loss_spike_is_caught(make_trainer, data) -> None:
    class Steep(Noisy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss + 1e4 * (loss - loss.detach()) if self.global_step == 15 else loss

    guard = SpikeGuard(action="stop", window=10)
    with pytest.raises(SpikeError, match=r"step 15 because the gradient norm is .* no checkpoint had been written"):
        make_trainer(guard, max_steps=30).fit(Steep(), data)
    assert exit_code(SpikeError()) == 3


def test_a_new_level_is_taken_after_a_while(make_trainer, data) -> None:
    guard = SpikeGuard(window=10, patience=3)
    fitted(make_trainer, data, guard, spikes=dict.fromkeys(range(15, 100), 1e4))
    assert guard.num_skipped == 3


def test_no_step_is_judged_before_the_window_is_full(make_trainer, data) -> None:
    guard = SpikeGuard(window=10)
    fitted(make_trainer, data, guard, spikes={0: 1e4, 5: 1e6, 9: 1e5})
    assert guard.num_skipped == 0


def test_accumulated_batches_are_one_step(make_trainer, data) -> None:
    guard = SpikeGuard(window=5)
    make_trainer(guard, max_steps=10, accumulate_grad_batches=2, val_check_interval=None).fit(Noisy(), data)
    assert len(guard.state_dict()["levels"]["loss"]) == 5
    assert guard.num_skipped == 0


def test_a_resumed_run_decides_alike(make_trainer, data, tmp_path) -> None:
    spikes = {17: 1e4, 18: 1e4, 19: 1e4, 20: 1e4, 21: 1e4}
    whole = SpikeGuard(window=10, patience=3)
    expected = fitted(make_trainer, data, whole, spikes=spikes)
    module, ema, first = Noisy(), EMA(0.9), SpikeGuard(window=10, patience=3)
    module.loss_at_step = spikes
    make_trainer(first, ema, LastCheckpoint(), max_steps=19, val_check_interval=None).fit(module, data)
    second = SpikeGuard(window=10, patience=3)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert_same_state(fitted(make_trainer, data, second, spikes=spikes, ckpt_path=path), expected)
    assert second.state_dict() == whole.state_dict()
    assert second.num_skipped == 3


def test_a_gradient_that_is_not_finite_stops_before_the_average_sees_it(make_trainer, data) -> None:
    class Broken(Noisy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss + (loss - loss.detach()).sqrt() if self.global_step == 4 else loss

    module, ema = Broken(), EMA(0.9)
    with pytest.raises(NonFiniteLossError, match="step 4 because the gradient norm is"):
        make_trainer(NonFiniteGuard(), SpikeGuard(), ema, max_steps=10).fit(module, data)
    assert ema.num_updates == 4
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("arguments", [{"action": "warn"}, {"factor": 0}, {"window": 0}, {"patience": 0}])
def test_bad_settings_name_the_key(arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"callbacks.spikes.{next(iter(arguments))}"):
        SpikeGuard(**arguments)


def test_two_ranks_decide_alike() -> None:
    """Two guards that see each other only through the strategy's mean, as two processes do."""
    values, barrier = {}, threading.Barrier(2)
    skipped: dict[int, list[bool]] = {0: [], 1: []}

    def rank_runs(rank: int) -> None:
        def mean(tensor: Tensor, reduce_op: str) -> Tensor:
            values[rank] = tensor
            barrier.wait()
            result = (values[0] + values[1]) / 2
            barrier.wait()
            return result

        trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=mean), precision_plugin=None)
        guard, weight = SpikeGuard(window=3), nn.Parameter(torch.zeros(3))
        for step in range(8):
            trainer.global_step, weight.grad = step, torch.ones(3)
            guard.on_before_backward(trainer, None, torch.tensor(1e5 if step == 5 and rank == 1 else 1.0 + 0.01 * step))
            guard.on_before_optimizer_step(trainer, None, torch.optim.SGD([weight]))
            skipped[rank].append(weight.grad is None)

    ranks = [threading.Thread(target=rank_runs, args=(rank,)) for rank in (0, 1)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert skipped[0] == skipped[1] == [step == 5 for step in range(8)]


def test_accumulated_batches_are_judged_as_the_module_weighs_them() -> None:
    """The first of them may have few terms: the sums relative to it are large, and what is stepped with is not."""
    trainer, guard, skipped = SimpleNamespace(world_size=1, precision_plugin=None), SpikeGuard(window=3), []
    for step in range(8):
        scale = 1e4 if step == 5 else 1.0
        module, weight = SimpleNamespace(accumulated_factor=1 / scale), nn.Parameter(torch.zeros(3))
        trainer.global_step, weight.grad = step, scale * torch.ones(3)
        guard.on_before_backward(trainer, module, torch.tensor(scale))
        guard.on_before_optimizer_step(trainer, module, torch.optim.SGD([weight]))
        skipped.append(weight.grad is None)
    assert not any(skipped)
