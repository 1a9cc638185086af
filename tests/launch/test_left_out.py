"""What an experiment sets for a part that its run is without is named, and not dropped in silence."""

from __future__ import annotations

from launch import options
from launch.compose import compose_config


def test_settings_of_an_experiment_without_effect_are_named(monkeypatch) -> None:
    left: list[str] = []
    leave_out = options.leave_out
    monkeypatch.setattr("launch.compose.leave_out", lambda *args: left.extend(leave_out(*args)))
    compose_config(["experiment=ddpm_scenes"])
    assert left == []
    config = compose_config(["experiment=ddpm_scenes", "task=restore"])
    assert left == ["guidance.scale", "callbacks.generation.num_images", "callbacks.generation.num_reference"]
    assert config.guidance is None
    assert config.callbacks.generation is None
