"""One GPU per job where several jobs run on a machine at once."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from files.locks import locked

WAIT_SECONDS = 1.0


def visible_gpus() -> list[str]:
    """Return the identifiers of the GPUs that this process may use.

    Returns:
        Numbers or UUIDs, as in ``CUDA_VISIBLE_DEVICES``.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(number) for number in range(torch.cuda.device_count())]  # does not touch the devices


@contextmanager
def one_free_gpu(trainer: DictConfig) -> Iterator[dict[str, str]]:
    """Hold a GPU for a job that takes one, and wait for one where all are held.

    The locks are files of the machine: jobs of several sweeps do not meet on a GPU either. They go with the process.

    Args:
        trainer: The job's ``trainer`` config: a job on the CPU, on several devices or on chosen ones gets none.

    Yields:
        Environment variables for the job's process.
    """
    gpus = visible_gpus() if trainer.accelerator in ("auto", "gpu", "cuda") and trainer.devices == 1 else []
    if len(gpus) < 2:
        yield {}
        return
    while True:
        for gpu in gpus:
            path = Path(tempfile.gettempdir()) / f"triptych-gpu-{gpu}-{os.getuid()}.lock"
            with locked(path, wait=False) as is_free:
                if is_free:
                    yield {"CUDA_VISIBLE_DEVICES": gpu}
                    return
        time.sleep(WAIT_SECONDS)
