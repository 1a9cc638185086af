"""``compile=auto``: the rule, and what a run keeps of it; nothing is compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch import compiling
from launch.compiling import MIN_CALLS, decided, settle_compile
from launch.compose import compose_config
from launch.run_folder import RunFolder
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


def test_without_a_compiler_the_training_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: torch.device, cache_dir: str | None) -> None:
        raise ValueError("there is no working compiler")

    monkeypatch.setattr(compiling, "try_compiler", missing)
    assert decided(compose_config(["experiment=meanflow_dit", *LONG])) == (False, "there is no working compiler")


@pytest.mark.parametrize("began", [MIN_CALLS, MIN_CALLS - 1])
def test_a_resume_keeps_the_decision(began: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where more or fewer steps would now decide otherwise; only who asks again gets another one, told each time."""
    overrides = ["experiment=meanflow_dit", "trainer=cpu", f"trainer.max_steps={began}"]
    config = compose_config(overrides)
    assert config.module.compile == "auto"
    settle_compile(config)
    compiles = began == MIN_CALLS
    assert config.module.compile is compiles
    assert capsys.readouterr().out.startswith(f"compile=auto: {str(compiles).lower()}: {began:,} steps")
    settle_compile(config)
    run = RunFolder(tmp_path)
    run.write_config(config, overrides)
    other = f"trainer.max_steps={1 if compiles else 10 * MIN_CALLS}"
    assert resumed_config(run, [other])[0].module.compile is compiles
    assert resumed_config(run, ["compile=false"])[0].module.compile is False
    assert not capsys.readouterr().out
    run.checkpoint.parent.mkdir()
    torch.save({"global_step": 100, "state_dict": {}}, run.checkpoint)
    assert resumed_config(run, ["compile=auto"])[0].module.compile is False
    assert f"compile=auto: false: {began - 100:,} steps: too few" in capsys.readouterr().out
