"""What may befall a run: killed at any moment it continues and ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, read_json
from processes import Run, arguments, assert_same_run, end_all

from launch.run_folder import RunFolder

INTERVAL = 4  # steps between checkpoints
ACCUMULATED = "trainer.accumulate_grad_batches=2"  # a validation begins between two batches of a step
RECIPE = ["optimizer=muon", "objective.derivative=difference"]
INTERVALS_PER_KILL = 3  # a kill comes at most this many checkpoints after the start of its process


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    end_all()


def newest(folder: Path) -> tuple[int, int] | None:
    """Identify the newest checkpoint, without reading it."""
    try:
        state = (folder / "checkpoints" / "last.ckpt").stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns


def kill_at_random(run: Run, folder: Path, moment: str, start_seconds: float, draw: random.Random) -> None:
    """Kill a run while it starts, between two checkpoints, or while it writes one."""
    if moment == "start":
        moment_of_kill, before = time.monotonic() + draw.uniform(0, start_seconds), newest(folder)
        run.until(lambda: time.monotonic() > moment_of_kill or newest(folder) != before)
        run.kill()
        return
    for _ in range(draw.randint(1, INTERVALS_PER_KILL - 1)):
        before = newest(folder)
        run.until(lambda before=before: newest(folder) not in (None, before))
    if moment == "write":
        temporary = str(folder / "checkpoints" / ".last.ckpt.tmp")
        run.until(lambda: os.path.exists(temporary), pause=0.0002)  # noqa: PTH110 - Path.exists takes ten times as long
        time.sleep(draw.uniform(0, 0.002))
    else:
        time.sleep(draw.uniform(0, 0.1))
    run.kill()


def killed_again_and_again(folder: Path, trainer: str, moments: list[str]) -> list[str]:
    """Kill a run at each of the moments, continuing with ``resume=auto``; compare its end with a run left alone.

    Returns:
        What was found after each kill.
    """
    steps = INTERVAL * (INTERVALS_PER_KILL * len(moments) + 2) + 1
    common = ["train.py", *arguments("meanflow_dit", steps, INTERVAL, trainer), ACCUMULATED, *RECIPE]
    common.append(f"paths.outputs={folder}")
    whole, killed, draw, found = folder / "whole", folder / "killed", random.Random(0), []
    begin = time.monotonic()
    run = Run(folder / "whole.log", *common, f"hydra.run.dir={whole}", forks=True)
    run.until(lambda: newest(whole))
    start_seconds = time.monotonic() - begin
    run.finished()
    for moment in moments:
        run = Run(folder / "killed.log", *common, f"hydra.run.dir={killed}", "resume=auto", forks=True)
        kill_at_random(run, killed, moment, start_seconds, draw)
        names = sorted(path.name for path in (killed / "checkpoints").glob("*"))
        step = RunFolder(killed).load_checkpoint()["global_step"] if {"last.ckpt", "previous.ckpt"} & {*names} else 0
        found.append(f"{moment}: step {step}, {' '.join(names)}")
        print(found[-1])  # noqa: T201 - shown with pytest -s
        if moment == "torn" and len(names) > 1:
            os.truncate(killed / "checkpoints" / "last.ckpt", 100_000)
    output = Run(folder / "killed.log", *common, f"hydra.run.dir={killed}", "resume=auto", forks=True).finished()
    assert output.count("last.ckpt is passed over: it is cut off") >= moments.count("torn")
    assert read_json(killed / "run.json")["finished"]
    assert not list((killed / "checkpoints").glob(".*"))
    assert_same_run(whole, killed)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Kills while the run starts, steps, and writes a checkpoint, and checkpoints torn; the full count is ``--kills=20``."""
    moments = ["write", "torn", "start", "steps", "write"]
    found = killed_again_and_again(
        tmp_path, "cpu", [moments[i % len(moments)] for i in range(request.config.getoption("kills"))]
    )
    assert any(".last.ckpt.tmp" in text for text in found), found  # killed in the middle of a write


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_with_two_ranks_it_ends_with_the_same_bits(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A fifth as many kills, of both processes at once; for less than five, the test of VQGAN's resume is enough."""
    num_kills = request.config.getoption("kills") // 5
    if num_kills == 0:
        pytest.skip("--kills is less than 5; tests/test_resume.py kills two ranks once")
    killed_again_and_again(tmp_path, "ddp_cpu", [["write", "steps"][i % 2] for i in range(num_kills)])


QUICK_WORD = "callbacks.progress.every_seconds=0.5"
PLAIN = "compile=false"  # steps without an end would earn it
GAUSS = "data=gauss"  # a process that is started and not forked would draw all of the digits
ENDLESS = ["train.py", *arguments("meanflow_dit", 100_000, 1000, "cpu"), QUICK_WORD, PLAIN, GAUSS]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP])  # the others: callbacks/test_checkpoint.py
def test_a_signal_saves_and_the_exit_code_says_so(number: int, tmp_path: Path) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests were started with nohup, as whose child a run goes on")
    folder = tmp_path / "run"
    run = Run(tmp_path / "log", *ENDLESS, f"hydra.run.dir={folder}")
    run.until(lambda: "images/s" in run.output)
    run.send(number)
    output = run.finished(128 + number)
    step = RunFolder(folder).load_checkpoint()["global_step"]
    assert f"Stopped by {number.name} at step {step}; saved {folder}/checkpoints/last.ckpt." in output
    assert "Traceback" not in output
    if number == signal.SIGUSR2:
        Run(tmp_path / "log", "train.py", f"resume={folder}", f"trainer.max_steps={step + 2}").finished()
        assert read_json(folder / "run.json")["step"] == step + 2


