"""Weight decay: which parameters decay, by how much, at what rate, and that older runs keep their optimiser's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import tiny
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from launch.build import build_module
from launch.compose import compose_config
from launch.restorable import _optimizer_fault
from lightning_modules import GenerativeModule
from lightning_modules.composed import keep_settings

LOOKED_UP = ("embedding.weight", "positions", "labels.factors.0", "labels.factors.1", "labels.null")
RATE, DECAY = 0.01, 0.5


def module_of(experiment: str, *overrides: str) -> GenerativeModule:
    torch.manual_seed(0)
    settings = [f"optimizer.lr={RATE}", f"optimizer.weight_decay={DECAY}", "learning_rate.warmup_steps=3"]
    return build_module(compose_config([f"experiment={experiment}", *tiny(experiment), *settings, *overrides]))


def step(module: GenerativeModule, optimizers: dict[str, Any], seed: int | None = None) -> None:
    """Make a step with random gradients, or with none."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for parameter in module.trainable_parameters():
        zero = torch.zeros_like(parameter)
        parameter.grad = zero if generator is None else zero.normal_(generator=generator)
    optimizers["optimizer"].step()
    optimizers["lr_scheduler"]["scheduler"].step()


@pytest.mark.parametrize(
    "experiment", ["meanflow_dit", "ddpm_scenes", "ddpm_iclevr_large", "ddpm_iclevr_context_unet", "vqgan_scenes"]
)
def test_only_weights_of_layers_decay(experiment: str) -> None:
    """Without gradients AdamW multiplies what decays by 1 - rate * decay and leaves the rest (arXiv 1711.05101)."""
    module = module_of(experiment, "optimizer=adamw")
    optimizers = module.configure_optimizers()
    rate = optimizers["optimizer"].param_groups[0]["lr"]
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for parameter in before.values():
        parameter += 1
    module.load_state_dict(before, strict=False)
    step(module, optimizers)
    kept = set()
    for name, parameter in module.named_parameters():
        if torch.equal(parameter, before[name]):
            kept.add(name)
        else:
            torch.testing.assert_close(parameter, before[name] * (1 - rate * DECAY), msg=name)
            assert parameter.ndim >= 2, name
    assert kept, "norms and biases are kept"
    shapes = {name: p.ndim for name, p in module.named_parameters()}
    assert all(shapes[name] < 2 or name.endswith(LOOKED_UP) for name in kept)


def test_both_groups_follow_the_learning_rate() -> None:
    module = module_of("meanflow_dit", "optimizer=adamw")
    optimizers = module.configure_optimizers()
    for number in range(4):
        rates = {group["lr"] for group in optimizers["optimizer"].param_groups}
        assert rates == {RATE * module.learning_rate_factor(number)}
        step(module, optimizers, number)


def test_an_optimizer_of_one_group_is_taken_over() -> None:
    """A run from before the two groups: its next steps are those it would have made (weight decay was 0 by default)."""
    old, new = (
        module_of("meanflow_dit", "optimizer=adamw", "optimizer.weight_decay=0"),
        module_of("meanflow_dit", "optimizer=adamw", "optimizer.weight_decay=0"),
    )
    optimizer = old.optimizer_factory(old.trainable_parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, old.learning_rate_factor)
    single: dict[str, Any] = {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}
    step(old, single, 0)
    checkpoint = copy.deepcopy(
        {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()], "x": old.state_dict()}
    )
    new.load_state_dict(checkpoint["x"])
    assert _optimizer_fault(new, copy.deepcopy(checkpoint)) is None
    new.on_load_checkpoint(checkpoint)
    optimizers = new.configure_optimizers()
    optimizers["optimizer"].load_state_dict(checkpoint["optimizer_states"][0])
    optimizers["lr_scheduler"]["scheduler"].load_state_dict(checkpoint["lr_schedulers"][0])
    for number in (1, 2):
        step(old, single, number)
        step(new, optimizers, number)
    for name, parameter in old.named_parameters():
        assert torch.equal(parameter, new.get_parameter(name)), name
    unchanged = copy.deepcopy(checkpoint)
    new.on_load_checkpoint(checkpoint)
    assert checkpoint["optimizer_states"][0]["param_groups"] == unchanged["optimizer_states"][0]["param_groups"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_fused_optimiser_clips_under_bfloat16(optimizer: str) -> None:
    module = module_of("meanflow_dit", f"optimizer={optimizer}", "optimizer.fused=true")
    made = module.configure_optimizers()["optimizer"]
    assert made.param_groups[0]["fused"]
    parameters = list(module.network.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(made, 0.5)
    assert torch.nn.utils.get_total_norm([p.grad for p in parameters]) == pytest.approx(0.5)


def test_a_fused_optimiser_continues_what_another_began() -> None:
    plain, fused = ([nn.Parameter(torch.ones(3))] for _ in range(2))
    states = []
    for kind, parameters in (("foreach", plain), ("fused", fused)):
        optimizer = torch.optim.AdamW(parameters, **{kind: True})
        keep_settings(optimizer)
        if states:
            optimizer.load_state_dict(states[0])
        else:
            _one_step(optimizer, parameters)
            states.append(copy.deepcopy(optimizer.state_dict()))
            fused[0].data.copy_(parameters[0])
        assert optimizer.param_groups[0][kind]
        _one_step(optimizer, parameters)
    torch.testing.assert_close(plain[0], fused[0])


def _one_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.arange(1.0, 4.0)
    optimizer.step()
