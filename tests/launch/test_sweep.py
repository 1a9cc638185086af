"""Sweeps: each job once, in its own process and folder; interrupted, preempted, failed, several at once, searched."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from helpers import ROOT, TINY, finished, read_json, script
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from processes import Run

from launch import threads
from launch.compose import compose_config
from launch.errors import JobFailedError, UserError
from launch.names import SWEPT_VARIABLE, job_folder
from launch.run_folder import RunFolder, write_json
from launch.start import keep_config
from launch.sweep import gpus
from launch.sweep import jobs as sweep
from launch.sweep.arguments import checked_sweep
from launch.sweep.report import report, status, sweep_reported
from launch.sweep.search import check_direction

# Jobs that are started and not forked would draw all of the digits.
FAST = ["data=gauss", "callbacks.calibration=null"]
COMMON = ["experiment=regression_dit", *TINY, *FAST]


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWEPT_VARIABLE, "seed")


def jobs_by_seed(folder: Path) -> dict[str, sweep.SweepJob]:
    return {
        next(o.removeprefix("seed=") for o in job.overrides if o.startswith("seed=")): job
        for job in sweep.jobs_of(folder)
    }


@pytest.mark.slow
def test_three_jobs_interrupted_and_started_again(tmp_path: Path) -> None:
    command = ["-m", *COMMON, "seed=1,2,3", "sweep=three", f"paths.outputs={tmp_path}", "trainer.max_steps=30"]
    command += ["callbacks.checkpoint.every_n_steps=3", "trainer.val_check_interval=30"]
    folder = tmp_path / "sweeps" / "three"
    first = Run(tmp_path / "log", "train.py", *command, forks=True)
    first.until(lambda: list(folder.glob("1_*/checkpoints/last.ckpt")))
    first.send(signal.SIGTERM, group=False)
    output = first.finished(128 + signal.SIGTERM)
    assert "2 jobs: 1 finished, 1 interrupted" in output
    assert "stopped by SIGTERM" in output
    stopped = jobs_by_seed(folder)["2"]
    assert "Stopped by SIGTERM at step" in (stopped.run.path / "train.log").read_text()
    step = stopped.run.load_checkpoint()["global_step"]
    assert 0 < step < 30

    output = Run(tmp_path / "log2", "train.py", *command, forks=True).finished()
    assert output.count("finished before, not run again") == 1
    assert "sweep of 3 jobs: 3 finished" in output
    jobs = jobs_by_seed(folder)
    assert sorted(jobs) == list("123")
    assert sorted(path.name.split("_")[0] for path in folder.glob("*_seed=*")) == list("012")
    assert [len(jobs[seed].attempts) for seed in "123"] == [1, 2, 1]
    assert stopped.run.record["resumed_at_steps"] == [step]
    assert all(job.run.record["seed"] == int(seed) for seed, job in jobs.items())
    with (folder / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["output"] == "mean"]
    assert [row["seed"] for row in rows] == list("123")
    for row in rows:
        assert float(row["psnr"]) == read_json(folder / row["folder"] / "metrics.json")["metrics"]["psnr/mean"]
    assert len({row["psnr"] for row in rows}) == 3


@pytest.mark.slow
def test_preempted_job_is_queued_again_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    command = ["-m", "hydra/launcher=submitit_local", *COMMON, "seed=1", "sweep=p", f"paths.outputs={tmp_path}"]
    command += ["trainer.max_steps=150", "trainer.val_check_interval=150", "callbacks.checkpoint.every_n_steps=5"]
    folder = tmp_path / "sweeps" / "p"
    process = Run(tmp_path / "log", "train.py", *command)
    process.until(lambda: list(folder.glob("0_*/checkpoints/last.ckpt")))
    (controller,) = (path.name for path in (folder / ".submitit").iterdir() if path.name.isdigit())
    (task,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)  # what SLURM sends to a job that is preempted or soon out of time
    output = process.finished()
    (job,) = sweep.jobs_of(folder)
    assert job.finished, output
    assert [attempt["exit_code"] for attempt in job.attempts] == [128 + signal.SIGTERM, 0]
    assert len(job.run.record["resumed_at_steps"]) == 1
    assert "sweep of 1 job: 1 finished" in output


@pytest.mark.slow
def test_search_with_two_jobs_at_once(tmp_path: Path) -> None:
    for name in ("hydra_joblib_launcher", "hydra_optuna_sweeper"):
        pytest.importorskip(f"hydra_plugins.{name}")
    command = ["-m", "experiment=meanflow_dit", "search=meanflow", *TINY, *FAST, "sweep=o", f"paths.outputs={tmp_path}"]
    command += [
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.n_trials=2",
    ]
    own = {**dict.fromkeys(threads.VARIABLES), "LOKY_MAX_CPU_COUNT": "2"}
    output = finished(script("train.py", *command, env=own))  # not forked: joblib's workers would outlive it
    assert "sweep of 2 jobs: 2 finished" in output
    jobs = sweep.jobs_of(tmp_path / "sweeps" / "o")
    assert [job.run.record["hardware"]["threads"] for job in jobs] == [1, 1]  # half of two cores each
    (begin_a, end_a), (begin_b, end_b) = ((job.attempts[0]["started"], job.attempts[0]["ended"]) for job in jobs)
    assert max(begin_a, begin_b) <= min(end_a, end_b)  # at the same time
    assert all(job.run.path.name.startswith(f"{job.number}_optimizer.lr=") for job in jobs)
    study = pytest.importorskip("optuna").load_study(study_name="o", storage=f"sqlite:///{tmp_path}/sweeps/o/optuna.db")
    assert [trial.value for trial in study.trials] == [sweep.optimized_value(job, "val/psnr/sample") for job in jobs]


def test_search_goes_on_with_what_was_interrupted(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from launch.sweep.search import continued

    sweeper = compose_config(
        ["experiment=meanflow_dit", "search=meanflow", f"hydra.sweep.dir={tmp_path}", "hydra.sweeper.n_trials=3"],
        with_hydra=True,
    ).hydra.sweeper
    assert continued(sweeper, tmp_path) == ["hydra.sweeper.n_trials=3"]
    study = optuna.load_study(study_name="default", storage=f"sqlite:///{tmp_path}/optuna.db")
    done, interrupted = (study.ask() for _ in range(2))
    study.tell(done, done.suggest_float("x", 0, 1))
    x = interrupted.suggest_float("x", 0, 1)
    for _ in range(2):  # also when it was interrupted again before its first trial
        assert continued(sweeper, tmp_path) == ["hydra.sweeper.n_trials=2"]
    again, new = (study.ask() for _ in range(2))
    assert again.suggest_float("x", 0, 1) == x
    assert new.suggest_float("x", 0, 1) not in (x, done.params["x"])
    for trial in (again, new):
        study.tell(trial, 0.0)
    with pytest.raises(UserError, match=r"has its 3 trials \(best .*x=.*set a larger hydra.sweeper.n_trials"):
        continued(sweeper, tmp_path)


def test_each_paradigm_has_a_search(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    for experiment, search in (("meanflow_dit", "meanflow"), ("ddpm_scenes", "ddpm"), ("maskgit_scenes", "maskgit")):
        arguments = ["-m", f"experiment={experiment}", f"search={search}", f"paths.outputs={tmp_path}"]
        sweeper = checked_sweep(arguments[1:]).sweeper
        plain = [f"{key}=1" for key in sweeper.params]
        config = compose_config([*arguments[1:], *plain])  # the keys of the space are keys of the config
        assert config.optimized_metric.startswith("val/")


FAKE_JOB = """
import json, pathlib, sys
folder = pathlib.Path(next(a for a in sys.argv if a.startswith("hydra.run.dir=")).partition("=")[2].strip("'"))
assert "resume=auto" in sys.argv
if "seed=2" in sys.argv:
    print("before")
    raise RuntimeError("no luck")
