"""How well a run fills holes, beside what needs no training, on the same masks of the same test images.

``python benchmarks/inpainting.py RUN [overrides]`` prints a row for each output of the run and for: the image's mean colour of
its known pixels in the hole, and OpenCV's Navier-Stokes diffusion.
Needs the ``dev`` extras.
"""

from __future__ import annotations

import sys

import torch

from generative.baselines import diffused, mean_colour
from generative.metrics import RestorationMetrics
from launch import build
from launch.command_line import run_arguments
from launch.errors import reported

COLUMNS = ("psnr", "psnr_hole", "ssim")
BATCH_SIZE = 250


@torch.inference_mode()
def main(arguments: list[str]) -> None:
    """Measure and print.

    Args:
        arguments: Run folder and overrides.
    """
    run, config, _, _ = run_arguments([f"run={arguments[0]}", *arguments[1:]], {}, __doc__ or "")
    module = build.build_module(config)
    data = build.build_datamodule(config)
    build.load_weights(module, run, run.load_checkpoint(), "ema")
    module.eval()
    metrics = RestorationMetrics()
    metrics.reset()
    for index in torch.arange(len(data.splits.test)).split(BATCH_SIZE):
        batch = data.batch("test", index)
        degraded, validity = batch.observed()
        metrics.update(
            {
                "degraded": degraded,
                "mean colour": mean_colour(degraded, validity),
                "OpenCV Navier-Stokes": diffused(degraded, validity),
                **module.evaluation_step(batch)["outputs"],
            },
            batch,
        )
    values = metrics.compute()
    print(f"{metrics.num_images} test images, degradation {config.degradation._target_}, run {run.path}")
    print("| | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS))
    for output in dict.fromkeys(name.split("/", 1)[1] for name in values):
        print(f"| {output} | " + " | ".join(f"{values[f'{column}/{output}']:.3f}" for column in COLUMNS) + " |")


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
