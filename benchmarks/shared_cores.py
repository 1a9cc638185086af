"""What a training run keeps of its speed beside busy processes, by number of threads and by how OpenMP's threads wait.

``python benchmarks/shared_cores.py`` prints a table of images/s of the default network, and of ratios to the first setting on
the machine alone, all measured in turn in one run of about four minutes on two cores. The machine must be quiet.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from training_step import bare_step, prepared

from files.cores import usable_cores
from launch.record import hardware

SMALL_DATA = ["data.num_train=64", "data.num_val=8", "data.num_test=8"]
WARM_UP_STEPS = 3
BUSY = "while True: pass"


@dataclass
class Setting:
    """A number of threads and a way to wait, as environment variables, and what was measured with them by busy processes."""

    variables: dict[str, str]
    rates: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The variables as they stand before a command."""
        return " ".join(f"{key}={value}" for key, value in self.variables.items())

    def rate(self, busy: int) -> float | None:
        """Mean of the rates beside so many busy processes."""
        rates = self.rates.get(busy)
        return sum(rates) / len(rates) if rates else None


def work() -> None:
    """Make steps for as many seconds as each line of the input says, and print images/s."""
    module, batch, optimizer = prepared("meanflow_dit", SMALL_DATA)
    step = partial(bare_step, module, batch, optimizer, lambda b, r: module.loss(b, r).loss)
    for number in range(WARM_UP_STEPS):
        step(number)
    print("ready", flush=True)
    for line in sys.stdin:
        begin, images = time.perf_counter(), 0
        while time.perf_counter() - begin < float(line):
            step(images)
            images += len(batch.image)
        print(images / (time.perf_counter() - begin), flush=True)


@contextmanager
def process(*command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python with environment variables; it ends with the context."""
    started = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, **variables},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def ask(worker: subprocess.Popen[str], line: str = "") -> str:
    """Give a worker a line and return its answer."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    if line:
        worker.stdin.write(f"{line}\n")
        worker.stdin.flush()
    return worker.stdout.readline()


def main() -> None:
    """Measure and print."""
    cores = usable_cores()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({cores, max(1, cores - 1), 1}, reverse=True))
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2 * cores])
    parser.add_argument(
        "--spin", type=int, nargs="*", default=[3000, 10_000, 30_000], help="beside at most one busy process"
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    settings = [Setting({"OMP_NUM_THREADS": str(threads)}) for threads in options.threads]
    most = settings[0].variables
    waits = [{"OMP_WAIT_POLICY": "PASSIVE"}, *({"GOMP_SPINCOUNT": str(count)} for count in options.spin)]
    settings[1:1] = [Setting({**most, **wait}) for wait in waits]
    with ExitStack() as stack:
        workers = []
        for setting in settings:
            worker = stack.enter_context(process(__file__, "--worker", **setting.variables))
            assert ask(worker) == "ready\n", setting.name
            workers.append(worker)
        for _ in range(options.rounds):
            for busy in options.busy:
                with ExitStack() as others:
                    for _ in range(busy):
                        others.enter_context(process("-c", BUSY))
                    time.sleep(0.5)
                    for setting, worker in zip(settings, workers, strict=True):
                        if busy <= 1 or "GOMP_SPINCOUNT" not in setting.variables:
                            rate = float(ask(worker, str(options.seconds)))
                            setting.rates.setdefault(busy, []).append(rate)
    print_table(settings, options.busy)


def print_table(settings: list[Setting], busy: list[int]) -> None:
    """Print images/s and the ratio to the first setting beside the fewest busy processes."""
    base = settings[0].rate(busy[0])
    assert base
    machine = hardware(torch.device("cpu"))["processor"]
    print(f"{usable_cores()} cores, {machine}, torch {torch.__version__}; images/s (ratio to the first)\n")
    print(f"| | {' | '.join(f'beside {count} busy' if count else 'alone' for count in busy)} |")
    print(f"|---|{'---:|' * len(busy)}")
    for setting in settings:
        rates = [setting.rate(count) for count in busy]
        cells = ["" if rate is None else f"{rate:.0f} ({rate / base:.2f})" for rate in rates]
        print(f"| `{setting.name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
