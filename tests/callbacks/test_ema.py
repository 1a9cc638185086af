"""EMA: closed form, warm-up, swap."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from callbacks.ema import EMA


def module_with(value: float) -> SimpleNamespace:
    network = nn.Linear(1, 1, bias=False)
    network.register_buffer("count", torch.tensor(3))
    nn.init.constant_(network.weight, value)
    return SimpleNamespace(network=network)


def step(ema: EMA, module: SimpleNamespace, number: int, value: float) -> None:
    nn.init.constant_(module.network.weight, value)
    module.network.weight.grad = torch.zeros_like(module.network.weight)
    ema.on_train_batch_end(SimpleNamespace(global_step=number), module, None, None, 0)


def test_closed_form_with_warm_up() -> None:
    ema, module = EMA(0.5), module_with(1.0)
    ema.on_fit_start(SimpleNamespace(global_step=0), module)
    expected, values = 1.0, [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]
    for n, value in enumerate(values):
        step(ema, module, n + 1, value)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert set(ema.average) == {"weight"}


def test_accumulated_batches_do_not_update() -> None:
    ema, module = EMA(0.9), module_with(1.0)
    ema.on_fit_start(SimpleNamespace(global_step=0), module)
    step(ema, module, 0, 5.0)
    assert ema.num_updates == 0
    step(ema, module, 1, 5.0)
    step(ema, module, 1, 7.0)
    assert ema.num_updates == 1


def test_a_step_without_gradients_is_no_update() -> None:
    ema, module = EMA(0.9), module_with(1.0)
    ema.on_fit_start(SimpleNamespace(global_step=0), module)
    ema.on_train_batch_end(SimpleNamespace(global_step=1), module, None, None, 0)
    assert ema.num_updates == 0


def test_swap_and_back_also_after_an_exception() -> None:
    ema, module = EMA(0.9), module_with(1.0)
    ema.on_fit_start(SimpleNamespace(global_step=0), module)
    ema.on_validation_start(None, module)
    assert module.network.weight.item() == 1.0  # before the first update nothing is swapped
    ema.on_validation_end(None, module)
    step(ema, module, 1, 11.0)
    average = ema.average["weight"].item()
    with ema.swapped(module), ema.swapped(module):
        assert module.network.weight.item() == average
        with pytest.raises(RuntimeError, match="swapped"):
            ema.state_dict()
    assert module.network.weight.item() == 11.0
    ema.on_validation_start(None, module)
    ema.on_exception(None, module, RuntimeError())
    assert module.network.weight.item() == 11.0
    assert ema.average["weight"].item() == average


def test_state_round_trip() -> None:
    ema, module = EMA(0.9), module_with(1.0)
    ema.on_fit_start(SimpleNamespace(global_step=0), module)
    step(ema, module, 1, 2.0)
    other = EMA(0.9)
    other.load_state_dict(ema.state_dict())
    other.on_fit_start(SimpleNamespace(global_step=1), module)
    assert other.num_updates == 1
    assert torch.equal(other.average["weight"], ema.average["weight"])


def test_bad_decay_names_the_key() -> None:
    with pytest.raises(ValueError, match="callbacks.ema.decay"):
        EMA(1.0)
