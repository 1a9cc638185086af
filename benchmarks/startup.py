"""What a newcomer waits for: seconds to the first training step, and with ``--full`` the whole default run and its memory.

``python benchmarks/startup.py [--full] [overrides]``; the caches are warmed by a first start that is not counted.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start(overrides: list[str], folder: str) -> subprocess.Popen[str]:
    """Start ``train.py`` with its output in a pipe."""
    command = [sys.executable, str(ROOT / "train.py"), "experiment=meanflow_dit", f"hydra.run.dir={folder}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def seconds_to_first_step(overrides: list[str]) -> float:
    """Return seconds from the start of the process to the line of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        process = start(["trainer.max_steps=20", *overrides], folder)  # a line is printed each 5 %: at every step
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 1/"):
                elapsed = time.perf_counter() - begin
                process.kill()
                process.wait()
                return elapsed
    raise RuntimeError("the run ended before its first step")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    seconds_to_first_step(arguments.overrides)
    times = [seconds_to_first_step(arguments.overrides) for _ in range(arguments.rounds)]
    print(
        f"first training step after {statistics.median(times):.1f} s ({min(times):.1f}-{max(times):.1f}), warm caches"
    )
    if arguments.full:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            output, _ = start(arguments.overrides, folder).communicate()
            minutes = (time.perf_counter() - begin) / 60
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(output[-2500:])
        print(f"whole run: {minutes:.1f} minutes, {peak:.2f} GiB at the peak")


if __name__ == "__main__":
    main()
