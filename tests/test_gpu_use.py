"""What was trained on a GPU is used on it: latents, guidance without training, exports, photographs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import read_json, train_here
from PIL import Image

from launch.commands import evaluate, export, generate
from launch.run_folder import RunFolder

ACCELERATOR = "gpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ACCELERATOR == "gpu" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def trained(folder: Path, experiment: str, *overrides: str) -> RunFolder:
    here = [f"experiment={experiment}", f"trainer.accelerator={ACCELERATOR}", f"paths.outputs={folder}"]
    return train_here(folder / experiment / "run", *here, *overrides)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_an_export_restores_the_same_pictures_on_both(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, "meanflow_scenes", "task=restore", "degradation=noise_sigma")
    export.main([f"run={run.path}", f"output={tmp_path / 'export'}"])
    made = []
    for name in ("there", "here"):
        if name == "here":
            monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        target = tmp_path / name
        generate.main([f"run={tmp_path / 'export'}", f"input={pictures}", f"output={target}", "degrade=true"])
        made.append(np.stack([np.asarray(Image.open(file)) for file in sorted(target.glob("*.png"))]).astype(float))
    assert len(made[0]) == 3
    assert np.abs(made[0] - made[1]).mean() < 1  # of 255 levels, with the convolutions of each


def test_a_generator_restores_by_guidance(tmp_path: Path) -> None:
    run = trained(tmp_path, "ddpm_scenes", "data=gauss", "callbacks.label_accuracy=null", "callbacks.generation=null")
    fewer = ["callbacks.calibration.num_images=2", "callbacks.calibration.num_samples=2"]
    command = [
        "task=inpaint",
        "guidance=mmps",
        "degradation=holes",
        "callbacks.restoration_distances=null",
        "name=mmps",
    ]
    evaluate.main([f"run={run.path}", *command, "sampler.num_steps=3", *fewer])
    metrics = read_json(run.path / "evaluations" / "mmps" / "metrics.json")["metrics"]
    assert math.isfinite(metrics["psnr_hole/sample"])
    assert math.isfinite(metrics["posterior_bias/sample"])


def test_latents_are_learnt_and_decoded(tmp_path: Path) -> None:
    trained(tmp_path, "autoencoder_scenes", "callbacks.image_grid=null")
    run = trained(tmp_path, "ddpm_scenes", "task=restore", "space=auto")
    assert math.isfinite(read_json(run.path / "metrics.json")["metrics"]["psnr/sample"])


def test_photographs_are_measured_whole(pictures: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, "denoise_photos", f"data.root={pictures}", "data.num_train=null")
    evaluate.main([f"run={run.path}", f"pictures={pictures}", "name=set"])
    metrics = read_json(run.path / "evaluations" / "set" / "pictures.json")["metrics"]
    assert math.isfinite(metrics["psnr/mean"])
