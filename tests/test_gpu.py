"""A GPU computes what the processor computes, and what is trained on it is resumed, evaluated and exported as anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import as_if_killed, assert_same_state, composed, read_json, resume_here, tiny, train_here
from round_trips import IN_THE_MIDDLE, checkpoint
from torch import Tensor

from generative.randomness import IndexRandomness
from launch import build
from launch.commands import evaluate, export
from launch.run_folder import RunFolder
from lightning_modules.compiled import CompiledTraining

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Each kind of network and objective once.
CASES = {
    "ddpm of convolutions": ["experiment=ddpm_scenes"],
    "ddpm that restores": ["experiment=ddpm_scenes", "task=restore"],
    "flow map": ["experiment=meanflow_dit"],
    "flow map, exact derivative": ["experiment=meanflow_dit", "objective.derivative=exact"],
    "flow matching, adamw": ["experiment=meanflow_dit", "objective=flow_matching", "sampler=heun", "optimizer=adamw"],
    "regression": ["experiment=regression_dit"],
    "exact answers": ["experiment=meanflow_dit", "data=gauss", "degradation=holes"],
    "tokens": ["experiment=maskgit_scenes"],
}


def trained(case: str, folder: Path, *overrides: str) -> RunFolder:
    if case == "tokens":
        train_here(folder / "vqgan_scenes" / "run", "experiment=vqgan_scenes", f"paths.outputs={folder}")
    here = ["trainer.accelerator=gpu", f"paths.outputs={folder}"]  # with all callbacks: they too must work there
    return train_here(folder / "run", *CASES[case], *IN_THE_MIDDLE, *here, *overrides)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_of_a_gpu_is_resumed_evaluated_and_exported(case: str, precision: str, tmp_path: Path) -> None:
    run = trained(case, tmp_path, f"trainer.precision={precision}")
    assert read_json(run.path / "run.json")["hardware"]["device"] == "cuda"
    as_if_killed(run.path, tmp_path / "resumed")
    again = RunFolder(tmp_path / "resumed")
    resume_here(again)
    whole, continued = checkpoint(run), checkpoint(again)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same_state(whole[part], continued[part], part)
    evaluate.main([f"run={run.path}", "name=again"])
    metrics = read_json(run.path / "metrics.json")["metrics"]
    assert read_json(run.path / "evaluations" / "again" / "metrics.json")["metrics"] == pytest.approx(metrics, rel=1e-4)
    export.main([f"run={run.path}", f"output={tmp_path / 'export'}"])


@pytest.mark.parametrize("case", CASES)
def test_a_processor_and_a_gpu_measure_the_same(case: str, tmp_path: Path) -> None:
    run = trained(case, tmp_path)
    here = read_json(run.path / "metrics.json")["metrics"]
    evaluate.main([f"run={run.path}", "name=cpu", "trainer.accelerator=cpu"])
    there = read_json(run.path / "evaluations" / "cpu" / "metrics.json")["metrics"]
    assert there.keys() == here.keys()
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=0.01, abs=1e-3), name


def gradient(folder: Path, case: str, device: str, autocast: bool = False, compiled: bool = False) -> Tensor:
    """Return the gradient of one step, with the draws of the processor."""
    experiment = CASES[case][0].partition("=")[2]
    tasks = [choice for choice in CASES[case] if choice.startswith("task=")]
    config = composed(folder, [*tiny(experiment, *tasks), *CASES[case]])
    torch.manual_seed(0)
    module, data = build.build_module(config), build.build_datamodule(config)
    for parameter in module.network.parameters():  # zeros would hide what is behind them
        torch.nn.init.normal_(parameter, std=0.05)
    module.measure(data)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    module, batch = module.to(device), batch.map(lambda tensor: tensor.to(device))
    randomness = IndexRandomness.for_images(0, "objective", torch.arange(len(batch.image)), device)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        if compiled:
            with CompiledTraining(module.network, module.trained_method).used():
                module.loss(batch, randomness).loss.backward()
        else:
            module.loss(batch, randomness).loss.backward()
    parts = [p.grad.flatten().cpu() for p in module.network.parameters() if p.grad is not None]
    return torch.cat(parts).double()


@pytest.mark.parametrize("case", [case for case in CASES if case != "tokens"])
def test_a_gradient_is_that_of_the_processor(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        right = gradient(tmp_path / "cpu", case, "cpu")
        for name, tolerance, how in (
            ("plain", 1e-4, {}),
            ("compiled", 1e-3, {"compiled": True}),
            ("bfloat16", 0.1, {"autocast": True}),
        ):
            found = gradient(tmp_path / name, case, "cuda", **how)
            assert torch.linalg.norm(found - right) <= tolerance * torch.linalg.norm(right), name
    finally:
        torch.set_float32_matmul_precision(before)
