"""Images a second of whole trainings on one GPU, and the memory that they take: ``python benchmarks/gpu.py``.

Each row is the loop of ``train.py`` as ``trainer=gpu`` runs it: data, degradation, EMA, logging, guards and progress. Ways to
train one thing differ in ``trainer.precision`` and ``compile``; their ratios are to the first. Prints the first table of
``results/gpu.md``, row by row, the dear ones last.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from itertools import product

import torch
from training_step import full_loop

from launch.record import git_revision, hardware, hardware_text

PRECISIONS = ("32-true", "bf16-mixed")

# What is trained, and its batch.
TRAININGS = {
    "meanflow_dit": 32,
    "regression_dit": 32,
    "regression_dit network=rrdb_tiny network.width=48 network.growth=24": 32,
    "regression_dit network=swinir_tiny network.dim=72": 32,
    "ddpm_scenes": 32,
    "ddpm_iclevr_large data=scenes64": 128,
    "meanflow_dit network=dit_small": 512,
    "meanflow_dit network=dit_base data=scenes64": 256,
}


def row(name: str, batch: int, precision: str, compiled: bool, steps: int, warmup: int) -> tuple[float, float]:
    """Return seconds of a step and MiB of the GPU's memory."""
    experiment, *own = name.split()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    how = [f"data.global_batch_size={batch}", f"trainer.precision={precision}", f"compile={str(compiled).lower()}"]
    lean = ["trainer=gpu", "callbacks.progress=null", "classifier=null"]
    seconds = full_loop(experiment, [*lean, *own, *how], steps, warmup)
    return seconds, torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=15)
    parser.add_argument("--compiled", action="store_true", help="compiled steps too; a minute or more each")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    print(f"{hardware_text(hardware(torch.device('cuda')))}, torch {torch.__version__}, commit {git_revision()}\n")
    print("| | batch | precision | compiled | ms a step | images/s | ratio | GPU memory, MiB |")
    print("|---|---:|---|---|---:|---:|---:|---:|")
    for name, batch in TRAININGS.items():
        first = None
        for compiled, precision in product((False, True) if options.compiled else (False,), PRECISIONS):
            seconds, memory = row(name, batch, precision, compiled, options.steps, options.warmup)
            first = first or seconds
            cells = (
                f"`{name}`", batch, precision, "yes" if compiled else "no", f"{1000 * seconds:.1f}",
                f"{batch / seconds:,.0f}", f"{first / seconds:.2f}", f"{memory:,.0f}",
            )  # fmt: skip
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
