"""Two ranks: every paradigm trains on them, in single runs and sweeps, with the results of one rank; so it does sharded."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SMALL_RUN, TINY_DIT, assert_same_state, composed, random_batch, read_json, tiny
from processes import Run
from rank_worker import run_on_two_ranks
from wandb_files import offline_runs

from generative.randomness import StepRandomness, generator_for
from launch.build import build_module, build_trainer, check_ranks
from launch.commands.evaluate import evaluate
from launch.commands.train import train
from launch.compare.evaluations import read_job
from launch.compose import compose_config
from launch.errors import UserError
from launch.options import experiments
from launch.run_folder import RunFolder

pytestmark = pytest.mark.timeout(900)  # the fixtures start a dozen processes
PARADIGMS = ("meanflow_dit", "ddpm_scenes", "maskgit_scenes")
SINGLE = ("vqgan_scenes", "label_classifier", "ddpm_scenes")  # the next ones find the first two by themselves
SHARDED = ("meanflow_dit", "maskgit_scenes")
STEPS = ["trainer.max_steps=3", "trainer.val_check_interval=2", "learning_rate=constant"]
STEPS += ["callbacks.checkpoint.every_n_steps=2"]
CPU_PAIR = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
FEW = ["sampler.num_steps=2", "callbacks.image_grid.num_images=2"]
SHARDABLE = [
    *FEW,
    "optimizer=adamw",
    "classifier=null",
]  # Muon is not; Fréchet distances take long and are of ddpm_scenes
SETTINGS = ["optimizer=muon", "objective.derivative=difference"]
WATCHED = [f"callbacks.{name}.metric=val/psnr/mean" for name in ("early_stop", "kept_checkpoints")]
SET = [*FEW, *SETTINGS, *WATCHED]
LOGGED = ["logger=wandb", "logger.offline=true"]
ODD = "data.num_test=9"  # the ranks have unequally many
SWEPT = [o for o in [*SMALL_RUN, ODD] if not o.startswith(("trainer.max_steps", "trainer.val_check"))]


def job(outputs: Path, folder: str, experiment: str, trainer: str, *overrides: str, **kwargs: Any) -> dict[str, Any]:
    small = [o for o in tiny(experiment) if o not in TINY_DIT]  # the sweep's networks, which are of several kinds
    arguments = [f"experiment={experiment}", *small, ODD, f"trainer={trainer}", *CPU_PAIR, *STEPS]
    return {
        "folder": str(outputs / folder),
        "arguments": [*arguments, f"paths.outputs={outputs}", *overrides],
        **kwargs,
    }


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a classifier and a DDPM on two ranks, and two paradigms sharded over them."""
    outputs = tmp_path_factory.mktemp("outputs")
    run_on_two_ranks(
        [
            *(job(outputs, f"{name}/run", name, "ddp_cpu") for name in SINGLE),
            *(job(outputs, f"sharded/{name}", name, "fsdp", *SHARDABLE) for name in SHARDED),
            job(
                outputs,
                "sharded/resumed",
                "meanflow_dit",
                "fsdp",
                *SHARDABLE,
                resume=str(outputs / "sharded/meanflow_dit"),
            ),
            job(outputs, "settings/whole", "meanflow_dit", "ddp_cpu", *SET),
            job(outputs, "settings/resumed", "meanflow_dit", "ddp_cpu", *SET, resume=str(outputs / "settings/whole")),
        ],
        outputs,
    )
    return outputs


@pytest.fixture(scope="module")
def swept(outputs: Path) -> dict[str, Path]:
    """The three paradigms as a sweep of two-rank jobs: run folders by experiment."""
    sweep = [*SWEPT, *STEPS, *SHARDABLE, *LOGGED, f"paths.outputs={outputs}", "sweep=ranks"]
    experiments = f"experiment={','.join(PARADIGMS)}"
    Run(outputs / "sweep.log", "train.py", "-m", experiments, "trainer=ddp_cpu", *sweep, forks=True).finished()
    return {read_json(path)["name"]: path.parent for path in (outputs / "sweeps" / "ranks").glob("*/run.json")}


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_close(a: Any, b: Any, where: str = "", rtol: float = 1e-4, atol: float = 5e-6) -> None:
    """Assert that two nested states of one layout are equal but for the order of sums.

    Each tensor as a whole, by the root of its mean square: three steps of Adam move a weight by up to 4.5e-3 also where its
    gradient is nearly zero and the order of sums decides, so that of some ten thousand a single one may differ by more.
    """
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape, where
        size, difference = (each.double().square().mean().sqrt().item() for each in (b, a.double() - b.double()))
        assert difference <= atol + rtol * size, f"{where}: {difference} beside {size}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], f"{where}/{key}", rtol, atol)
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{where}/{i}", rtol, atol)


