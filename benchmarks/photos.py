"""Denoising of whole grey photographs, as papers report it: trained runs beside what needs no training, and published figures.

    python benchmarks/photos.py --pictures SET12 [--runs DIR ...] [--sigmas 15 25 50]

All see the same noise, Gaussian and not clipped, drawn from the number of the file as in ``evaluate.py pictures=``; results are
rounded to 8 bits before they are measured. Prints the mean PSNR and SSIM over the files and the processor seconds of a picture.
The strengths of what needs no training were chosen on six photographs of train400: they are told sigma, runs are not.
Needs the ``dev`` extras; a row of BM3D where the package ``bm3d`` (for non-commercial use) is installed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where the project is not installed

import triptych
from files.images import read_picture
from files.listing import list_images
from files.pixels import from_levels, seen, to_levels
from generative.degradations import GaussianNoise
from generative.metrics import RestorationMetrics
from generative.randomness import IndexRandomness
from generative.types import Batch
from launch.record import git_revision, hardware, hardware_text
from launch.use.restorer import Request, Restorer, tiling_of

# Mean PSNR on Set12 in dB, at sigma 15, 25 and 50.
PUBLISHED = {
    "BM3D (published with DnCNN)": (32.37, 29.97, 26.72),
    "DnCNN-S, one network a sigma (Zhang et al. 2017, published)": (32.86, 30.44, 27.18),
    "DnCNN-B, blind (published)": (32.68, 30.36, 27.21),
}
PUBLISHED_SIGMAS = (15, 25, 50)
Method = Callable[[np.ndarray, float], np.ndarray]  # (H, W) in [0, 1] and the noise's standard deviation there
Answer = Callable[[int, Tensor], Tensor]  # number of the file and its (1, 1, H, W) noisy picture in [-1, 1]


def tv(noisy: np.ndarray, std: float) -> np.ndarray:
    """Total variation, scikit-image's."""
    return denoise_tv_chambolle(noisy, weight=0.8 * std)


def nlm_skimage(noisy: np.ndarray, std: float) -> np.ndarray:
    """Non-local means, scikit-image's."""
    return denoise_nl_means(noisy, patch_size=7, patch_distance=10, h=0.6 * std, sigma=std, fast_mode=True)


def nlm_opencv(noisy: np.ndarray, std: float) -> np.ndarray:
    """Non-local means, OpenCV's, which takes 8 bits."""
    levels = (noisy.clip(0, 1) * 255).round().astype(np.uint8)
    made = cv2.fastNlMeansDenoising(levels, None, h=float(255 * std), templateWindowSize=5, searchWindowSize=21)
    return made / 255.0


def methods() -> dict[str, Method]:
    """Return what needs no training and is installed."""
    found: dict[str, Method] = {
        "noisy": lambda noisy, _: noisy,
        "total variation (scikit-image)": tv,
        "non-local means (scikit-image)": nlm_skimage,
        "non-local means (OpenCV)": nlm_opencv,
    }
    if find_spec("bm3d") is None:
        return found
    import bm3d

    return found | {"BM3D (package bm3d)": lambda noisy, std: bm3d.bm3d(noisy, sigma_psd=std)}


def by_method(method: Method, std: float) -> Answer:
    """Let what needs no training answer."""
    return lambda number, noisy: torch.from_numpy(method((noisy[0, 0].numpy() + 1) / 2, std))[None, None] * 2 - 1


def by_run(folder: Path) -> Answer:
    """Let a run answer, by ``mean`` where it has it."""
    model = triptych.load(folder, device="cpu")
    module = model.module
    assert isinstance(module, triptych.GenerativeModule), f"{folder} does not restore"
    result, tiling = "mean" if "mean" in module.outputs else None, tiling_of(module, model.image_size)
    restorer = Restorer(module, None, model.image_size, model.channels, result, module.device, tiling)
    return lambda number, noisy: restorer.one(Request(number, noisy, None, (noisy.shape[2], noisy.shape[3])))


def measured(answer: Answer, clean: list[Tensor], noisy: list[Tensor]) -> list[str]:
    """Return mean PSNR, mean SSIM and processor seconds a picture, as cells."""
    metrics, seconds = RestorationMetrics(), 0.0
    for number, (image, degraded) in enumerate(zip(clean, noisy, strict=True)):
        begin = time.process_time()
        made = answer(number, degraded)
        seconds += time.process_time() - begin
        levels = from_levels(to_levels(made.float().clamp(-1, 1)))
        metrics.update({"x": levels}, Batch(image, torch.tensor([number])))
    found = metrics.compute()
    return [f"{found['psnr/x']:.2f}", f"{found['ssim/x']:.4f}", f"{seconds / len(clean):.2f}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--sigmas", type=float, nargs="+", default=[15.0, 25.0, 50.0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    files = list_images(options.pictures).images
    clean = [seen(read_picture(options.pictures / file), 1) for file in files]
    runs = {folder.name: by_run(folder) for folder in options.runs}
    rows: dict[str, list[str]] = {}
    for sigma in options.sigmas:
        noise = GaussianNoise(sigma=sigma, clip=False)
        draws = [IndexRandomness.for_images(0, "degradation/generate", torch.tensor([n])) for n in range(len(clean))]
        noisy = [noise(image, draw).image for image, draw in zip(clean, draws, strict=True)]
        for name, answer in ({name: by_method(each, sigma / 255) for name, each in methods().items()} | runs).items():
            rows.setdefault(name, []).extend(cells := measured(answer, clean, noisy))
            print(f"sigma {sigma:g}, {name}: {' '.join(cells)}", file=sys.stderr)
    machine = f"{hardware_text(hardware(torch.device('cpu')))}, {options.threads} thread(s)"
    print(f"{len(files)} pictures of {options.pictures.name}; {machine}; commit {git_revision()}\n")
    heads = [f"PSNR, sigma {sigma:g} | SSIM | s" for sigma in options.sigmas]
    print("| | " + " | ".join(heads) + " |\n|---|" + "---:|" * (3 * len(heads)))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(row) + " |")
    for name, figures in PUBLISHED.items():
        known = dict(zip(PUBLISHED_SIGMAS, figures, strict=True))
        cells = [f"{known[int(sigma)]:.2f} | | " if sigma in known else " | | " for sigma in options.sigmas]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
