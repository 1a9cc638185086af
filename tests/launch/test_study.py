"""The study: its record, its settings, what is done in which order, and a tiny one killed twice."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import read_json
from hydra.utils import instantiate
from omegaconf import OmegaConf
from processes import Run, end_all

from generative.networks.tokenizer import Tokenizer
from launch.build import build_module
from launch.command_line import taken
from launch.commands import study as study_command
from launch.commands.study import usage
from launch.compose import compose_config
from launch.errors import JobFailedError, UserError
from launch.run_folder import RunFolder
from launch.study import runner as running
from launch.study.plan import Planned, check_parameters, planned_runs
from launch.study.record import NAME, Prediction, Side, Study, StudyRun, read_study
from launch.study.runner import StudyRunner
from launch.study.settings import StudySettings, read_settings
from launch.sweep.processes import Children

STUDY = Study(
    "scenes",
    "coffee",
    (0, 1),
    240.0,
    {"budget": {"seconds": 240}},
    (
        StudyRun("ddpm", "generate", "cell", "scenes", 0, "runs/ddpm_generate_0", 240.0),
        StudyRun("tokens", "restore", "cell", "scenes", 1, "runs/tokens_restore_1", 180.0, 60.0, 500, 64.5, 1_630_000),
    ),
    (Prediction("a leads", "psnr", Side("tokens", "restore", output="mean"), Side(value=20.0)),),
)
SMALL = ["study=digits", "budget=coffee", "~study.paradigms.ddpm", "~study.tasks.generate", "~study.tasks.inpaint"]
SMALL += ["study.predictions=null", "side_by_side=1", "budget.seeds=[3,4]"]


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    end_all()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    STUDY.write(tmp_path)
    assert read_study(tmp_path) == STUDY
    assert STUDY.predictions[0].above.matches(STUDY.runs[1])
    assert not STUDY.predictions[0].above.matches(STUDY.runs[0])
    assert not STUDY.predictions[0].below.matches(STUDY.runs[0])
    assert read_study(tmp_path.parent) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"steps": 500', '"steps": "many"'),
        ('"cells"', '"cell"'),
        ('"claim": "a leads",', ""),
        ('"psnr"', "7"),
        ("{", "["),
    ],
)
def test_a_damaged_record_is_told(tmp_path: Path, old: str, new: str) -> None:
    STUDY.write(tmp_path)
    path = tmp_path / NAME
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match="is damaged"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study=scene", "budget=coffee"], "study=scene does not exist: did you mean scenes"),
        (["study=scenes"], "say which budget with budget=NAME: choose one of afternoon, coffee, night"),
        (["study=scenes", "budget=coffee", "budget.seconds=0"], "budget.seconds=0 must be greater than 0"),
        (["study=scenes", "budget=coffee", "budget.second=9"], "second"),
        (["study=scenes", "budget=coffee", "side_by_side=0"], "side_by_side=0 must be"),
        (["study=scenes", "budget=coffee", "study.tokenizer=null"], "maskgit works on one"),
        (
            ["study=scenes", "budget=coffee", "study.baselines.regression.tasks=[restor]"],
            "the task restor: did you mean",
        ),
        (
            ["study=scenes", "budget=coffee", "study.predictions=[{claim: a, metric: psn, above: {}, below: {}}]"],
            "no metric",
        ),
        (["study=scenes", "budget=coffee", "name=a/b"], "a name is no path"),
    ],
)
def test_bad_settings_are_one_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        read_settings(arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_help_lists_studies_and_budgets() -> None:
    assert "truth         Three paradigms, three tasks, on Gaussian fields" in usage()
    assert "night         Forty minutes" in usage()


@pytest.mark.parametrize(("study", "rows"), [("scenes", 4), ("digits", 4), ("truth", 4), ("combinations", 3)])
@pytest.mark.parametrize("budget", ["coffee", "night"])
def test_studies_name_what_there_is(study: str, rows: int, budget: str) -> None:
    settings = read_settings([f"study={study}", f"budget={budget}"])
    assert len(settings.rows) == rows
    assert settings.predictions
    assert settings.folder.name == f"{study}_{budget}"
    assert (
        settings.tokenizer_share * len(settings.tasks) >= 0.5
    )  # seconds of a cell: with fewer it bounds what is built on it


@pytest.fixture(scope="module")
def plan() -> list[Planned]:
    return planned_runs(read_settings([*SMALL, "name=plan"]))


RECIPE = ("optimizer._target_", "data.global_batch_size", "callbacks.ema.decay", "trainer.accumulate_grad_batches")
RESTORE_ALONE = ["~study.tasks.generate", "~study.tasks.inpaint"]


@pytest.mark.parametrize(
    ("study", "fewer"), [("scenes", []), ("combinations", []), ("digits", RESTORE_ALONE), ("truth", RESTORE_ALONE)]
)
def test_networks_of_a_study_are_of_one_size_and_trained_alike(study: str, fewer: list[str]) -> None:
    settings = read_settings([f"study={study}", "budget=coffee", *fewer])
    data = next(iter(settings.data))
    one = replace(settings, data={data: settings.data[data]}, predictions=())
    planned = planned_runs(one)  # refuses what it counts
    tokenizer = Tokenizer(
        build_module(compose_config([*settings.tokenizer, *settings.data[data]])).network, "untrained"
    )
    entries, recipes = [], set()
    for each in planned:
        if each.entry.role not in ("cell", "baseline"):
            continue
        built = ["tokenizer=of_this_size"] if each.entry.paradigm == "maskgit" else []
        config = compose_config([*each.overrides, *built])
        recipes.add(tuple(OmegaConf.select(config, key, throw_on_missing=True) for key in RECIPE))
        if built:
            network = instantiate(config.network)(**tokenizer.transformer_settings())
            entries.append(replace(each.entry, parameters=sum(weight.numel() for weight in network.parameters())))
        else:
            entries.append(each.entry)
    assert all(entry.parameters for entry in entries)
    check_parameters(entries)
    assert len(recipes) == 1, recipes
    assert None not in recipes.pop()


def test_a_network_of_another_size_is_refused_before_anything_starts() -> None:
    wide = "study.paradigms.meanflow.overrides=['experiment=meanflow_scenes','network.dim=192']"
    with pytest.raises(UserError, match=r"meanflow_restore_3 has \d,\d+,\d+ parameters and .* within 5%"):
        planned_runs(read_settings([*SMALL, wide]))


@pytest.fixture
def settings(tmp_path: Path, plan: list[Planned], monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudySettings]:
    """Settings of the small study, whose plan is made once."""
    monkeypatch.setattr(running, "planned_runs", lambda settings: plan)
    return lambda *overrides: read_settings([*SMALL, f"output={tmp_path}", "name=small", *overrides])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "study.judge=['experiment=label_classifier']",
            "study.judge of judge: the images of data=gauss have no labels",
        ),
        ("study.tasks.restore=['task=restore','module.labels=true']", "module.labels of ddpm_restore: the images of"),
    ],
)
def test_labels_of_data_without_them_are_refused(override: str, said: str) -> None:
    only = ["~study.data.mixture", "~study.tasks.generate", "~study.paradigms.maskgit", "study.predictions=null"]
    with pytest.raises(UserError, match=said):
        planned_runs(read_settings(["study=truth", "budget=coffee", *only, override]))


class Fake(Children):
    """Processes that do nothing but leave behind what real ones would.

    Args:
        stop_at: A signal comes while this one runs, counted from 0.
        failing: Name of the run whose training fails.
    """

    def __init__(self, stop_at: int = -1, failing: str = "", seconds_per_step: float = 0.5, odd: str = "") -> None:
        super().__init__()
        self.commands: list[str] = []
        self.stop_at, self.failing, self.seconds, self.odd = stop_at, failing, seconds_per_step, odd

    def run(self, command, log_path, variables, label=None) -> int:
        assert variables == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        number, folder = len(self.commands), log_path.parent
        kind = next(word for word in ("timing", "train.py", "evaluate.py") if any(word in part for part in command))
        self.commands.append(f"{kind} {folder.name}")
        if number == self.stop_at:
            self.stopped_by = 15
            return 143
        if kind == "timing":
            size = 2_000_000 if folder.name == self.odd else 1_600_000
            timing = {"seconds_per_step": self.seconds, "batch_size": 32, "parameters": size}
            (folder / "timing.json").write_text(json.dumps(timing))
        if kind == "train.py":
            assert taken(list(command), "resume")[0] == "auto"
            log_path.write_text("error: it failed.\n")
            if folder.name == self.failing:
                return 2
            (folder / "run.json").write_text(
                json.dumps({"finished": True, "steps": taken(list(command), "trainer.max_steps")})
            )
            (folder / "metrics.json").write_text("{}")
        return 0


def run(settings: StudySettings, fake: Fake) -> StudyRunner:
    study = StudyRunner(settings)
    study._children = fake
    study.run()
    return study


CELLS = [f"{name}_restore_{seed}" for name in ("meanflow", "maskgit", "regression") for seed in (3, 4)]
ALL = [
    *("timing judge", "timing tokenizer"),
    *(f"timing {cell}" for cell in CELLS if "maskgit" not in cell),
    *("train.py judge", "train.py tokenizer"),
    *(f"timing {cell}" for cell in CELLS if "maskgit" in cell),  # they need the tokenizer
    *(f"train.py {cell}" for cell in CELLS),
    *(f"evaluate.py {cell}" for cell in CELLS if "regression" not in cell),
]


def test_judge_and_tokenizer_come_first_and_all_seconds_are_equal(settings: Callable[..., StudySettings]) -> None:
    fake = Fake()
    study = run(settings(), fake).study
    assert fake.commands == ALL
    runs = {each.run: each for each in study.runs}
    assert {runs[cell].seconds + runs[cell].shared_seconds for cell in CELLS} == {240.0}
    assert runs["tokenizer"].seconds == runs["maskgit_restore_3"].shared_seconds == 60.0  # of one task's row
    assert runs["maskgit_restore_3"].steps == 360
    assert runs["meanflow_restore_4"].steps == 480
    assert runs["meanflow_restore_4"].images_per_second == 64.0
    assert read_study(settings().folder) == study


def test_what_is_done_is_not_done_again(settings: Callable[..., StudySettings]) -> None:
    done: list[str] = []
    for stop_at in (0, 2, 3, 4, 5):
        fake = Fake(stop_at)
        with pytest.raises(SystemExit) as stopped:
            run(settings(), fake)
        assert stopped.value.code == 143
        done += fake.commands[:-1]
        assert fake.commands[-1] == ALL[len(done)]  # nothing begins after a signal
    steps = {each.run: each.steps for each in read_study(settings().folder).runs}
    fake = Fake(seconds_per_step=0.1)  # a busier machine changes nothing that was measured before
    study = run(settings(), fake).study
    assert [*done, *fake.commands] == ALL
    assert all(each.steps == steps[each.run] for each in study.runs if steps[each.run])


def test_lines_of_runs_side_by_side_do_not_mix(
    settings: Callable[..., StudySettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    written: list[str] = []
    monkeypatch.setattr(sys.stdout, "write", written.append)
    run(settings("side_by_side=2"), Fake())
    assert len(lines := [text for text in written if text]) > len(CELLS)
    assert all(text.count("\n") == 1 and text.endswith("\n") for text in lines)
    monkeypatch.undo()
    slowly = ["sh", "-c", "printf one; sleep 0.5; echo ' line'; printf another"]
    Children().run(slowly, settings().folder / "log", {}, "#1")
    assert capsys.readouterr().out == "#1 one line\n#1 another\n"


def test_a_run_that_fails_does_not_stop_the_others(settings: Callable[..., StudySettings]) -> None:
    fake = Fake(failing="meanflow_restore_3")
    with pytest.raises(JobFailedError, match="meanflow_restore_3 ended with exit code 2: error: it failed"):
        run(settings(), fake)
    assert fake.commands == [command for command in ALL if command != "evaluate.py meanflow_restore_3"]
    with pytest.raises(JobFailedError, match="judge ended"):
        run(settings("name=other"), Fake(failing="judge"))


def test_a_study_of_which_nothing_has_begun_ends_with_what_failed(
    settings: Callable[..., StudySettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_command, "read_settings", lambda arguments: settings())

    def build(settings: StudySettings) -> StudyRunner:
        runner = StudyRunner(settings)
        runner._children = Fake(failing="tokenizer")  # after the judge
        return runner

    monkeypatch.setattr(study_command, "StudyRunner", build)
    with pytest.raises(JobFailedError, match="tokenizer ended with exit code 2"):
        study_command.study([])


def test_what_cannot_be_fair_is_refused(settings: Callable[..., StudySettings]) -> None:
    with pytest.raises(
        UserError, match=r"judge_seconds=300 is too little for one validation: judge makes 3 .*; give 4e\+02"
    ):
        run(settings(), Fake(seconds_per_step=100.0))
    with pytest.raises(UserError, match="regression_restore_4 has 2,000,000 parameters and .* within 5%"):
        run(settings("name=odd"), Fake(odd="regression_restore_4"))


def test_a_budget_that_is_too_small_is_told_before_a_training_and_may_be_mended(
    settings: Callable[..., StudySettings],
) -> None:
    fake = Fake(seconds_per_step=100.0)
    with pytest.raises(UserError, match="is too little for one validation"):
        run(settings(), fake)
    assert not [command for command in fake.commands if not command.startswith("timing")]
    fake = Fake()
    run(settings("budget.judge_seconds=900"), fake)
    assert fake.commands == ALL  # what was measured for other settings is measured again


@pytest.mark.parametrize(
    ("study", "override", "gone"),
    [
        ("truth", "~study.data.mixture", 1),
        ("scenes", "~study.paradigms.ddpm", 4),
        ("scenes", "~study.tasks.inpaint", 2),
    ],
)
def test_what_was_taken_away_is_no_longer_predicted(
    study: str, override: str, gone: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"study={study}", "budget=coffee"]
    whole, fewer = read_settings(command), read_settings([*command, override])
    assert len(whole.predictions) - len(fewer.predictions) == gone
    name = override.rpartition(".")[2]
    assert capsys.readouterr().out.count(f"without {name} nothing is predicted of: ") == gone
    assert not [
        p for p in fewer.predictions if name in (p.above.paradigm, p.above.data, p.above.task, p.below.paradigm)
    ]


def test_a_prediction_about_what_no_study_has_is_refused() -> None:
    side = "{paradigm: meanfow, task: restore, output: mean}"
    typo = f"study.predictions=[{{claim: a, metric: psnr_pooled, above: {side}, below: {{value: 1}}}}]"
    with pytest.raises(
        UserError, match="names cell meanfow restore, which the study does not run: did you mean meanflow"
    ):
        planned_runs(read_settings([*[o for o in SMALL if "predictions" not in o], typo]))


def test_the_folder_of_other_settings_is_refused(settings: Callable[..., StudySettings]) -> None:
    run(settings(), Fake())
    with pytest.raises(UserError, match=r"belongs to a study with other settings \(budget.seconds is 99 and was 240\)"):
        StudyRunner(settings("budget.seconds=99"))
    StudyRunner(settings("side_by_side=2"))
    study = StudyRunner(settings())
    with RunFolder(settings().folder).locked(), pytest.raises(UserError, match="is being run by another process"):
        study.run()
    (settings().folder / NAME).unlink()
    with pytest.raises(UserError, match="holds something else than a study"):
        StudyRunner(settings())


TINY = ["trainer.accelerator=cpu", "network.dim=16", "network.depth=1", "network.num_heads=2"]
KEPT = [
    "data.num_train=64", "data.num_val=4", "data.num_test=6", "data.eval_batch_size=6", "data.global_batch_size=8",
    "callbacks.calibration.num_images=4", "callbacks.calibration.num_samples=2", "callbacks.checkpoint.every_n_steps=10",
    "callbacks.steps_grid.num_images=1", "callbacks.image_grid.num_images=2",
]  # fmt: skip


def quoted(values: list[str]) -> str:
    return "[" + ",".join(f"'{value}'" for value in values) + "]"


def real_study(output: Path) -> list[str]:
    """The command of a study of two small runs and a further evaluation, on data that are drawn in no time."""
    meanflow = ["experiment=meanflow_scenes", *TINY]
    rows = {"paradigms.meanflow": meanflow, "baselines.regression": [*meanflow, "optimizer=adamw"]}
    return [
        "study.py", "study=truth", "budget=coffee", "name=tiny", f"output={output}", "~study.data.mixture",
        *(f"~study.{key}" for key in ("tasks.generate", "tasks.inpaint", "paradigms.ddpm", "paradigms.maskgit")),
        *(f"study.{row}.overrides={quoted(overrides)}" for row, overrides in rows.items()),
        "study.paradigms.meanflow.evaluations.restore=['sampler.num_steps=2']", "study.predictions=null",
        "budget.seconds=2", "budget.validations=2", f"budget.settings={quoted(KEPT)}",
    ]  # fmt: skip


def kill_all_of_it(run: Run) -> None:
    """End a study with SIGKILL, and with it what it has started, which leads groups of its own."""
    run.kill()
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with suppress(ProcessLookupError):
            if os.getsid(pid) == run.process.pid:
                os.kill(pid, signal.SIGKILL)


def numbers(folder: Path) -> tuple[dict[str, dict], list[dict[str, str]]]:
    """All metrics of a study, and its table without what was timed."""
    metrics = {str(path.relative_to(folder)): read_json(path)["metrics"] for path in folder.rglob("metrics.json")}
    with (folder / "tiny.csv").open() as file:
        rows = [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]
    return metrics, rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twice_it_ends_with_the_same_numbers(tmp_path: Path) -> None:
    Run(tmp_path / "whole.log", *real_study(tmp_path / "whole"), forks=True).finished()
    whole, killed = tmp_path / "whole" / "tiny", tmp_path / "killed" / "tiny"
    study = read_study(whole)
    assert study.study == "truth"
    assert {each.run for each in study.runs} == {"meanflow_restore", "regression_restore"}
    assert (whole / "tiny.html").exists()
    study.write(killed)  # with its steps: another measurement of the speed would be another study
    draw, command = random.Random(0), real_study(tmp_path / "killed")
    for number, end in enumerate((kill_all_of_it, Run.kill)):  # the second leaves its runs to save and end
        run = Run(tmp_path / "killed.log", *command, forks=True)
        waited = killed / ("meanflow_restore/checkpoints/last.ckpt", "meanflow_restore/metrics.json")[number]
        run.until(waited.exists)
        time.sleep(draw.uniform(0, 0.5))
        end(run)
    output = Run(tmp_path / "killed.log", *command, forks=True).finished()
    assert "meanflow_restore: finished before, not run again" in output
    assert "images/s" not in output  # nothing was timed again
    assert len(read_json(killed / "meanflow_restore" / "run.json")["resumed_at_steps"]) > 0
    assert numbers(killed) == numbers(whole)
    assert len(numbers(whole)[0]) == 3  # two runs, a further evaluation