def assert_same_metrics_on_one_rank(folder: Path) -> None:
    on_two = read_json(folder / "metrics.json")["metrics"]
    on_one = evaluate(read_job([f"run={folder}", "trainer=cpu", "trainer.devices=1", "name=one"], ""))["metrics"]
    assert on_one == pytest.approx(on_two, rel=1e-4, abs=1e-5)
    assert on_one


@pytest.mark.slow
@pytest.mark.parametrize("folder", [*(f"{name}/run" for name in SINGLE), "settings/whole"])
def test_metrics_of_two_ranks_are_those_of_one(folder: str, outputs: Path) -> None:
    assert_same_metrics_on_one_rank(outputs / folder)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "alone"), [("sharded", "meanflow_dit"), ("settings", "whole")])
def test_training_on_two_ranks_resumes_to_the_last_bit(folder: str, alone: str, outputs: Path) -> None:
    resumed, whole = (checkpoint(outputs / folder / name) for name in ("resumed", alone))
    assert resumed["global_step"] == 3
    for part in ("state_dict", "optimizer_states"):
        assert_same_state(resumed[part], whole[part], part)
    assert_same_state(resumed["callbacks"]["EMA"], whole["callbacks"]["EMA"], "EMA")
    if folder == "settings":
        for name in ("EarlyStop", "KeptCheckpoints"):
            assert_same_state(resumed["callbacks"][name], whole["callbacks"][name], name)
        assert whole["callbacks"]["KeptCheckpoints"]["best"][0][0] == 2
        assert torch.load(outputs / "settings/resumed/checkpoints/best.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_a_sharded_run_goes_on_on_one_rank(outputs: Path) -> None:
    run = RunFolder(outputs / "sharded" / "resumed")
    overrides = job(outputs, "", "meanflow_dit", "cpu", *SHARDABLE, "trainer.devices=1", "trainer.max_steps=4")[
        "arguments"
    ]
    config = composed(run.path, overrides)
    config.resume = str(run.path)
    train(run, config, overrides)
    assert checkpoint(run.path)["global_step"] == 4
    assert run.record["hardware"]["ranks"] == 1


@pytest.mark.slow
def test_a_sweep_of_two_rank_jobs_runs_each_job_once(outputs: Path, swept: dict[str, Path]) -> None:
    assert swept.keys() == set(PARADIGMS)
    for folder in swept.values():
        record = read_json(folder / "run.json")
        assert record["finished"]
        assert record["hardware"]["ranks"] == 2
        assert not record["resumed_at_steps"]
        assert len(read_json(folder / "job.json")["attempts"]) == 1
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["1", "2", "3"]
        assert all(row["train/loss"] for row in rows)
        (logged,) = offline_runs(folder)  # by the first rank alone
        assert [step for step, _ in logged.series("train/loss")] == [1, 2, 3]
    # One folder for each run and no other: the second rank wrote none of its own.
    for name in ("run.json", "metrics.csv"):
        assert len(list(outputs.rglob(name))) == len(PARADIGMS) + len(SINGLE) + len(SHARDED) + 1 + 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)  # the sweep's DDPM has no classifier, so no metrics
def test_metrics_of_a_two_rank_job_are_those_of_one_rank(name: str, swept: dict[str, Path]) -> None:
    assert_same_metrics_on_one_rank(swept[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_training_is_that_of_ddp(name: str, outputs: Path, swept: dict[str, Path]) -> None:
    sharded, whole = checkpoint(outputs / "sharded" / name), checkpoint(swept[name])
    for part in ("state_dict", "optimizer_states"):
        assert_close(sharded[part], whole[part], part)
    assert_close(sharded["callbacks"]["EMA"], whole["callbacks"]["EMA"])
    assert_same_metrics_on_one_rank(outputs / "sharded" / name)


@pytest.mark.parametrize(
    "overrides",
    [["experiment=vqgan_scenes"], ["experiment=label_classifier"], ["experiment=meanflow_dit", *SETTINGS[:1]]],
)
def test_what_cannot_be_sharded_is_refused_before_training(overrides: list[str], tmp_path: Path) -> None:
    config = compose_config([*overrides, "trainer=fsdp", *CPU_PAIR])
    trainer = build_trainer(config, tmp_path, [], False)
    with pytest.raises(UserError, match="trainer=ddp"):
        check_ranks(config, trainer)


@pytest.mark.parametrize(
    "name", [n for n in experiments() if not n.startswith(("maskgit", "pmrf", "meanflow_regression"))]
)
def test_every_weight_gets_a_gradient_in_every_step(name: str) -> None:
    # DDP waits for the gradient of each weight; a step without one would end the run.
    config = compose_config([f"experiment={name}", *tiny(name)])
    module = build_module(config)
    batch = random_batch(config)
    module.loss(batch, StepRandomness(generator_for(0, "objective"), len(batch.image))).loss.backward()
    without = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
