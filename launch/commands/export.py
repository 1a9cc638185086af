"""Export a run's network as a folder to hand around: ``python export.py run=DIR [weights=ema|raw] [output=FOLDER]``."""

from __future__ import annotations

import sys
from typing import Any, cast

from hydra.utils import get_class

from generative.export import Precision
from launch.command_line import run_arguments, whole_number
from launch.errors import UserError, reported
from launch.paths import typed_path
from launch.trained_parts import TRAINED
from launch.use.export import export
from launch.use.tensor_network import Format

USAGE = """Usage: python export.py run=DIR [weights=ema|raw] [precision=float32|float16|int8] [images=N] [format=FORMAT]
       [output=FOLDER]

Writes DIR/export/, or FOLDER: model.safetensors (the network alone), config.yaml, README.md (a model card), the grid of test
images, and a folder for each trained network that it needs, such as its tokenizer. triptych.load(FOLDER) gives the module back.

  weights=raw       the raw instead of the averaged weights
  precision=float16 half the size, or int8, a quarter; the weights are rounded, and read as float32
  format=onnx       also network.onnx, for other programs: tensors in, tensors out; or torch_export, network.pt2. Each is
                    compared with the network, to 1e-4; onnx needs pip install 'triptych[onnx]'
  images=N          also the first N of the run's single test images, for python demo.py
  tokenizer=DIR     where the tokenizer of the run lies by now; likewise space=DIR, its autoencoder"""
DEFAULTS: dict[str, str | None] = {
    "weights": None, "precision": "float32", "images": "0", "format": "weights", "output": None,
}  # fmt: skip
MAX_IMAGES = 1000


def main(arguments: list[str]) -> None:
    """Export one run.

    Raises:
        UserError: A key is unknown, or the run cannot be exported.
    """
    run, config, own, overrides = run_arguments(arguments, DEFAULTS, USAGE)
    module: Any = get_class(config.module._target_)
    without = {f"module.{key}" for key in module.training_only}  # an export has none of it
    changed = [override for override in overrides if override.partition("=")[0] not in {*TRAINED, *without}]
    if changed:
        raise UserError(f"a run is exported as it was trained: leave out {' '.join(changed)}.")
    output = typed_path("output", own["output"]) if own["output"] else run.path / "export"
    precision, kind = cast(Precision, own["precision"]), cast(Format, own["format"])
    images = whole_number(own, "images", MAX_IMAGES, 0)
    print(f"exported to {export(run, config, own['weights'], output, precision, images, kind)}")


def start() -> None:
    """Run the command line of this process."""
    with reported():
        main(sys.argv[1:])


if __name__ == "__main__":
    start()