@pytest.mark.slow
def test_a_signal_before_the_first_step_is_one_sentence(tmp_path: Path) -> None:
    run = Run(tmp_path / "log", *ENDLESS, "data.num_train=1000000", f"hydra.run.dir={tmp_path / 'run'}")
    run.until(lambda: (tmp_path / "run" / ".lock").exists())  # the data are made now
    run.send(signal.SIGTERM)
    output = run.finished(128 + signal.SIGTERM)
    assert "Stopped by SIGTERM while no training step was running" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True], ids=["rank 0 alone", "the whole group"])
def test_two_ranks_stop_together(group: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run(
        tmp_path / "log",
        "train.py",
        *arguments("meanflow_dit", 100_000, 1000, "ddp_cpu"),
        QUICK_WORD,
        PLAIN,
        GAUSS,
        f"hydra.run.dir={folder}",
        forks=True,
    )
    run.until(lambda: "images/s" in run.output)
    run.send(signal.SIGTERM, group)
    output = run.finished(128 + signal.SIGTERM)
    step = RunFolder(folder).load_checkpoint()["global_step"]
    assert f"Stopped by SIGTERM at step {step}" in output
    assert "Traceback" not in output
    deadline = time.monotonic() + 20
    while not run.group_is_gone() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.group_is_gone()


@pytest.mark.slow
def test_a_rank_that_is_stopped_and_then_killed_is_named(tmp_path: Path) -> None:
    """The second rank is one as Lightning starts it."""
    folder = tmp_path / "run"
    own = [QUICK_WORD, PLAIN, GAUSS, "callbacks.rank_watch.wait_seconds=2", f"hydra.run.dir={folder}"]
    run = Run(tmp_path / "log", "train.py", *arguments("meanflow_dit", 100_000, 4, "ddp_cpu"), *own)
    run.until(lambda: newest(folder) and "images/s" in run.output)
    (second,) = map(int, Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split())
    os.kill(second, signal.SIGSTOP)
    run.until(lambda: "rank 1 is stopped" in run.output)
    os.kill(second, signal.SIGKILL)
    output = run.finished(3)
    step = RunFolder(folder).load_checkpoint()["global_step"]
    assert "rank 1 was ended by SIGKILL, as the system does where memory runs out" in output
    assert f"the last good checkpoint is {folder}/checkpoints/last.ckpt of step {step}" in output
    assert "Traceback" not in output
    assert "Traceback" in (folder / "error.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["a closed pipe", "a full disk"])
def test_output_that_nobody_takes_ends_the_run_saved(full: bool, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", Path("/dev/full") if full else tmp_path / "pipe"
    if not full:
        os.mkfifo(out)
    run = Run(tmp_path / "log", *ENDLESS, f"hydra.run.dir={folder}", out=out)
    if not full:
        with out.open() as lines:
            next(line for line in lines if line.startswith("step "))
    errors = run.finished(3 if full else 128 + signal.SIGPIPE)
    if full:  # the first word of a run is not taken already
        assert "Stopped because standard output takes no more while no training step was running" in errors
    else:
        step = RunFolder(folder).load_checkpoint()["global_step"]
        saved = f"at step {step}; saved {folder}/checkpoints/last.ckpt"
        assert f"Stopped because standard output takes no more {saved}" in errors
    assert f"standard output could not be written: {'No space left on device' if full else 'Broken pipe'}" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A real one: a small file system in a name space of its own, where the system lets an ordinary user make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1300k tmpfs {disk}"  # holds two checkpoints of 512 kB, not the third beside them
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    command = " ".join(
        [sys.executable, "train.py", *arguments("meanflow_dit", 60, 5, "cpu"), GAUSS, f"hydra.run.dir={disk}/run"]
    )
    script = (
        f"{mount} && {{ {command} > {tmp_path}/log 2>&1; echo $? > {tmp_path}/code; cp -r {disk}/run {tmp_path}/run; }}"
    )
    subprocess.run(["unshare", "-Urm", "sh", "-c", script], cwd=ROOT, check=True, timeout=200)
    output = (tmp_path / "log").read_text()
    checkpoint = RunFolder(tmp_path / "run").load_checkpoint()
    assert (tmp_path / "code").read_text().strip() == "3", output
    assert checkpoint["global_step"] == 10
    assert f"{disk}/run/checkpoints/last.ckpt could not be written: No space left on device" in output
    assert "MB needed are free" in output
    assert f"the last good checkpoint is {disk}/run/checkpoints/last.ckpt of step 10" in output
    assert f"resume={disk}/run" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
