"""Evaluate a run again, also with other settings: ``python evaluate.py run=DIR [name=...] [weights=ema|raw] [overrides]``."""

from __future__ import annotations

import re
import sys

from launch import build
from launch.command_line import run_arguments
from launch.errors import reported
from launch.evaluation import print_result, run_test
from launch.run_folder import write_json

USAGE = """Usage: python evaluate.py run=DIR [name=NAME] [weights=ema|raw] [overrides]

Evaluates a run on the test images as the end of its training did, with the run's own config plus the overrides, and
writes DIR/evaluations/NAME/metrics.json and images. NAME is made from the overrides where it is not given.

  python evaluate.py run=DIR sampler.num_steps=16
  python evaluate.py run=DIR degradation=block_mask weights=raw name=raw_block"""
CALLBACKS = (
    "evaluation", "calibration", "classification", "generation", "label_accuracy", "image_grid", "denoising_grid", "progress",
)  # fmt: skip


def main(arguments: list[str]) -> None:
    """Evaluate.

    Args:
        arguments: The command line.
    """
    run, config, own, overrides = run_arguments(arguments, {"name": None, "weights": "ema"}, USAGE)
    weights = str(own["weights"])
    changes = overrides if weights == "ema" else [*overrides, f"weights={weights}"]
    name = own["name"] or re.sub(r"[^\w.=,+~-]+", "_", ",".join(changes))[:150] or "default"
    checkpoint = run.load_checkpoint()
    for key in list(config.callbacks):
        if key not in CALLBACKS:
            del config.callbacks[key]
    folder = run.path / "evaluations" / name
    trainer = build.build_trainer(config, folder, build.build_callbacks(config), False)
    module = build.build_module(config)
    datamodule = build.build_datamodule(config)
    build.load_weights(module, run, checkpoint, weights)
    result = run_test(trainer, module, datamodule, config, weights, checkpoint["global_step"])
    result["record"].update(run=str(run.path), overrides=overrides)
    write_json(folder / "metrics.json", result)
    print_result(result["metrics"], folder)


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
