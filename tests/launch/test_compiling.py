"""``compile=auto``: the rule, and what a run keeps of it; nothing is compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import resume_here, train_here
from omegaconf import OmegaConf

from launch import compiling
from launch.compiling import MIN_CALLS, decided, settle_compile
from launch.compose import compose_config
from launch.errors import UserError
from launch.start import resumed_config

LONG = [f"trainer.max_steps={MIN_CALLS}", "trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Stand in for a machine with a compiler; the devices that one was looked for."""
    devices: list[torch.device] = []
    monkeypatch.setattr(compiling, "try_compiler", lambda device, cache_dir: devices.append(device))
    return devices


@pytest.mark.parametrize(
    ("overrides", "compiles", "words"),
    [
        (["experiment=meanflow_dit", *LONG], True, f"{MIN_CALLS:,} steps of DiT earn"),
        (["experiment=maskgit_scenes", *LONG], True, "TokenTransformer"),
        (["experiment=ddpm_scenes", *LONG], False, "UNet trains no faster compiled"),
        (["experiment=label_classifier", *LONG], False, "LabelClassifier trains no faster"),
        (["experiment=vqgan_scenes", *LONG], False, "Autoencoder"),
        (["experiment=meanflow_dit", *LONG, f"trainer.max_steps={MIN_CALLS - 1}"], False, "too few"),
        (
            ["experiment=meanflow_dit", *LONG, "trainer.max_steps=800", "trainer.accumulate_grad_batches=2"],
            True,
            "1,600",
        ),
        (["experiment=meanflow_dit", *LONG, "+trainer.fast_dev_run=true"], False, "1 step: too few"),
        (["experiment=meanflow_dit", *LONG, "trainer=fsdp"], False, "gathers weights"),
        (["experiment=meanflow_dit", *LONG, "trainer.accelerator=gpu"], False, "processors only"),
    ],
)
def test_the_rule(overrides: list[str], compiles: bool, words: str, tried: list[torch.device]) -> None:
    found, why = decided(compose_config(overrides))
    assert found is compiles
    assert words in why
    assert len(tried) == compiles  # looking for a compiler takes seconds: only where all else is well


def no_compiler(device: torch.device, cache_dir: str | None) -> None:
    raise ValueError("there is no working compiler")


def test_without_a_compiler_the_training_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "try_compiler", no_compiler)
    config = compose_config(["experiment=meanflow_dit", *LONG])
    assert decided(config) == (False, "there is no working compiler")
    config.compile = True
    with pytest.raises(UserError, match="compile=true: there is no working compiler, or set compile=false"):
        settle_compile(config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ("compile=auto data=image_folder data.channels=1", "data=image_folder needs images: set data.root=FOLDER"),
        (
            "compile=true data=image_folder data.channels=1 data.root={}/nowhere",
            "nowhere does not exist: set data.root",
        ),
        ("compile=auto data=image_folder data.channels=1 data.root={}", "holds no image file: set data.root"),
        ("compile=true network.patch_size=5", "patch_size"),
        ("compile=auto module.task=inpaint", "task=inpaint fills holes"),
        ("compile=auto init.run={}/nowhere", "there is no such run"),
    ],
)
def test_all_else_is_checked_before_a_compiler_is_looked_for(
    faults: str, words: str, tmp_path: Path, tried: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "MIN_CALLS", 1)
    with pytest.raises(UserError, match=words):
        train_here(tmp_path / "run", "experiment=meanflow_dit", *faults.format(tmp_path / "run").split())
    assert not tried


def test_a_run_records_the_decision_and_a_resume_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where more or fewer steps would now decide otherwise; only who asks again gets another one, told each time."""
    monkeypatch.setattr(compiling, "MIN_CALLS", 2)
    monkeypatch.setattr(torch, "compile", lambda plain: plain)
    run = train_here(tmp_path, "experiment=meanflow_dit", "callbacks.calibration=null")
    assert "compile=auto: true: 2 steps of DiT" in (told := capsys.readouterr().out)
    assert "the network was compiled in" in told
    recorded = run.load_checkpoint()
    for config in (run.config(), OmegaConf.create(recorded["config"]), OmegaConf.create(recorded["run"]["config"])):
        assert (config.compile, config.module.compile) == (True, True)
    assert resumed_config(run, ["trainer.max_steps=3"])[0].module.compile is True
    monkeypatch.setattr(compiling, "try_compiler", no_compiler)
    resume_here(run, "trainer.max_steps=4", "compile=auto")
    assert "compile=auto: false: there is no working compiler" in (told := capsys.readouterr().out)
    assert "compiled in" not in told
    assert run.config().compile is False
    assert run.record["history"][-1]["changes"]["compile"] == {"from": True, "to": False}
