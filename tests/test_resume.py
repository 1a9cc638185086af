"""A run that is killed and resumed equals the uninterrupted run to the last bit, on one rank and on two."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import assert_same_state, finished, read_json, script, tiny, train_here

STEPS = 60


def arguments(experiment: str, steps: int) -> list[str]:
    return [
        f"experiment={experiment}", *tiny(experiment), f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps // 4}", f"callbacks.checkpoint.every_n_steps={steps // 6}",
        "callbacks.image_grid.every_n_steps=1000",
    ]  # fmt: skip


RUN = arguments("meanflow_dit", STEPS)


def kill_after_checkpoint(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Send SIGKILL to the whole process group as soon as a checkpoint of the step or later is there."""
    path, deadline = folder / "checkpoints" / "last.ckpt", time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if path.exists() and torch.load(path, weights_only=True)["global_step"] >= step:
            time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.005)
    raise AssertionError("no checkpoint appeared")


def scalars(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("throughput")} for row in csv.DictReader(file)]


def assert_same_run(a: Path, b: Path) -> None:
    left, right = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (a, b))
    assert left["global_step"] == right["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same_state(left[part], right[part], part)
    assert_same_state(left["callbacks"]["EMA"], right["callbacks"]["EMA"], "EMA")
    assert read_json(a / "metrics.json")["metrics"] == read_json(b / "metrics.json")["metrics"]
    keep = [r for r in scalars(a) if any(v for k, v in r.items() if k != "step")]
    assert keep == [r for r in scalars(b) if any(v for k, v in r.items() if k != "step")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "trainer", "steps"),
    [
        ("meanflow_dit", "cpu", STEPS),
        ("meanflow_dit", "ddp_cpu", STEPS),
        ("vqgan_scenes", "ddp_cpu", 18),  # codes restart and the discriminator begins on the way
        ("maskgit_scenes", "cpu", 30),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(experiment: str, trainer: str, steps: int, tmp_path: Path) -> None:
    common = [*arguments(experiment, steps), f"trainer={trainer}", f"paths.outputs={tmp_path}"]
    if trainer == "ddp_cpu":
        common.remove("trainer.accelerator=cpu")
    if experiment == "vqgan_scenes":
        common += ["objective.adversarial_start=5", "data.num_train=64"]
    if experiment == "maskgit_scenes":
        train_here(tmp_path / "vqgan_scenes" / "run", "experiment=vqgan_scenes", f"paths.outputs={tmp_path}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(script("train.py", *common, f"hydra.run.dir={whole}"))
    kill_after_checkpoint(script("train.py", *common, f"hydra.run.dir={killed}"), killed, steps // 3)
    assert not read_json(killed / "run.json")["finished"]
    finished(script("train.py", *common, f"hydra.run.dir={killed}", "resume=auto"))
    assert read_json(killed / "run.json")["resumed_at_steps"]
    assert_same_run(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_cleanly(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = script("train.py", *RUN, "trainer.max_steps=100000", f"hydra.run.dir={folder}")
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    output = finished(process, code=128 + number, timeout=60)
    assert "saved" in output
    step = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert f"at step {step}" in output
    assert not list((folder / "checkpoints").glob(".*"))
    finished(script("train.py", f"resume={folder}", f"trainer.max_steps={step + 3}"))
    assert read_json(folder / "run.json")["step"] == step + 3