if "seed=3" in sys.argv:
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "run.json").write_text(json.dumps({"finished": True, "step": 7, "overrides": [], "name": "fake"}))
(folder / ".hydra").mkdir()
(folder / ".hydra" / "config.yaml").write_text("optimized_metric: null")
(folder / "metrics.json").write_text(json.dumps({"metrics": {"psnr/mean": 20.0 + len(folder.name)}, "record": {}}))
(folder / "metrics.csv").write_text("step,val/psnr/mean\\n3,19.0\\n7,\\n")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run jobs with a script that takes no time, as Hydra's launcher calls them."""
    path = tmp_path / "fake.py"
    path.write_text(FAKE_JOB)
    monkeypatch.setattr(sweep, "program", lambda name: [sys.executable, str(path)])
    monkeypatch.setenv(SWEPT_VARIABLE, "seed")
    before = HydraConfig.instance().cfg

    def run(number: int, *overrides: str) -> float | None:
        config = compose_config(["experiment=meanflow_dit", *overrides], with_hydra=True)
        folder = tmp_path / "sweep" / job_folder(number, ["experiment=meanflow_dit", *overrides])
        folder.mkdir(parents=True, exist_ok=True)
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        return sweep.run_job(config)

    yield run
    HydraConfig.instance().cfg = before


