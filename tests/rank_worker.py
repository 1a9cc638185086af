"""A pair of ranks that runs several small jobs one after another, without starting Python for each."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import composing
import torch.distributed as dist
from helpers import as_if_killed, composed
from processes import PATIENCE, context

from launch.commands.train import train
from launch.errors import reported
from launch.run_folder import RunFolder

RANKS = 2


def run_on_two_ranks(jobs: list[dict[str, Any]], folder: Path) -> None:
    """Run jobs on a pair of processes.

    A job is {"folder": FOLDER, "arguments": [...]}, and "resume": OTHER to continue, in its folder, another one from its
    checkpoint before the last, as if it had been killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"NODE_RANK": "0", "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    logs = [folder / f"rank{rank}.log" for rank in range(RANKS)]
    processes = [
        context.Process(target=_run, args=(jobs, {**ranks, "LOCAL_RANK": str(rank)}, str(log)), daemon=True)
        for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [0, 0], "\n".join(log.read_text() for log in logs)
    finally:
        for process in processes:
            process.kill()


def _run(jobs: list[dict[str, Any]], environment: dict[str, str], log: str) -> None:
    os.environ.update(environment)
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    composing.remember()
    for job in jobs:
        run = RunFolder(Path(job["folder"]))
        if "resume" in job and environment["LOCAL_RANK"] == "0":
            as_if_killed(Path(job["resume"]), run.path)
        if "resume" in job:
            dist.barrier()
        with reported():
            config = composed(run.path, job["arguments"])
            config.resume = str(run.path) if job.get("resume") else None
            train(run, config, job["arguments"])
        dist.barrier()  # the next job may look for what rank 0 has written
