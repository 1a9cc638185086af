"""Run folders: which run resume=auto means, and one writer at a time."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from callbacks.checkpoint import AtomicCheckpointIO
from generative.judges.label_classifier import load_label_classifier
from generative.networks.tokenizer import load_tokenizer
from launch import record
from launch.compose import apply_overrides, compose_config, parse
from launch.errors import UserError
from launch.run_folder import RunFolder, identity, newest_unfinished, write_json
from launch.start import composed_start, current_run, put_in_force
from launch.trained_parts import trained_classifier

OVERRIDES = ["experiment=meanflow_dit", "seed=1"]


def make_run(
    root: Path, name: str, started: str, finished: bool = False, overrides: list[str] = OVERRIDES
) -> RunFolder:
    run = RunFolder(root / name)
    run.checkpoint.parent.mkdir(parents=True)
    run.checkpoint.touch()
    write_json(run.record_path, {"started": started, "finished": finished, "overrides": identity(overrides)})
    return run


def test_auto_means_the_newest_unfinished_run_of_the_same_overrides(tmp_path: Path) -> None:
    make_run(tmp_path, "old", "2026-01-01T00:00:00")
    new = make_run(tmp_path, "new", "2026-01-03T00:00:00")
    make_run(tmp_path, "finished", "2026-01-04T00:00:00", finished=True)
    make_run(tmp_path, "other", "2026-01-05T00:00:00", overrides=["experiment=meanflow_dit", "seed=2"])
    early = make_run(tmp_path, "early", "2026-01-06T00:00:00")
    early.checkpoint.unlink()
    same_command = ["seed=1", "experiment=meanflow_dit", "resume=auto", "hydra.job.name=x"]
    assert newest_unfinished(tmp_path, same_command) == new
    with new.locked():  # a run that is still running is not touched
        assert newest_unfinished(tmp_path, OVERRIDES) == RunFolder(tmp_path / "old")
    assert newest_unfinished(tmp_path, ["experiment=meanflow_dit"]) is None


def test_an_interpolation_among_the_overrides_is_recorded_as_given_and_the_run_is_found_again(tmp_path: Path) -> None:
    given = ["experiment=regression_dit", "network.label_factors=${data.label_factors}", f"hydra.run.dir={tmp_path}"]
    with put_in_force(composed_start(given)) as config:
        run, _, overrides, _ = current_run(config)
    assert sorted(overrides) == sorted(given[:2])
    run = make_run(tmp_path.parent, tmp_path.name, "2026-01-01", overrides=overrides)
    assert newest_unfinished(tmp_path.parent, [*given, "resume=auto"]) == run


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(UserError, match="another process"), RunFolder(tmp_path / "run").locked():
        pass
    assert not run.is_locked()


def test_the_commit_is_that_of_the_code_and_of_no_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    site = tmp_path / "env" / "site"
    for root, is_own in ((tmp_path, True), (site, False)):
        (root / "launch").mkdir(parents=True)
        monkeypatch.setattr(record, "__file__", str(root / "launch" / "record.py"))
        if is_own:
            for command in ("init -q", "-c user.name=a -c user.email=a commit -q --allow-empty -m a"):
                subprocess.run(["git", "-C", str(root), *command.split()], check=True)
        assert (record.git_revision() is not None) == is_own
        assert ("triptych" in record.versions()) != is_own


def test_a_run_that_does_not_begin_takes_away_what_is_its_own_alone(tmp_path: Path) -> None:
    def refused(run: RunFolder) -> None:
        run.config_path.parent.mkdir()
        (run.path / "theirs").mkdir()  # written meanwhile by somebody else
        raise ValueError("refused")

    (tmp_path / "mine").touch()
    for run in (RunFolder(tmp_path), RunFolder(tmp_path / "new")):
        with pytest.raises(ValueError, match="refused"), run.begun():
            refused(run)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "theirs"}


def test_overrides_change_only_what_they_name() -> None:
    saved_overrides = ["experiment=meanflow_dit", "seed=5"]
    saved = compose_config(saved_overrides)
    saved.optimizer.lr = 0.123  # as if conf/ had changed since the run
    config = apply_overrides(
        saved, saved_overrides, ["sampler=heun", "sampler.num_steps=3", "~degradation.steps.noise"]
    )
    assert config.sampler._target_.endswith("Heun")
    assert config.sampler.num_steps == 3
    assert set(config.degradation.steps) == {"salt_pepper", "block"}
    assert (config.seed, config.optimizer.lr) == (5, 0.123)
    assert saved.sampler._target_.endswith("FlowMapSampler")


@pytest.mark.parametrize("overrides", [["experiment=regression_dit"], ["sampler.steps=3"], ["sampler=hoin"]])
def test_bad_overrides_of_a_run(overrides: list[str]) -> None:
    saved_overrides = ["experiment=meanflow_dit"]
    with pytest.raises(UserError):
        apply_overrides(compose_config(saved_overrides), saved_overrides, overrides)


def test_parse() -> None:
    assert parse("+a.b=3") == ("a.b", 3)
    assert parse("~a.b")[0] == "a.b"
    with pytest.raises(UserError, match="key=value"):
        parse("no override")


def make_classifier(root: Path, name: str, ended: str, target: str, data: str = "scenes", size: int = 32) -> Path:
    run = RunFolder(root / "label_classifier" / name)
    for file in (run.checkpoint, run.path / ".hydra" / "config.yaml"):
        file.parent.mkdir(parents=True)
    run.checkpoint.touch()
    (run.path / ".hydra" / "config.yaml").write_text(f"module:\n  _target_: lightning_modules.{target}\n")
    write_json(run.record_path, {"finished": bool(ended), "ended": ended, "data": {"name": data, "image_size": size}})
    return run.checkpoint


def test_auto_classifier_is_the_newest_finished_one_of_the_data(tmp_path: Path) -> None:
    assert trained_classifier("auto", str(tmp_path), "scenes", 32) is None
    make_classifier(tmp_path, "old", "2026-01-01", "LabelClassifierModule")
    newest = make_classifier(tmp_path, "new", "2026-01-02", "LabelClassifierModule")
    make_classifier(tmp_path, "running", "", "LabelClassifierModule")
    make_classifier(tmp_path, "larger", "2026-01-03", "LabelClassifierModule", size=64)
    make_classifier(tmp_path, "other", "2026-01-04", "LabelClassifierModule", data="iclevr")
    make_classifier(tmp_path, "ddpm", "2026-01-05", "DDPM")
    assert trained_classifier("auto", str(tmp_path), "scenes", 32) == str(newest)
    assert trained_classifier(str(newest), "", "scenes", 32) == str(newest)
    assert trained_classifier(str(newest.parent.parent), "", "scenes", 32) == str(newest)
    assert trained_classifier(None, str(tmp_path), "scenes", 32) is None
    with pytest.raises(UserError, match="classifier=.*no such run folder"):
        trained_classifier(str(tmp_path / "none"), "", "scenes", 32)


def test_auto_takes_no_classifier_of_other_files_of_the_same_name(tmp_path: Path) -> None:
    files = {name: make_classifier(tmp_path, name, ended, "LabelClassifierModule", "image_folder")
             for name, ended in (("old", "2026-01-01"), ("new", "2026-01-02"))}  # fmt: skip
    for name, file in files.items():
        with (file.parent.parent / ".hydra" / "config.yaml").open("a") as config:
            config.write(f"data:\n  root: {tmp_path}/{name}_photos\n")
    asking = OmegaConf.create(
        {"data": {"root": f"{tmp_path}/old_photos", "cache_dir": "/elsewhere", "test_root": "/x"}}
    )
    with pytest.warns(
        UserWarning, match=r"auto passes .*new over, .* data\.root=.*new_photos; classifier=RUN takes it"
    ):
        assert trained_classifier("auto", str(tmp_path), "image_folder", 32, asking) == str(files["old"])


def with_checkpoints(folder: Path, *steps: int) -> RunFolder:
    run = RunFolder(folder)
    for step in steps:
        state = {"weight": torch.full((1000,), float(step))}
        AtomicCheckpointIO().save_checkpoint(
            {"global_step": step, "state_dict": state}, run.path / "checkpoints/last.ckpt"
        )
    return run


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "it is empty": lambda path: os.truncate(path, 0),
    "it is cut off": lambda path: os.truncate(path, path.stat().st_size - 100),
    "its part .* has other bytes than its checksum says": flip_a_bit,
    "it is no file of torch.save": lambda path: path.write_bytes(b"\0" * 4000),
    "it is missing": Path.unlink,
    "its weight layer is not finite": lambda path: torch.save(
        {"global_step": 10, "state_dict": {"layer": torch.tensor([1, torch.nan])}}, path
    ),
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(fault: str, tmp_path: Path) -> None:
    run = with_checkpoints(tmp_path, 5, 10)
    last, previous = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "previous.ckpt"
    DAMAGES[fault](last)
    with pytest.warns(UserWarning, match=f"{last} is passed over: {fault}.*{previous} of step 5 is used instead"):
        path, checkpoint = run.newest_checkpoint()
    assert (path, checkpoint["global_step"]) == (previous, 5)
    run.set_aside(path)
    with_checkpoints(tmp_path, 10)  # the resumed run's next checkpoint
    os.truncate(last, 100)
    with pytest.warns(UserWarning, match="passed over"):
        assert run.load_checkpoint()["global_step"] == 5  # and never the damaged one


def test_without_one_before_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    run = with_checkpoints(tmp_path, 5)
    os.truncate(run.checkpoint, 100)
    with pytest.raises(
        UserError, match=r"last\.ckpt is refused: it is cut off.* no whole previous\.ckpt is next to it"
    ):
        run.load_checkpoint()


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def plain_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def old_layout(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, old_layout, plain_pickle])
def test_a_file_that_would_run_code_is_refused_and_not_passed_over(write: Callable, tmp_path: Path) -> None:
    run = with_checkpoints(tmp_path, 5, 10)
    marker = tmp_path / "ran"
    write({"state_dict": {}, "global_step": Attack(marker)}, run.checkpoint)
    with pytest.raises(UserError, match=r"last\.ckpt is refused: .* could run code"):
        run.load_checkpoint()
    with pytest.raises(UserError, match="could run code"):  # as train.py resume= reads it
        run.newest_checkpoint()
    run.checkpoint.unlink()
    write({"state_dict": {}, "global_step": Attack(marker)}, tmp_path / "checkpoints" / "previous.ckpt")
    with pytest.raises(UserError, match=r"previous\.ckpt is refused: .* could run code"):
        run.load_checkpoint()
    assert not marker.exists()


def test_a_file_of_tensors_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    run = with_checkpoints(tmp_path, 5, 10)
    torch.save({"weight": torch.ones(3)}, run.checkpoint)
    with pytest.raises(UserError, match="it is no checkpoint of a run"):
        run.load_checkpoint()


def test_the_one_before_is_no_run(tmp_path: Path) -> None:
    run = with_checkpoints(tmp_path, 5, 10)
    with pytest.raises(UserError, match=r"previous\.ckpt is kept for the case"):
        RunFolder.existing(run.path / "checkpoints" / "previous.ckpt", "run")


@pytest.mark.parametrize("write", [torch.save, old_layout, plain_pickle])
@pytest.mark.parametrize("load", [load_tokenizer, load_label_classifier])
def test_no_key_that_names_a_file_runs_what_is_in_it(load: Callable, write: Callable, tmp_path: Path) -> None:
    """tokenizer=FILE and classifier=FILE; perceptual and Inception weights are tested next to their networks."""
    file, marker = tmp_path / "bad.ckpt", tmp_path / "ran"
    write({"state_dict": {}, "model": Attack(marker)}, file)
    with pytest.raises(ValueError, match=r"bad\.ckpt is no .*: .* could run code"):
        load(file)
    assert not marker.exists()
