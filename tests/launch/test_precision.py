"""``trainer.precision=auto``: the rule, on machines of other kinds than this one, and what a run keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from launch.build import build_trainer
from launch.compose import compose_config
from launch.precision import decided, settle_precision
from launch.run_folder import RunFolder
from launch.start import resumed_config

AUTO = "trainer.precision=auto"
CONVOLUTIONS = [
    "experiment=ddpm_cifar10",
    "experiment=ddpm_iclevr_context_unet",
    "experiment=vqgan_scenes",
    "experiment=label_classifier",
]
TRANSFORMERS = ["experiment=meanflow_dit", "experiment=maskgit_scenes"]


def _machine(monkeypatch: pytest.MonkeyPatch, *has: str) -> None:
    """Stand in for a machine with some of: amx, avx512_bf16, gpu, bf16_gpu."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in has)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512_bf16" in has)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool({"gpu", "bf16_gpu"} & set(has)))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: "bf16_gpu" in has or including_emulation
    )


def _config(*overrides: str) -> DictConfig:
    return compose_config([*overrides, AUTO])


@pytest.mark.parametrize(
    ("has", "overrides", "precision"),
    [
        *((("amx",), [each], "bf16-mixed") for each in CONVOLUTIONS),
        *((("amx", "avx512_bf16"), [each], "32-true") for each in TRANSFORMERS),
        (("avx512_bf16",), CONVOLUTIONS[:1], "bf16-mixed"),
        ((), CONVOLUTIONS[:1], "32-true"),
        (("gpu", "amx"), CONVOLUTIONS[:1], "32-true"),
        (("bf16_gpu",), TRANSFORMERS[:1], "bf16-mixed"),
        (("bf16_gpu",), [TRANSFORMERS[0], "trainer=cpu"], "32-true"),
        (("bf16_gpu", "amx"), [CONVOLUTIONS[0], "trainer=cpu"], "bf16-mixed"),
    ],
)
def test_the_rule(has: tuple[str, ...], overrides: list[str], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, *has)
    assert decided(_config(*overrides))[0] == precision


def test_the_decision_is_told_and_stands_in_the_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _machine(monkeypatch, "amx")
    config = _config("experiment=ddpm_cifar10", "trainer=cpu")
    assert build_trainer(config, tmp_path, [], False).precision == "bf16-mixed"
    assert config.trainer.precision == "bf16-mixed"
    assert "trainer.precision=auto: bf16-mixed: the processor" in capsys.readouterr().out
    settle_precision(config)
    assert not capsys.readouterr().out


def test_a_resume_on_another_machine_keeps_the_decision_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = ["experiment=ddpm_cifar10", "compile=false", AUTO]
    _machine(monkeypatch, "amx")
    config = _config(*overrides)
    settle_precision(config)
    run = RunFolder(tmp_path)
    run.write_config(config, overrides)
    capsys.readouterr()
    assert resumed_config(run, overrides)[0].trainer.precision == "bf16-mixed"
    assert not capsys.readouterr().out
    _machine(monkeypatch)
    assert resumed_config(run, overrides)[0].trainer.precision == "bf16-mixed"
    told = capsys.readouterr().out
    assert told.startswith("trainer.precision=auto: bf16-mixed, as when the run began; on this machine 32-true")
    changed = resumed_config(run, ["trainer.precision=32-true"])[0]
    assert changed.trainer.precision == "32-true"
    assert not capsys.readouterr().out