def test_a_failed_job_is_told_and_the_others_go_on(
    fake: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fake(0, "seed=1", "optimized_metric=val/psnr/mean") == 19.0
    with pytest.raises(
        JobFailedError, match=r"#1 seed=2 ended with exit code 1: RuntimeError: no luck \(.*train.log\)"
    ):
        fake(1, "seed=2")
    with pytest.raises(JobFailedError, match=r"#2 seed=3 ended with exit code 137"):  # killed, as without memory
        fake(2, "seed=3")
    with pytest.raises(UserError, match=r"optimized_metric=val/x was not logged in .*: choose one of val/psnr/mean"):
        fake(3, "seed=4", "optimized_metric=val/x")
    jobs = sweep.jobs_of(tmp_path / "sweep")
    assert [status(job) for job in jobs] == ["finished", "failed", "interrupted", "finished"]
    log = (jobs[1].run.path / "train.log").read_text()
    assert log.startswith("before")
    assert "Traceback" in log
    capfd.readouterr()
    report(tmp_path / "sweep")
    printed = capfd.readouterr().out
    assert "sweep of 4 jobs: 2 finished, 1 failed, 1 interrupted" in printed
    assert "#1 failed: RuntimeError: no luck" in printed
    with (tmp_path / "sweep" / "results.csv").open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["1", "4"]


def test_a_finished_job_is_known_under_another_number(fake: Any, tmp_path: Path) -> None:
    fake(0, "seed=1")
    fake(5, "seed=1")  # the grid has grown
    (job,) = sweep.jobs_of(tmp_path / "sweep")
    assert (job.number, len(job.attempts)) == (0, 1)
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == [job.run.path.name]
    with pytest.raises(JobFailedError):
        fake(1, "seed=2")
    with pytest.raises(JobFailedError):
        fake(1, "seed=2")
    assert len(sweep.jobs_of(tmp_path / "sweep")[1].attempts) == 2  # a failed one is tried again


def test_what_is_said_for_this_time_reaches_each_job(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(job: sweep.SweepJob, command: list[str], variables: dict[str, str]) -> tuple[int, None]:
        assert "data_changed=accept" not in job.overrides  # it is no other job
        commands.append(command)
        return 0, None

    monkeypatch.setattr(sweep, "_run", run)
    fake(0, "seed=1", "data_changed=accept")
    assert "data_changed=accept" in commands[0]


def test_a_damaged_file_of_one_job_does_not_end_the_report(fake: Any, tmp_path: Path) -> None:
    fake(0, "seed=1")
    (job,) = sweep.jobs_of(tmp_path / "sweep")
    (job.run.path / "metrics.csv").write_text("step,val/psnr/mean\nx,1\n")
    with pytest.warns(UserWarning, match=r"is passed over: .*metrics\.csv is damaged .* remove it to continue without"):
        report(tmp_path / "sweep")
    assert (tmp_path / "sweep" / "results.csv").exists()


JOB = "from launch.sweep.parent import end_with_parent; import time; end_with_parent(); print(1, flush=True); time.sleep(60)"


def run_a_job(folder: Path) -> tuple[int, int | None]:
    command = [sys.executable, "-c", f"import os; os.chdir({str(ROOT)!r}); {JOB}"]
    return sweep._run(sweep.SweepJob(0, RunFolder(folder), []), command, {})


def has_begun(folder: Path) -> bool:
    return (folder / "train.log").exists() and bool((folder / "train.log").read_text())


def test_a_signal_is_handed_to_the_job(tmp_path: Path) -> None:
    def send() -> None:
        while not has_begun(tmp_path):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    Thread(target=send).start()
    assert run_a_job(tmp_path) == (128 + signal.SIGTERM, signal.SIGINT)  # the job got SIGTERM, once
    assert signal.getsignal(signal.SIGINT) == before
    assert read_json(tmp_path / "job.json")["attempts"][0]["exit_code"] == 128 + signal.SIGTERM


def test_a_job_does_not_outlive_its_sweep(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=run_a_job, args=(tmp_path,))
    process.start()
    while not has_begun(tmp_path):
        time.sleep(0.01)
    (job,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{job}").exists() and "Z" not in Path(f"/proc/{job}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert read_json(tmp_path / "job.json")["attempts"][0]["exit_code"] is None  # nobody was left to note it


def test_one_gpu_for_each_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    trainer = DictConfig({"accelerator": "gpu", "devices": 1})
    with gpus.one_free_gpu(trainer) as first, gpus.one_free_gpu(trainer) as second:
        assert first == {"CUDA_VISIBLE_DEVICES": "4"}
        assert second == {"CUDA_VISIBLE_DEVICES": "7"}

        class Waited(Exception):
            pass

        def wait(seconds: float) -> None:
            raise Waited

        monkeypatch.setattr(gpus.time, "sleep", wait)
        with pytest.raises(Waited), gpus.one_free_gpu(trainer):
            pass
    with gpus.one_free_gpu(trainer) as again:
        assert again == first
    for other in ({"accelerator": "cpu", "devices": 1}, {"accelerator": "gpu", "devices": 2}):
        with gpus.one_free_gpu(DictConfig(other)) as none:
            assert none == {}


def test_what_is_wrong_with_a_sweep_is_said_before_its_first_job() -> None:
    good = ["experiment=meanflow_dit", "seed=1,2"]
    checked_sweep(good)
    for bad, message in (
        (["seed=1,two"], "seed=two must be a whole number"),
        (["objective=flow_matching,meanflow"], "objective=meanflow does not exist: did you mean"),
        (["optimizer.lrr=1,2"], "optimizer.lrr is no key of this config"),
        (["resume=auto"], "leave out resume= with -m"),
        (
            ["hydra/launcher=kubernetes"],
            "hydra/launcher=kubernetes is not installed: pip install 'triptych\\[sweeps\\]'",
        ),
        (["seed=1,"], "is not of the form"),
        (["callbacks.ema={decay:0.5},{decays:0.5}"], r"callbacks.ema.decays is no key .* did you mean decay\?"),
        (["trainer.max_steps=2,2.5"], "trainer.max_steps=2.5 must be a whole number"),
        (["network={dim:32,depth:1},{dim:x}", "network.depth=2"], "network.dim=x must be a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            checked_sweep([good[0], *bad])
    with pytest.raises(UserError, match="say what to train"):
        checked_sweep(good[1:])


def test_a_search_for_the_worst_value_is_refused() -> None:
    for metric, wrong, right in (("val/mse/mean", "maximize", "minimize"), ("val/psnr/mean", "minimize", "maximize")):
        with pytest.raises(UserError, match=f"worst optimized_metric={metric}: add hydra.sweeper.direction={right}"):
            check_direction(OmegaConf.create({"direction": wrong}), metric)
        check_direction(OmegaConf.create({"direction": right}), metric)
    check_direction(OmegaConf.create({"direction": "maximize"}), "val/a_metric_of_mine/mean")
    check_direction(OmegaConf.create({}), None)


def test_a_sweep_is_run_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    hydra = checked_sweep(["experiment=meanflow_dit", "seed=1,2", "sweep=x", f"paths.outputs={tmp_path}"])
    with sweep_reported(hydra) as given:
        assert given == []
        with pytest.raises(UserError, match=r"sweeps/x is being run by another process: .* sweep=NAME"):
            sweep_reported(hydra).__enter__()


def test_names_of_jobs_begin_with_what_is_their_own(swept: None) -> None:
    fixed = [f"key{number}=value" for number in range(40)]
    names = {job_folder(number, [*fixed, f"seed={number}", "sweep=x"]) for number in range(3)}
    assert {name[:9] for name in names} == {"0_seed=0,", "1_seed=1,", "2_seed=2,"}
    assert all(len(name) <= 150 and "sweep" not in name for name in names)
    assert job_folder(0, ["experiment=a", "seed=1"]) == "0_seed=1,experiment=a"


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    keep_config(run, DictConfig({"a": 1}), ["a=1"])
    keep_config(run, DictConfig({"a": 2}), ["a=2"])  # ended before its first checkpoint
    assert (run.config().a, run.overrides()) == (2, ["a=2"])
    run.checkpoint.parent.mkdir()
    run.checkpoint.write_bytes(b"")
    write_json(run.record_path, {})
    with pytest.raises(UserError, match=r"holds a run already: continue it with resume="):
        keep_config(run, DictConfig({"a": 3}), ["a=3"])
    assert run.config().a == 2
