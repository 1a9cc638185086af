"""Threads of processes that share the cores of a machine: the ranks of a run, the jobs of a sweep."""

from __future__ import annotations

import os

import torch
from lightning import Trainer

from files.cores import usable_cores
from launch.run_folder import RunFolder, readable_record

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # torch reads both
CHOSEN_VARIABLE = "TRIPTYCH_THREADS_CHOSEN"  # in a sweep: whether its user has set the number


def training_threads(trainer: Trainer) -> int:
    """Return the number of threads that a rank trains with; several ranks on a machine share its cores.

    Args:
        trainer: The trainer. Where its ranks are processes of their own, Lightning gives each its share of the cores, unless
            OMP_NUM_THREADS is set.

    Returns:
        Threads of this process from the start of the fit.
    """
    if trainer.world_size == 1 or "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, usable_cores() // trainer.num_devices)


def note_choice() -> None:
    """Note, before a launcher starts the workers of a sweep, whether the user has set the number of threads.

    joblib sets the variables in its workers where they are not set: to the number of cores over that of jobs at once.
    """
    os.environ[CHOSEN_VARIABLE] = "1" if any(name in os.environ for name in VARIABLES) else ""


def job_threads(run: RunFolder, ranks: int) -> dict[str, str]:
    """Choose the number of threads of a sweep's job: the user's, else that of its start, else its share of the cores.

    Args:
        run: The job's run.
        ranks: Number of its ranks on this machine.

    Returns:
        Environment variables for the job's process.
    """
    if os.environ.get(CHOSEN_VARIABLE):
        return {}
    threads = (readable_record(run) or {}).get("hardware", {}).get("threads") if run.checkpoint.exists() else None
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        threads = max(1, int(os.environ["OMP_NUM_THREADS"]) // ranks)
    return {} if threads is None else dict.fromkeys(VARIABLES, str(threads))
