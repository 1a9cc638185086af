"""The cores of a machine: whether other processes keep them from a training run."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

LOOK_SECONDS = 10.0  # of counted steps between two looks
LOOKS = 3  # in a row that must agree before anything is said
SLOW = 0.6  # of the run's best rate
TAKEN_WHERE_SLOW = (
    0.2  # cores that others take: enough to be the cause of a rate that fell, as threads wait for the slowest
)
TAKEN_PER_THREAD = 0.15  # enough by itself, where the run was never alone and has no better rate


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class CoreTimes:
    """What the system has counted for this process at one moment, in seconds.

    Attributes:
        now: The time.
        computed: Time on a core, of all threads.
        waited: By thread, the time that it was ready to run and had no core.
    """

    now: float
    computed: float
    waited: dict[str, float]


def core_times() -> CoreTimes | None:
    """Read the counters of this process.

    Returns:
        The counters; None where the system has none (they are Linux's, ``/proc/PID/task/TID/schedstat``).
    """
    waited = {}
    with suppress(FileNotFoundError):
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # the thread has ended, or the kernel does not count
                waited[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return CoreTimes(time.monotonic(), time.process_time(), waited) if waited else None


def cores_taken(before: CoreTimes, after: CoreTimes) -> float:
    """Return how many cores others took while threads of this process waited for them, as a mean over a time.

    Threads of one process that wait for each other keep its cores busy; only what it waited for and did not use counts.

    Args:
        before: Counters at the start.
        after: Counters at the end.

    Returns:
        From 0 to the number of usable cores.
    """
    seconds = max(after.now - before.now, 1e-9)
    waited = sum(max(0.0, value - before.waited.get(thread, 0.0)) for thread, value in after.waited.items())
    unused = usable_cores() * seconds - (after.computed - before.computed)
    return max(0.0, min(waited, unused)) / seconds


class CoreWatch:
    """Says once that a run is slow because other processes take its cores, and which setting helps.

    OpenMP's threads meet at the end of each operation and wait for each other busily: a thread without a core holds up the
    others, which burn theirs. So a run loses far more than what it has to share. Nothing is changed: the bits of a run
    depend on the number of threads.

    Args:
        device: Kind of device that trains, ``cpu`` or another.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._images, self._seconds = 0, 0.0
        self._best, self._num_bad = 0.0, 0
        self._told = False
        self._times = core_times()

    def count(self, images: int, seconds: float) -> str | None:
        """Take in a step of training; look at the counters now and then.

        Args:
            images: Images of the step.
            seconds: Its duration.

        Returns:
            What is to be said, once; else None.
        """
        if self._told or self._times is None:
            return None
        self._images += images
        self._seconds += seconds
        if self._seconds < LOOK_SECONDS:
            return None
        rate, before, after = self._images / self._seconds, self._times, core_times()
        self._images, self._seconds, self._times = 0, 0.0, after
        if after is None:
            return None
        self._best = max(self._best, rate)
        taken = cores_taken(before, after)
        is_slow = rate < SLOW * self._best and taken >= TAKEN_WHERE_SLOW
        is_bad = is_slow or taken >= TAKEN_PER_THREAD * torch.get_num_threads()
        self._num_bad = self._num_bad + 1 if is_bad else 0
        self._told = self._num_bad == LOOKS
        if not self._told:
            return None
        used = (after.computed - before.computed) / (after.now - before.now)
        better = f" where this run has made {self._best:.0f}" if is_slow else ""
        return (
            f"{rate:.0f} images/s{better}: other processes take {taken:.1f} of the {usable_cores()} cores while its "
            f"threads wait for them.{self._advice(used)}"
        )

    def _advice(self, used: float) -> str:
        """Say what helps a run that gets so many cores."""
        fewer = max(1, int(used))
        if self.device != "cpu" or fewer >= torch.get_num_threads():
            return ""
        passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
        return (
            f" Started with OMP_NUM_THREADS={fewer} it keeps more of its speed; a resumed run ends with the same bits only on "
            f"as many threads as before{'' if passive else ', where OMP_WAIT_POLICY=PASSIVE helps'} (docs/shared_machines.md)."
        )
