"""Every experiment composes, builds, runs two steps, and leaves the run folder that the README describes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from helpers import TINY, read_json, train_here
from PIL import Image

from launch.compose import compose_config, experiments, groups


@pytest.mark.parametrize("name", experiments())
def test_experiment_runs_two_steps(name: str, tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", f"experiment={name}")
    metrics = read_json(run.path / "metrics.json")["metrics"]
    outputs = {"mean"} if name.startswith("regression") else {"sample", "mean"}
    assert {f"psnr/{o}" for o in outputs | {"degraded"}} <= metrics.keys()
    assert {f"ssim/{o}" for o in outputs} <= metrics.keys()
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["config"]["network"]["dim"] == 32
    assert list(run.path.glob("images/*/step=*.png"))
    for image in run.path.glob("images/*/*.png"):
        assert len(set(Image.open(image).convert("L").getdata())) > 8
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("train/loss") for row in rows)
    assert any(row.get("val/psnr/mean") for row in rows)
    record = run.record
    assert record["finished"]
    assert {"seed", "versions", "git_revision", "config_hash", "hardware", "data"} <= record.keys()


@pytest.mark.parametrize(
    "override",
    [f"{group}={option}" for group in ("objective", "sampler", "network", "degradation", "data") for option in groups()[group]],
)  # fmt: skip
def test_every_option_composes(override: str) -> None:
    config = compose_config(["experiment=meanflow_dit", override])
    group = override.partition("=")[0]
    assert "_target_" in config[group]


@pytest.mark.parametrize(
    "override",
    [
        "objective=alpha_flow",
        "objective=mean_flow",
        "objective=flow_matching",
        "sampler=heun",
        "trainer.precision=bf16-mixed",
    ],
)
def test_objectives_and_samplers_are_exchangeable(override: str, tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", "experiment=meanflow_dit", override, "module.output=velocity")
    assert run.record["finished"]


def test_weights_do_not_depend_on_global_randomness(tmp_path: Path) -> None:
    from launch.build import build_module

    config = compose_config(["experiment=meanflow_dit", *TINY])
    torch.manual_seed(1)
    a = build_module(config).state_dict()
    torch.manual_seed(2)
    b = build_module(config).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_offline_wandb_run_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train_here(tmp_path / "run", "experiment=meanflow_dit", "logger=wandb", "logger.offline=true")
    assert run.record["finished"]
    assert list(run.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert list(run.path.glob("wandb/offline-run-*/files/media/images/images/*.png"))


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", "experiment=meanflow_dit", "logger=tensorboard")
    assert list(run.path.glob("tensorboard/**/events.out.tfevents.*"))
