"""``init=RUN``: a training begins with another run's weights, says what became of them, and needs that run no more."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_state, checked_command, resume_here, train_here
from omegaconf import DictConfig

from generative.weights import averaged_weights, network_weights, weights_hash
from launch import build
from launch.commands import export
from launch.commands.train import train
from launch.compose import compose_config, without_hydra, written_out
from launch.errors import UserError
from launch.run_folder import RunFolder
from launch.start import resumed_config
from launch.use.load import load_export, load_run
from launch.use.warm_start import begin_with_run
from lightning_modules import TrainingModule

SHORT = ["callbacks.calibration=null", "trainer.limit_val_batches=0"]

STILL = ["optimizer=adamw", "optimizer.lr=1e-12"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def regression(outputs: Path) -> RunFolder:
    """One time and one head; the restorer that follows has two of each."""
    return train_here(outputs / "regression", "experiment=regression_dit", *SHORT)


@pytest.fixture(scope="module")
def restorer(outputs: Path, regression: RunFolder) -> RunFolder:
    return train_here(outputs / "restorer", "experiment=meanflow_dit", f"init={regression.path}", *STILL, *SHORT)


@cache
def config_of(*overrides: str) -> DictConfig:
    """Compose once what several tests begin."""
    small = ["network.dim=32", "network.depth=1", "network.num_heads=2"]
    config = compose_config(["experiment=meanflow_dit", *small, *overrides])
    config.name, config.paths.run = "meanflow_dit", "nowhere"
    return config


def begun(place: Path | None, weights: str | None = None, *overrides: str) -> tuple[TrainingModule, Any]:
    """Build the module of a training, and begin with a run's weights."""
    config = config_of(*overrides).copy()
    config.init = {"run": place and str(place), "weights": weights}
    module = build.build_module(config)
    return module, begin_with_run(module, config)


