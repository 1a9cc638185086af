"""What an experiment sets for a part that its run is without is named, and not dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import checked_command

from launch.command_line import overridden_run
from launch.compose import compose_config
from launch.options import tell_set_in_vain
from launch.run_folder import RunFolder


def test_settings_of_an_experiment_without_effect_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    left: list[str] = []
    compose_config(["experiment=ddpm_scenes"], left_out=left)
    tell_set_in_vain(left, ["experiment=ddpm_scenes"])
    assert not capsys.readouterr().out
    config = checked_command("experiment=ddpm_scenes", "task=restore")
    named = "guidance.scale, callbacks.generation.num_images, callbacks.generation.num_reference of the experiment"
    assert named in capsys.readouterr().out
    assert config.guidance is None
    assert config.callbacks.generation is None


def test_a_run_that_is_evaluated_for_another_task_is_told_them_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = ["experiment=ddpm_scenes"]
    run = RunFolder(tmp_path)
    run.write_config(compose_config(recorded), recorded)
    run.checkpoint.parent.mkdir()
    torch.save({"global_step": 1, "state_dict": {}}, run.checkpoint)
    overridden_run(str(tmp_path), ["sampler.num_steps=2"])
    assert "not used" not in capsys.readouterr().out
    overridden_run(str(tmp_path), ["task=restore"])
    assert "callbacks.generation.num_images" in capsys.readouterr().out
