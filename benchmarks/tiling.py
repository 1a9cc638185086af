"""What pictures larger than the network cost in tiles: time per pixel, memory, and how much the joints are seen.

    python benchmarks/tiling.py --run DIR [--result mean] [--sides 64 256 1024] [--overlaps 0 4 8 16]

Restores square pictures, noise on a smooth field, with a trained restorer, and prints for each side the processor seconds of a
pixel of the result over those of a pixel of a batch of the network's size, and the same of a pixel that goes through the
network: what tiles share is computed twice. Memory is the most that the process has held so far, so sides should ascend. The
seam is the mean step between neighbouring pixels where two tiles meet over that everywhere else: 1 where joints are not seen.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where the project is not installed

import triptych
from files.images import Picture
from files.pixels import to_pixels
from generative.tiling import Tiling
from launch.record import hardware
from launch.use.restorer import Restorer

ROUNDS = 3


def picture(side: int, channels: int) -> Picture:
    """Draw noise on a smooth field."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels, max(2, side // 16), max(2, side // 16), generator=generator) * 1.6 - 0.8
    field = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)[0]
    return Picture(to_pixels(field + 0.1 * torch.randn(field.shape, generator=generator), np.uint8))


def seam(image_CHW: Tensor, starts: list[int], size: int) -> float:
    """Return the mean step across the middles of the overlaps over the mean step elsewhere."""
    steps_W = image_CHW.diff(dim=2).abs().mean(dim=(0, 1))
    joints = {(left + size + right) // 2 - 1 for left, right in pairwise(starts)}
    at_joint = torch.tensor([column in joints for column in range(len(steps_W))])
    return float(steps_W[at_joint].mean() / steps_W[~at_joint].mean()) if joints else 1.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a restorer")
    parser.add_argument("--result", default="mean")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--overlaps", type=int, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = triptych.load(options.run, device="cpu")
    size, module = model.image_size, model.module
    assert isinstance(module, triptych.GenerativeModule), "a run that restores"
    overlaps = options.overlaps or [0, size // 8, size // 4, size // 2]
    print(f"{hardware(torch.device('cpu'))}; {options.run}, {options.result}, tiles of {size}x{size}\n")

    def restored(side: int, overlap: int) -> tuple[Tensor, float, Restorer]:
        tiling = Tiling(size, overlap)
        restorer = Restorer(module, None, size, model.channels, options.result, module.device, tiling)
        request = restorer.request(0, picture(side, model.channels), None)
        begin = time.process_time()
        image = restorer.restore_in_tiles(request)[0]
        return image, time.process_time() - begin, restorer

    restorer = restored(size, 0)[2]
    batch = [restorer.request(i, picture(size, model.channels), None) for i in range(64)]
    bare = []
    for _ in range(ROUNDS + 1):
        begin = time.process_time()
        restorer.restore(batch)
        bare.append((time.process_time() - begin) / (64 * size**2))
    per_pixel = min(bare[1:])
    print(
        "| side | overlap | s | time per pixel of the result, over a batch's | per pixel of the network | seam | peak MiB |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for side in options.sides:
        for overlap in overlaps:
            image, seconds, restorer = min(
                (restored(side, overlap) for _ in range(ROUNDS if side < 512 else 1)), key=lambda each: each[1]
            )
            assert restorer.tiling is not None
            through = restorer.tiling.number(side, side) * size**2
            starts = [start for start, _ in restorer.tiling.places(side)]
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            of_result, of_network = seconds / side**2 / per_pixel, seconds / through / per_pixel
            print(
                f"| {side} | {overlap} | {seconds:.2f} | {of_result:.2f} | {of_network:.2f} | {seam(image, starts, size):.2f} "
                f"| {memory:.0f} |"
            )


if __name__ == "__main__":
    main()
