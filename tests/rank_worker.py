"""One rank of a pair of test processes that runs several small jobs one after another, without starting Python for each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers import ROOT, composed

RANKS = 2


def run_on_two_ranks(jobs: list[dict[str, Any]], folder: Path) -> None:
    """Run jobs on a pair of processes.

    A job is {"folder": FOLDER, "arguments": [...]}, and "resume": true to go on in the folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    processes = []
    for rank in range(RANKS):
        ranks = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(RANKS)}
        environment = {**os.environ, **ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, str(path)],
                env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
        assert not any(process.returncode for process in processes), "\n".join(outputs)
    finally:
        for process in processes:
            process.kill()


def main(path: str) -> None:
    """Run the jobs of a file."""
    import torch.distributed as dist

    from launch.errors import reported
    from launch.run_folder import RunFolder
    from train import train

    for job in json.loads(Path(path).read_text()):
        run = RunFolder(Path(job["folder"]))
        with reported():
            config = composed(run.path, job["arguments"])
            config.resume = str(run.path) if job.get("resume") else None
            train(run, config, job["arguments"])
        dist.barrier()  # the next job may look for what rank 0 has written


if __name__ == "__main__":
    main(sys.argv[1])
