"""Mean brightness of samples against the data, with and without zero terminal SNR (arXiv 2305.08891).

    python benchmarks/zero_terminal_snr.py

Flat images of a few dark shades, so that the exact denoiser is known: the posterior mean is a softmax over the shades. No
training, so every difference is the schedule's. Prints a table and draws benchmarks/results/zero_terminal_snr.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # also where the project is not installed

from generative.denoiser import Denoiser  # noqa: E402
from generative.randomness import StepRandomness, generator_for  # noqa: E402
from generative.samplers import DDIM  # noqa: E402
from generative.samplers.timesteps import Spacing  # noqa: E402
from generative.schedules import NoiseSchedule  # noqa: E402
from generative.types import Condition  # noqa: E402

BRIGHTNESS = (-0.9, -0.6, -0.3)  # the data: flat images of these shades, equally many of each
BATCH_SIZE = 10  # small batches stay in the processor's cache
SETTINGS: dict[str, tuple[NoiseSchedule, Spacing]] = {
    "linear, leading": (NoiseSchedule(), "leading"),
    "linear, trailing": (NoiseSchedule(), "trailing"),
    "linear + zero SNR, trailing": (NoiseSchedule(zero_terminal_snr=True), "trailing"),
    "cosine, trailing": (NoiseSchedule("cosine"), "trailing"),
    "cosine + zero SNR, trailing": (NoiseSchedule("cosine", zero_terminal_snr=True), "trailing"),
}


class FlatImages:
    """The exact denoiser of equally frequent flat images."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def __call__(self, z_BCHW: Tensor, times_B1: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """Return E[x | z]: log q(z | x) depends on z through its mean alone, up to what all shades share."""
        timestep_B = (times_B1[:, 0] * self.schedule.num_timesteps).round().long() - 1
        a, s = self.schedule.signal(timestep_B)[:, 0, 0], self.schedule.noise_level(timestep_B)[:, 0, 0]
        shade_K = torch.tensor(BRIGHTNESS)
        logits_BK = a * shade_K * (z_BCHW.mean((1, 2, 3))[:, None] - a * shade_K / 2) * z_BCHW[0].numel() / s**2
        mean_B1 = (logits_BK.softmax(1) * shade_K).sum(1, keepdim=True)
        return (mean_B1[:, :, None, None].expand_as(z_BCHW),)


@torch.inference_mode()
def sampled_brightness(schedule: NoiseSchedule, spacing: Spacing, num_steps: int, num_images: int, size: int) -> Tensor:
    """Return the mean brightness of each of some samples, from the same noise for every schedule."""
    denoiser = Denoiser(FlatImages(schedule), schedule, "image")
    brightness = []
    for start in range(0, num_images, BATCH_SIZE):
        count = min(BATCH_SIZE, num_images - start)
        randomness = StepRandomness(generator_for(0, "zero_terminal_snr", start), count)
        sample = DDIM(num_steps, spacing)(denoiser, randomness.normal(3, size, size), Condition(), randomness)
        brightness.append(sample.mean((1, 2, 3)))
    return torch.cat(brightness)


def shares(brightness_B: Tensor) -> list[float]:
    """Return the share of samples nearest to each shade of the data."""
    nearest = (brightness_B[:, None] - torch.tensor(BRIGHTNESS)).abs().argmin(1)
    return (nearest.bincount(minlength=len(BRIGHTNESS)) / len(brightness_B)).tolist()


def draw(results: dict[str, Tensor], path: Path, caption: str) -> None:
    """Draw the shares of the shades and the mean brightness, one row per setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    mean, std = torch.tensor(BRIGHTNESS).mean().item(), torch.tensor(BRIGHTNESS).std(unbiased=False).item()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, 4.4), sharey=True, width_ratios=[1.1, 1], layout="constrained"
    )
    names = ["data", *results]
    greys = [str(0.1 + 0.45 * (shade + 0.9) / 0.6) for shade in BRIGHTNESS]
    for row, name in enumerate(names):
        parts = shares(results[name]) if name in results else [1 / len(BRIGHTNESS)] * len(BRIGHTNESS)
        edge = 0.0
        for part, grey in zip(parts, greys, strict=True):
            left.barh(row, part, left=edge, height=0.66, color=grey, edgecolor="white")
            box = {"facecolor": grey, "edgecolor": "none", "pad": 1.5}  # keeps the dashed line out of the number
            left.text(edge + part / 2, row, f"{part:.0%}", ha="center", va="center", color="white", bbox=box)
            edge += part
        middle, spread = (results[name].mean().item(), results[name].std().item()) if name in results else (mean, std)
        good = abs(middle - mean) < 0.02
        color = "black" if name == "data" else "tab:blue" if good else "tab:red"
        right.errorbar(middle, row, xerr=spread, fmt="o", color=color, capsize=4, markersize=7)
        right.text(-0.17, row, f"{middle:+.3f} ± {spread:.3f}", va="center", color=color)
    for axis, edge in ((left, 1 / 3), (left, 2 / 3), (right, mean)):
        axis.axvline(edge, color="tab:orange", linestyle="--", linewidth=1.4)
    left.set(xlim=(0, 1), xlabel="share of samples (dashed: of the data)")
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_title("Shares of the shades " + ", ".join(f"{shade:g}" for shade in BRIGHTNESS), fontsize=11)
    right.set(xlim=(-1, 0.12), xlabel="brightness, -1 black, 0 medium (dashed: mean of the data)")
    right.set_xticks([-1, -0.8, -0.6, -0.4, -0.2, 0])
    right.set_title("Mean brightness ± standard deviation over samples", fontsize=11)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(caption, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Sample, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=250)
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "zero_terminal_snr.png")
    options = parser.parse_args()

    results = {
        name: sampled_brightness(schedule, spacing, options.num_steps, options.num_images, options.size)
        for name, (schedule, spacing) in SETTINGS.items()
    }
    data = torch.tensor(BRIGHTNESS)
    caption = (
        f"{options.num_images} samples of flat 3x{options.size}x{options.size} images, exact denoiser, "
        f"DDIM with {options.num_steps} steps"
    )
    print(f"{caption}; shades {', '.join(map(str, BRIGHTNESS))}\n")
    print("| schedule and spacing | brightness, mean | std | shares of the shades |\n|---|---:|---:|---|")
    third = ", ".join(["0.333"] * len(data))
    print(f"| data | {data.mean():+.3f} | {data.std(unbiased=False):.3f} | {third} |")
    for name, brightness in results.items():
        parts = ", ".join(f"{share:.3f}" for share in shares(brightness))
        print(f"| {name} | {brightness.mean():+.3f} | {brightness.std():.3f} | {parts} |")
    draw(results, options.output, caption)
    print(f"\n{options.output}")


if __name__ == "__main__":
    main()
