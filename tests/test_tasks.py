"""Every paradigm does every task, and what a task has no use for is one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import train_here
from round_trips import IN_THE_MIDDLE, alone, assert_round_trips, assert_same_samples

from launch.build import tasks_of
from launch.compose import compose_config
from launch.errors import UserError

PARADIGMS = ["ddpm_scenes", "meanflow_scenes", "maskgit_scenes"]
TASKS = ["generate", "restore", "inpaint"]


@pytest.fixture(scope="module")
def outputs(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of nine cells, and before them of their tokenizer."""
    folder = tmp_path_factory.mktemp("cells")
    shutil.copytree(tokenizer, folder / "vqgan_scenes" / "run")
    return folder


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("experiment", PARADIGMS)
def test_a_cell_trains_resumes_evaluates_exports_and_makes_images(experiment: str, task: str, outputs: Path) -> None:
    run = train_here(
        outputs / experiment / task,
        f"experiment={experiment}",
        f"task={task}",
        f"paths.outputs={outputs}",
        *alone(experiment, f"task={task}"),
        *IN_THE_MIDDLE,
    )
    assert_same_samples(*assert_round_trips(run, outputs / f"{experiment}_{task}"), classes=24, channels=3)
    assert task in tasks_of(run.config())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "experiment=ddpm_scenes degradation=holes",
            r"degradation=holes has no effect on module=DDPM: it sees clean images",
        ),
        ("experiment=ddpm_scenes task=restore guidance.scale=2", r"guidance\.scale=2 has no effect.*told no labels"),
        (
            "experiment=meanflow_dit module.label_dropout.set_probability=0.2",
            r"label_dropout.*has no effect.*told no labels",
        ),
        ("experiment=ddpm_scenes module.known_in_path=true", r"known_in_path=true has no effect.*no degraded image"),
        (
            "experiment=maskgit_scenes task=restore objective.hole_share=0.3",
            r"hole_share=0\.3 has no effect.*all tokens",
        ),
        ("experiment=maskgit_scenes task=generate module.feather=2", r"feather=2 has no effect.*no degraded image"),
        (
            "experiment=maskgit_scenes sampler.schedule=one_shot sampler.num_steps=16",
            r"num_steps=16 has no effect.*one_shot takes one step",
        ),
        ("experiment=maskgit_scenes sampler.revised_share=0.5", r"revised_share=0\.5 has no effect.*revisions=0"),
        ("experiment=ddpm_scenes objective.gamma=3", r"gamma=3 has no effect.*objective\.weight=min_snr"),
        (
            "experiment=ddpm_scenes objective.logit_mean=null objective.logit_std=2",
            r"logit_std=2 has no effect.*uniformly",
        ),
        (
            "experiment=ddpm_scenes module.data_std=0.1",
            r"data_std=0\.1 has no effect.*classifier_guidance, which is 0",
        ),
        (
            "experiment=maskgit_scenes sampler=halton sampler.choice_temperature=1",
            r"choice_temperature=1 has no effect.*order=confidence",
        ),
        (
            "experiment=meanflow_dit objective.time_distribution.distribution=uniform objective.time_distribution.std=2",
            r"time_distribution\.std=2 has no effect.*uniformly",
        ),
        (
            "experiment=vqgan_scenes discriminator=null objective.adversarial_start=5",
            r"adversarial_start=5 has no effect.*no discriminator",
        ),
        (
            "experiment=vqgan_scenes objective.perceptual_weight=0.5",
            r"perceptual_weight=0\.5 has no effect.*no perceptual distance",
        ),
        (
            "experiment=meanflow_dit objective.derivative=exact objective.difference_step=0.01",
            r"difference_step=0\.01 has no effect.*derivative=difference",
        ),
        ("experiment=regression_dit sampler=halton", r"sampler=halton has no effect.*no part of it is built from it"),
        ("experiment=vqgan_scenes degradation=mixed", r"degradation=mixed has no effect on module=VQGAN"),
        (
            "experiment=label_classifier task=generate",
            r"task=generate is nothing that LabelClassifierModule does: leave it out",
        ),
        (
            "experiment=regression_dit task=generate",
            r"task=generate is nothing that RegressionRestorer does.*task=restore",
        ),
    ],
)
def test_what_a_run_has_no_use_for_is_one_sentence(overrides: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(overrides.split())


@pytest.mark.parametrize(
    ("task", "channels", "message"),
    [
        ("restore", 0, r"condition_channels=0, but module\.task=restore shows the network the degraded image"),
        ("generate", 4, r"condition_channels=4, but module\.task=generate shows the network no image"),
    ],
)
def test_a_network_without_place_for_what_it_is_shown_is_one_sentence(
    tmp_path: Path, task: str, channels: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_here(tmp_path, "experiment=ddpm_scenes", f"task={task}", f"network.condition_channels={channels}")


def test_what_a_file_sets_without_effect_is_no_part_of_the_record() -> None:
    config = compose_config(["experiment=ddpm_scenes", "task=restore"])
    assert config.guidance is None
    assert config.module.guidance is None
    assert compose_config(["experiment=ddpm_scenes"]).guidance.scale == 3
    assert compose_config(["experiment=ddpm_scenes"]).degradation is None
