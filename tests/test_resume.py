"""A killed and resumed run equals the uninterrupted one to the last bit, for the paradigms with more state than weights.

The DiT of the MeanFlow restorer is killed again and again in ``test_faults.py``, on one rank and on two.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import read_json
from processes import Run, arguments, assert_same_run, end_all
from test_faults import ACCUMULATED, RECIPE

from launch.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    end_all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "trainer", "own"),
    [
        # codes restart and the discriminator begins on the way
        ("vqgan_scenes", "ddp_cpu", ["objective.adversarial_start=5", "data.num_train=64", ACCUMULATED]),
        ("maskgit_scenes", "cpu", []),
        pytest.param("meanflow_dit", "ddp_cpu", [*RECIPE, "compile=true"], marks=pytest.mark.exhaustive),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    experiment: str, trainer: str, own: list[str], tokenizer: Path, tmp_path: Path
) -> None:
    if experiment == "maskgit_scenes":
        shutil.copytree(tokenizer, tmp_path / "vqgan_scenes" / "run")
    common = ["train.py", *arguments(experiment, 12, 4, trainer), *own, f"paths.outputs={tmp_path}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Run(tmp_path / "whole.log", *common, f"hydra.run.dir={whole}", forks=True).finished()
    run = Run(tmp_path / "killed.log", *common, f"hydra.run.dir={killed}", forks=True)
    run.until(lambda: RunFolder(killed).checkpoint.exists())
    run.kill()
    assert not read_json(killed / "run.json")["finished"]
    Run(tmp_path / "killed.log", *common, f"hydra.run.dir={killed}", "resume=auto", forks=True).finished()
    assert read_json(killed / "run.json")["resumed_at_steps"] in ([4], [8])
    assert_same_run(whole, killed)