def test_a_run_begins_with_the_averages_and_records_where_they_came_from(
    regression: RunFolder, restorer: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = regression.load_checkpoint()
    weights = network_weights(checkpoint)
    record = restorer.record["init"]
    assert record == {
        "name": "regression_dit", "weights": "ema", "step": 2, "run": str(regression.path), "hash": weights_hash(weights)
    }  # fmt: skip
    module, again = begun(regression.path)
    assert again == record
    assert torch.equal(module.network.state_dict()["heads.0.projection.weight"], weights["heads.0.projection.weight"])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"init={regression.path}: averaged weights of regression_dit at step 2, {record['hash']}"
    assert re.fullmatch(r"  \d+ of \d+ tensors taken, [\d,]+ of [\d,]+ parameters", told[1])
    assert not any("module.output" in line for line in told)
    raw, _ = begun(regression.path, "raw")
    own = checkpoint["state_dict"]["network.heads.0.projection.weight"]
    assert torch.equal(raw.network.state_dict()["heads.0.projection.weight"], own)
    assert not torch.equal(own, weights["heads.0.projection.weight"])


def test_a_resume_needs_the_first_run_no_more(outputs: Path, restorer: RunFolder) -> None:
    """It goes on and keeps the record; another init= is refused."""
    first = outputs / "moved_away"
    (Path(restorer.record["init"]["run"])).rename(first)
    try:
        stopped = RunFolder(outputs / "stopped")
        shutil.copytree(restorer.path, stopped.path)
        resume_here(stopped, "trainer.max_steps=4")
        assert stopped.record["init"] == restorer.record["init"]
        assert stopped.load_checkpoint()["global_step"] == 4
        config = checked_command(f"resume={restorer.path}", f"init.run={first}", "trainer.max_steps=4")
        changed = resumed_config(restorer, [f"init.run={first}"], without_hydra(config))
        with pytest.raises(UserError, match=r"init.run=.* cannot be changed at resume="):
            train(restorer, *changed)
    finally:
        first.rename(restorer.record["init"]["run"])


def test_weights_and_averages_begin_alike(restorer: RunFolder, regression: RunFolder) -> None:
    """The steps of the restorer were so small that nothing has moved since."""
    checkpoint, average = restorer.load_checkpoint(), averaged_weights(restorer.load_checkpoint())
    assert average is not None
    for name, value in (averaged_weights(regression.load_checkpoint()) or {}).items():
        for now in (average[name], checkpoint["state_dict"][f"network.{name}"]):
            torch.testing.assert_close(now, value, rtol=0, atol=1e-9)


def test_an_export_is_as_good_as_its_run(
    restorer: RunFolder, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = outputs / "handed_on"
    export.main([f"run={restorer.path}", f"output={folder}"])
    card, config = (folder / "README.md").read_text(), (folder / "config.yaml").read_text()
    origin = restorer.record["init"]
    assert f"| began with | ema weights of regression_dit after 2 steps, {origin['hash']} |" in card
    assert str(outputs) not in card + config
    assert "init" not in config.split()
    module, record = begun(folder)
    assert_same_state(dict(module.network.state_dict()), dict(load_export(folder).network.state_dict()))
    assert record["name"] == "meanflow_dit"
    assert record["hash"] == weights_hash(load_run(restorer, restorer.config()).network)
    begun(folder, None, "module.output=velocity")
    told = capsys.readouterr().out
    assert "module.output was image there and is velocity here, so the same numbers mean another image" in told
    with pytest.raises(UserError, match=r"init.weights=raw: .* holds averaged weights alone: leave it out"):
        begun(folder, "raw")
    damaged = outputs / "damaged"
    shutil.copytree(folder, damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="its weights are not those that were written"):
        begun(damaged)


def test_what_cannot_be_begun_with_is_one_sentence(regression: RunFolder, outputs: Path, tmp_path: Path) -> None:
    checkpoint = regression.load_checkpoint()
    files = {
        "code.ckpt": checkpoint | {"code": re.compile("x")},
        "raw.ckpt": checkpoint | {"callbacks": {}},
        "whole.ckpt": {"state_dict": {"network.x": torch.zeros(1, dtype=torch.int64)}, "global_step": 1},
        "judge.ckpt": checkpoint | {"config": {"network": {"_target_": "generative.judges.LabelClassifier"}}},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "cut.ckpt").write_bytes(regression.checkpoint.read_bytes()[:-100])
    (tmp_path / "begun" / ".hydra").mkdir(parents=True)
    shutil.copy(regression.config_path, tmp_path / "begun" / ".hydra")
    for place, weights, sentence in (
        (tmp_path / "nothing", None, "there is no such run folder"),
        (tmp_path / "begun", None, "the run ended before its first checkpoint"),
        (tmp_path / "code.ckpt", None, "could run code if it were loaded otherwise"),
        (tmp_path / "cut.ckpt", None, "it is cut off or overwritten"),
        (tmp_path / "raw.ckpt", "ema", "holds no averaged weights: set init.weights=raw"),
        (tmp_path / "whole.ckpt", None, "none of its tensors has a counterpart in this network"),
        (tmp_path / "judge.ckpt", None, "holds the weights of a LabelClassifier, and this run trains a DiT"),
        (regression.path, "best", "init.weights=best is unknown: choose ema or raw"),
        (None, "raw", "init.weights=raw names no run: add init=RUN"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            begun(place, weights)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"patchify.weight has the shape \(32, \d+\).*that run has network.dim=32"):
        begun(regression.path, None, "network.dim=64")
    assert begun(tmp_path / "raw.ckpt")[1]["weights"] == "raw"


def test_init_is_short_for_init_run() -> None:
    assert written_out("init=a,b") == "init.run=a,b"
    assert written_out("init=jobs/0_seed=1,a=2") == "init.run='jobs/0_seed=1,a=2'"
    assert written_out("init='a=1','b=2'") == "init.run='a=1','b=2'"
    assert written_out("init.weights=raw") == "init.weights=raw"
    assert written_out("init={run: a}") == "init={run: a}"
    config = compose_config(["experiment=meanflow_dit", "init=outputs/a", "init.weights=raw"])
    assert config.init == {"run": "outputs/a", "weights": "raw"}
