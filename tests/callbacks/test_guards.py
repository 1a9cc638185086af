"""A diverged run stops before the EMA and the checkpoint take it in, and says where it can go on."""

from __future__ import annotations

import math

import pytest
import torch

from callbacks import EMA, LastCheckpoint, NonFiniteGuard, NonFiniteLossError


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
