"""A generator that was trained without any degradation restores by guidance, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import read_json, train_here
from PIL import Image

from launch.commands.evaluate import main as evaluate
from launch.commands.generate import main as generate
from launch.errors import UserError
from launch.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A generator of labelled scenes."""
    folder = tmp_path_factory.mktemp("generator")
    choices = ["callbacks.label_accuracy=null"]
    choices += ["callbacks.generation.num_images=4", "callbacks.generation.num_reference=4"]  # no restoring run has it
    return train_here(folder / "run", "experiment=ddpm_scenes", f"paths.outputs={folder}", *choices)


def test_a_generator_restores_in_its_evaluation(run: RunFolder) -> None:
    command = [
        f"run={run.path}",
        "task=inpaint",
        "guidance=mmps",
        "degradation=block_mask",
        "name=mmps",
        "sampler.num_steps=3",
    ]
    fewer = [
        "callbacks.calibration.num_images=2",
        "callbacks.calibration.num_samples=2",
        "callbacks.restoration_distances=null",
    ]
    evaluate([*command, *fewer])
    found = read_json(run.path / "evaluations/mmps/metrics.json")
    assert {"psnr_hole/sample", "energy_score_hole/sample"} <= found["metrics"].keys()
    assert found["record"]["sampling"]["num_network_calls"] == {"sample": 3 * (1 + 2 * 4)}
    assert found["record"]["sampling"]["guidance"] == "MMPS(inner_steps=3)"
    assert found["record"]["degradation"]["steps"]["block"]["size"]


def test_a_generator_fills_the_hole_of_a_picture(run: RunFolder, tmp_path: Path) -> None:
    picture, mask = np.full((32, 32, 3), 90, np.uint8), np.zeros((32, 32), np.uint8)
    picture[::3, ::5] = 200
    mask[8:20, 8:20] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    places = [
        f"input={tmp_path / 'picture.png'}",
        f"masks={tmp_path / 'mask.png'}",
        f"output={tmp_path / 'filled.png'}",
    ]
    generate(
        [f"run={run.path}", "task=inpaint", "guidance=repaint", "guidance.rounds=2", "sampler.num_steps=2", *places]
    )
    filled = np.asarray(Image.open(tmp_path / "filled.png"))
    assert (filled[mask == 0] == picture[mask == 0]).all()
    assert (filled[mask > 0] != picture[mask > 0]).any()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["task=restore", "guidance=dps", "guidance.scale=2"], r"guidance\.scale has no effect on guidance=DPS"),
        (
            ["guidance=mmps"],
            "guidance=mmps restores degraded images, and there are none: set task=restore or task=inpaint",
        ),
        (
            ["task=restore", "guidance=mmps"],
            r"degradation\.steps\.salt_pepper: SaltAndPepper is no linear map of each channel",
        ),
        (["task=restore", "degradation=super_resolution"], r"network\.condition_channels=0, but module\.task=restore"),
        (["task=restore", "guidance=repaint", "degradation=super_resolution"], "guidance=repaint knows of holes alone"),
    ],
)
def test_what_does_not_restore_is_told(run: RunFolder, choices: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        evaluate([f"run={run.path}", "name=refused", *choices])
    assert "\n" not in str(error.value)
