"""Export a run's network as a folder to hand around: ``python export.py run=DIR [weights=ema|raw] [output=FOLDER]``."""

from __future__ import annotations

import sys
from pathlib import Path

from launch.command_line import run_arguments
from launch.errors import UserError, reported
from launch.trained_parts import TRAINED
from launch.use.export import export

USAGE = """Usage: python export.py run=DIR [weights=ema|raw] [output=FOLDER]

Writes DIR/export/, or FOLDER: model.safetensors (the network alone), config.yaml, README.md (a model card), the grid of test
images, and a folder for each trained network that it needs, such as its tokenizer. triptych.load(FOLDER) gives the module back.

  weights=raw       the raw instead of the averaged weights
  tokenizer=DIR     where the tokenizer of the run lies by now; likewise space=DIR, its autoencoder"""
DEFAULTS: dict[str, str | None] = {"weights": "ema", "output": None}


def main(arguments: list[str]) -> None:
    """Export one run.

    Raises:
        UserError: A key is unknown, or the run cannot be exported.
    """
    run, config, own, overrides = run_arguments(arguments, DEFAULTS, USAGE)
    changed = [override for override in overrides if override.partition("=")[0] not in TRAINED]
    if changed:
        raise UserError(f"a run is exported as it was trained: leave out {' '.join(changed)}.")
    output = Path(own["output"]).expanduser() if own["output"] else run.path / "export"
    print(f"exported to {export(run, config, str(own['weights']), output)}")


def start() -> None:
    """Run the command line of this process."""
    with reported():
        main(sys.argv[1:])


if __name__ == "__main__":
    start()
