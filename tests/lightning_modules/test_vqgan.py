"""The tokenizer in training: what its optimiser moves, what it hands to the callbacks, how it is loaded again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import SMALL_RUN, read_json, train_here

from generative.networks.tokenizer import load_tokenizer
from launch.build import build_datamodule, build_module
from launch.compose import compose_config
from launch.run_folder import RunFolder
from launch.trained_parts import trained_tokenizer

OVERRIDES = ["experiment=vqgan_scenes", *SMALL_RUN]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("outputs")
    return train_here(folder / "vqgan_scenes" / "run", "experiment=vqgan_scenes", "objective.adversarial_start=1")


def test_the_optimizer_moves_both_players() -> None:
    module = build_module(compose_config(OVERRIDES))
    moved = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert moved == {id(p) for p in module.parameters()}
    assert any(name.startswith("discriminator.") for name in module.state_dict())


def test_metrics_and_images_are_kept(run: RunFolder) -> None:
    metrics = read_json(run.path / "metrics.json")["metrics"]
    assert {"psnr/reconstruction", "codebook_usage/codes", "codebook_perplexity/codes"} <= metrics.keys()
    assert 1 / 256 <= metrics["codebook_usage/codes"] <= 1
    assert list(run.path.glob("images/reconstruction/step=*.png"))
    text = (run.path / "metrics.csv").read_text()
    assert "train/discriminator" in text
    assert "val/codebook_usage/codes" in text


def test_tokenizer_loads_as_it_was_evaluated(run: RunFolder) -> None:
    tokenizer = load_tokenizer(run.checkpoint)
    assert (tokenizer.num_codes, tokenizer.grid_size, tokenizer.dilation) == (256, 8, 0)
    data = build_datamodule(compose_config(OVERRIDES))
    image = data.batch("test", range(10)).image
    error = (tokenizer.decode(tokenizer.encode(image)) - image).square().flatten(1).mean(1)
    psnr = (10 * torch.log10(4 / error)).mean().item()
    assert psnr == pytest.approx(read_json(run.path / "metrics.json")["metrics"]["psnr/reconstruction"], abs=1e-3)
    assert load_tokenizer(run.checkpoint).hash == tokenizer.hash
    assert not any(p.requires_grad for p in tokenizer.network.parameters())


def test_loading_leaves_the_global_randomness_alone(run: RunFolder) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_tokenizer(run.checkpoint)
    assert torch.equal(torch.rand(3), expected)


def test_auto_finds_the_tokenizer_of_the_same_data(run: RunFolder) -> None:
    outputs = str(run.path.parent.parent)
    assert trained_tokenizer("auto", outputs, "scenes", 32) == str(run.checkpoint)
    assert trained_tokenizer("auto", outputs, "scenes", 64) is None
    assert trained_tokenizer(str(run.path), outputs, "cats", 64) == str(run.checkpoint)


@pytest.mark.parametrize("name", ["a", "z"])
def test_auto_takes_the_newer_of_two_that_ended_within_a_second(run: RunFolder, tmp_path: Path, name: str) -> None:
    older, newer = (RunFolder(Path(shutil.copytree(run.path, tmp_path / each))) for each in ("m", name))
    for age, each in ((60, older), (0, newer)):
        saved = run.checkpoint.stat().st_mtime - age
        os.utime(each.checkpoint, (saved, saved))
    assert trained_tokenizer("auto", str(tmp_path), "scenes", 32) == str(newer.checkpoint)


def test_what_is_no_tokenizer_is_refused(run: RunFolder, tmp_path: Path) -> None:
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    cases = {"text": b"no checkpoint"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    del checkpoint["state_dict"]["network.encoder.0.weight"]
    del checkpoint["callbacks"]["EMA"]["average"]["encoder.0.weight"]
    torch.save(checkpoint, tmp_path / "incomplete")
    checkpoint["config"]["network"]["_target_"] = "os.system"  # a config must not choose what is run
    torch.save(checkpoint, tmp_path / "hostile")
    for name in (*cases, "incomplete", "hostile"):
        with pytest.raises(ValueError, match=f"{name} is no tokenizer"):
            load_tokenizer(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(tmp_path / "nothing")


def test_kl_autoencoder_trains_and_is_no_tokenizer(tmp_path: Path) -> None:
    run = train_here(tmp_path / "autoencoder_scenes" / "run", "experiment=autoencoder_scenes")
    metrics = read_json(run.path / "metrics.json")["metrics"]
    assert "psnr/reconstruction" in metrics
    assert not any(name.startswith("codebook") for name in metrics)
    assert trained_tokenizer("auto", str(tmp_path), "scenes", 32) is None
    with pytest.raises(ValueError, match="is no tokenizer|without codes"):
        load_tokenizer(run.checkpoint)
