"""How well a run fills holes, beside what needs no training, on the same masks of the same test images.

``python benchmarks/inpainting.py RUN [overrides]`` prints a row for each output of the run and for: the image's mean colour of
its known pixels in the hole, and the two inpainting methods of OpenCV (Navier-Stokes diffusion and Telea's marching).
Needs the ``dev`` extras.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
import torch
from torch import Tensor

from generative.metrics import RestorationMetrics
from launch import build
from launch.command_line import run_arguments
from launch.errors import reported

INPAINT_RADIUS = 3  # px, of OpenCV's methods
COLUMNS = ("psnr", "psnr_hole", "ssim")
BATCH_SIZE = 250


def mean_colour(degraded_BCHW: Tensor, validity_B1HW: Tensor) -> Tensor:
    """Fill holes with the mean colour of the known pixels.

    Args:
        degraded_BCHW: (B, C, H, W) images in [-1, 1].
        validity_B1HW: (B, 1, H, W) map of the known pixels.

    Returns:
        (B, C, H, W) images.
    """
    known = (degraded_BCHW * validity_B1HW).sum((2, 3), keepdim=True) / validity_B1HW.sum((2, 3), keepdim=True)
    return torch.where(validity_B1HW > 0, degraded_BCHW, known)


def opencv(degraded_BCHW: Tensor, validity_B1HW: Tensor, method: int) -> Tensor:
    """Fill holes by OpenCV.

    Args:
        degraded_BCHW: (B, C, H, W) images in [-1, 1].
        validity_B1HW: (B, 1, H, W) map of the known pixels.
        method: ``cv2.INPAINT_NS`` or ``cv2.INPAINT_TELEA``.

    Returns:
        (B, C, H, W) images.
    """
    pixels = ((degraded_BCHW + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    holes = (validity_B1HW[:, 0] == 0).byte().numpy()
    filled = np.stack(
        [
            cv2.inpaint(np.ascontiguousarray(image), hole, INPAINT_RADIUS, method)
            for image, hole in zip(pixels, holes, strict=True)
        ]
    )
    filled = filled.reshape(pixels.shape)
    image = torch.from_numpy(filled).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.where(validity_B1HW > 0, degraded_BCHW, image)


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
                "OpenCV Navier-Stokes": opencv(degraded, validity, cv2.INPAINT_NS),
                "OpenCV Telea": opencv(degraded, validity, cv2.INPAINT_TELEA),
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
