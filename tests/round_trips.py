"""What is done with any run, and must give the same bits: resumed in its middle, evaluated again, exported and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import as_if_killed, assert_same_state, defaults, read_json, resume_here

import triptych
from launch.commands import evaluate, export
from launch.run_folder import RunFolder

IN_THE_MIDDLE = ["callbacks.checkpoint.every_n_steps=2", "trainer.max_steps=4", "trainer.val_check_interval=2"]

# What has tests of its own, and takes longer than all the rest.
LEFT_OUT = ("generation", "restoration_distances", "calibration", "image_grid", "steps_grid", "label_kept")


def alone(experiment: str, *choices: str) -> list[str]:
    """Return the overrides that leave out of an experiment with some choices what has tests of its own."""
    callbacks = defaults(experiment, *choices).callbacks
    return [f"callbacks.{name}=null" for name in LEFT_OUT if callbacks.get(name) is not None]


def checkpoint(run: RunFolder) -> dict[str, Any]:
    return torch.load(run.checkpoint, weights_only=True)


def resumed(run: RunFolder, to: Path) -> RunFolder:
    """Continue from the checkpoint in the middle, as after a kill."""
    as_if_killed(run.path, to)
    again = RunFolder(to)
    assert checkpoint(again)["global_step"] == 2
    resume_here(again)
    return again


def assert_round_trips(run: RunFolder, out: Path) -> tuple[triptych.TrainingModule, triptych.TrainingModule]:
    """Check a run of ``IN_THE_MIDDLE``.

    Returns:
        The module of the run and that of its export.
    """
    whole, continued = checkpoint(run), checkpoint(resumed(run, out / "resumed"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same_state(whole[part], continued[part], part)
    assert_same_state(whole["callbacks"]["EMA"], continued["callbacks"]["EMA"], "EMA")
    metrics = read_json(run.path / "metrics.json")["metrics"]
    evaluate.main([f"run={run.path}", "name=again"])
    assert read_json(run.path / "evaluations" / "again" / "metrics.json")["metrics"] == metrics
    export.main([f"run={run.path}", f"output={run.path / 'export'}"])
    of_run, of_export = triptych.load(run.path).module, triptych.load(run.path / "export").module
    assert_same_state(dict(of_run.network.state_dict()), dict(of_export.network.state_dict()), "export")
    return of_run, of_export


def assert_same_samples(of_run: Any, of_export: Any, classes: int = 10, channels: int = 1) -> None:
    """Check that both draw the same images of 32x32 pixels."""
    image = torch.rand(2, channels, 32, 32) * 2 - 1
    batch = triptych.Batch(
        image, torch.arange(2), labels=torch.eye(classes)[:2], degraded=image, validity=torch.ones(2, 1, 32, 32)
    )
    for module in (of_run, of_export):
        assert isinstance(module, triptych.GenerativeModule)
    with torch.no_grad():  # with gradients convolutions may round in another way
        a, b = (module.sample(batch, module.evaluation_randomness(batch)) for module in (of_run, of_export))
        alone = {
            name: of_run.images_of(batch, of_run.evaluation_randomness(batch), {name})[name] for name in of_run.outputs
        }
    assert_same_state(dict(a), dict(b))
    assert_same_state(dict(a), alone)  # also where the others are not made
