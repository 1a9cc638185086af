"""Lay runs side by side on one page: ``python compare.py runs='outputs/**'``."""

from __future__ import annotations

import sys

from launch.compare.command import compare
from launch.errors import reported

USAGE = """Usage: python compare.py runs=PATTERNS [by=KEYS] [metrics=METRICS] [name=NAME] [output=DIR]

Reads run folders and everything in their evaluations/ and writes DIR/NAME.html, one file that needs no network, and
DIR/NAME.csv: metrics with their spread over seeds, quality against network calls and against seconds, validation curves,
images of the same inputs side by side, costs, the settings in which the runs differ, and what failed or is unfinished.
Results of different test images, degradations or kinds of weights come into tables of their own.

  runs     folders or glob patterns, with commas between them; ** is any depth; write quotes, so that the shell leaves it alone
  by       config keys that tell rows of an experiment apart, such as objective, network.dim or sampler.num_steps; all else is
           averaged over; by default the keys in which the runs differ, seeds left out
  metrics  what to show and draw, such as psnr,ssim; by default the leading ones
  output   outputs/comparisons by default

  python compare.py runs='outputs/**'
  python compare.py runs='outputs/sweeps/lr/*' by=optimizer.lr metrics=psnr_hole
  python compare.py runs=ONE_RUN,ANOTHER_RUN name=side_by_side"""


def start() -> None:
    """Run the command line of this process."""
    with reported():
        compare(sys.argv[1:], USAGE)


if __name__ == "__main__":
    start()
