"""Speed of the data path: generating the digits, fetching batches of indices, completing them on the device.

    python benchmarks/data.py [--batch-size 128] [--seconds 2] [--degradation mixed] [--device cpu]

Prints a markdown table. The goal is 20,000 images/s or more for ``mixed`` on 32x32 images on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # also where the project is not installed

from datamodules.embedded.digits import DigitsDataModule, DigitStyle, generate_digits  # noqa: E402
from datamodules.store import ImageStore  # noqa: E402
from generative.degradations import Degradation  # noqa: E402
from generative.randomness import StepRandomness, generator_for  # noqa: E402


def load_degradation(preset: str) -> Degradation:
    """Build a preset of ``conf/degradation``."""
    with initialize_config_dir(str(ROOT / "conf" / "degradation"), version_base="1.3"):
        return instantiate(compose(preset), _convert_="all")


def images_per_second(run: Callable[[], object], batch_size: int, seconds: float, device: torch.device) -> float:
    """Return the median speed of a function that handles one batch per call, over a time of ``seconds``."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(3):
        timed()
    durations: list[float] = []
    while sum(durations) < seconds:
        durations.append(timed())
    return batch_size / sorted(durations)[len(durations) // 2]


def crops_of_photos(batch_size: int) -> Callable[[], object]:
    """Return a function that cuts a batch of 64x64 RGB crops from photos of many sizes."""
    generator = generator_for(0, "photos")
    heights, widths = torch.randint(100, 300, (2, 200), generator=generator)
    flat = torch.randint(256, (int((3 * heights * widths).sum()),), generator=generator).to(torch.uint8)
    store = ImageStore.ragged(flat, heights, widths, channels=3)
    steps = itertools.count()

    def cut() -> torch.Tensor:
        draws = generator_for(0, "crop", next(steps))
        indices = torch.randint(len(store), (batch_size,), generator=draws)
        return store.gather(indices, 64, StepRandomness(draws, batch_size))

    return cut


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement")
    parser.add_argument("--degradation", default="mixed", help="a file of conf/degradation")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)

    start = time.perf_counter()
    tensors = generate_digits(DigitStyle())
    generation = time.perf_counter() - start
    num_digits = sum(len(images) for name, images in tensors.items() if name.endswith("images"))

    def speed(run: Callable[[], object]) -> float:
        return images_per_second(run, options.batch_size, options.seconds, device)

    digits = DigitsDataModule(
        global_batch_size=options.batch_size, degradation=load_degradation(options.degradation), resident=False
    )
    raw_batches = iter(digits.train_dataloader())
    raw = next(raw_batches).to(device)
    clean = digits.on_after_batch_transfer(raw, 0).image
    steps = itertools.count()

    def degrade() -> object:
        draws = StepRandomness(generator_for(0, "degradation", next(steps), device=device), len(clean))
        return digits.degradation(clean, draws, training=True) if digits.degradation else None

    rows = [
        ("generating the digits, once", num_digits / generation, f"{num_digits:,} images in {generation:.1f} s"),
        ("fetching a batch of digits", speed(lambda: next(raw_batches)), "32x32 grey, uint8"),
        (
            "fetching random crops of photos",
            speed(crops_of_photos(options.batch_size)),
            "64x64 RGB of 100 to 300 pixels",
        ),
        (f"degradation `{options.degradation}`", speed(degrade), "32x32 grey; goal 20,000 on two cores"),
        (
            "fetching and completing a training batch",
            speed(lambda: digits.on_after_batch_transfer(next(raw_batches).to(device), 0)),
            "all that a training step waits for",
        ),
    ]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"batches of {options.batch_size}\n")
    print("| what | images/s | |\n|---|---:|---|")
    for what, images, note in rows:
        print(f"| {what} | {images:,.0f} | {note} |")


if __name__ == "__main__":
    main()
