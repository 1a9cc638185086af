"""A run is judged by the label classifier of its training, whatever was trained since; another one is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import train_here

from launch.command_line import choices_of
from launch.commands import evaluate
from launch.compare.evaluations import read_job
from launch.judge import differing_judges, judge_of, judges_in, tell_other_judge
from launch.run_folder import RunFolder, write_json


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge, a run that it judges, and a judge that finished later."""
    root = tmp_path_factory.mktemp("outputs")
    common = ["data=digits", f"paths.outputs={root}", "callbacks.image_grid=null"]
    judge = train_here(root / "label_classifier" / "old", "experiment=label_classifier", *common[:2])
    train_here(root / "regression_dit" / "run", "experiment=regression_dit", *common, "callbacks.baselines=null")
    shutil.copytree(judge.path, root / "label_classifier" / "new")
    write_json(root / "label_classifier" / "new" / "run.json", judge.record | {"ended": "2100"})
    return root


def judge_now(run: RunFolder) -> str | None:
    (found,) = set(choices_of(read_job([f"run={run.path}"], "").config, "classifier"))
    return found


def test_a_run_is_evaluated_by_the_judge_of_its_training(outputs: Path, recwarn: pytest.WarningsRecorder) -> None:
    run, judge = RunFolder(outputs / "regression_dit" / "run"), RunFolder(outputs / "label_classifier" / "old")
    assert run.record["judge"]["path"] == judge_now(run) == str(judge.checkpoint)
    config = read_job([f"run={run.path}"], "").config
    tell_other_judge(run, config, ())
    assert not [warning for warning in recwarn if "was judged by" in str(warning.message)]
    write_json(run.record_path, run.record | {"judge": {"path": str(judge.checkpoint), "hash": "0"}})
    with pytest.warns(UserWarning, match=r"was judged by .*old.* it has other weights now: .*classifier=FILE"):
        evaluate.main([f"run={run.path}"])
    shutil.rmtree(judge.path)
    new = outputs / "label_classifier" / "new" / "checkpoints" / "last.ckpt"
    assert judge_now(run) == str(new)
    with pytest.warns(UserWarning, match=r"was judged by .*old.*, and .*new.* judges it"):
        tell_other_judge(run, read_job([f"run={run.path}"], "").config, ())


def test_each_measurement_says_who_judged_its_metrics() -> None:
    extractor = {"name": "label_classifier", "fingerprint": "b"}
    record = {
        "evaluation": {"definitions": {"psnr": "a mean"}},
        "label_accuracy": {"definitions": {"label_accuracy": "words"}, "num_seeds": 2, "classifier": {"blake2": "a"}},
        "generation": {"label_classifier": {"fd_label_classifier": "words", "extractor": extractor}},
    }
    judges = judges_in(record)
    assert judges == {"label_accuracy": "a", "fd_label_classifier": "b"}
    assert judge_of(judges, "label_accuracy_assisted_std") == "a"
    assert judge_of(judges, "psnr") is None
    assert differing_judges(judges, {"label_kept": "c", "label_accuracy": "d"}) == ("a", "d")
    assert differing_judges(judges, {"label_kept": "c"}) is None
