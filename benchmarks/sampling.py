"""What samplers of diffusions cost over the bare network calls, and how few steps each of them needs.

    python benchmarks/sampling.py [--device cuda] [--batch-size 16] [--num-steps 10]
    python benchmarks/sampling.py --run DIR --classifier FILE [--seeds 4] [--scale 3.0]
    python benchmarks/sampling.py --run DIR DIR ... --classifier FILE [--seeds 4] [--steps 1 4 15]

The second form draws the label sets of a trained diffusion's data with each sampler at several step counts, judges the images
with a label classifier, and gives the images per second at the fewest steps whose label accuracy is within 0.01 of that
sampler's best. The third draws with several generators side by side, each with its own sampler and guidance, at its own number
of steps or at those given. Both draw with the EMA weights on the threads and device given; images per second are of processor
time, or of a GPU's time.

Prints ratios of medians measured in one run, bare loop and sampler in turn, because absolute times on a shared machine
drift. The network is dit_tiny on 3x32x32 images, 1.3 M parameters: on a larger one the same overhead weighs less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where the project is not installed

from generative.denoiser import Denoiser
from generative.judges.label_classifier import load_label_classifier
from generative.metrics.label_accuracy import label_scores, recognised_labels
from generative.networks import DiT
from generative.randomness import StepRandomness, generator_for
from generative.samplers import DDIM, Ancestral, DiffusionSampler, DPMSolverPP2M
from generative.schedules import NoiseSchedule
from generative.types import Batch, Condition
from launch import build
from launch.command_line import run_config
from launch.compose import apply_overrides
from launch.record import hardware
from launch.run_folder import RunFolder

MARGIN = 0.01  # of label accuracy: a step count this close to the sampler's best is enough


@dataclass(frozen=True)
class Point:
    """What a sampler reaches with a number of steps.

    Attributes:
        num_steps: Steps of the sampler.
        label_accuracy: Pooled label accuracy of its samples, in [0, 1].
        images_per_second: Speed.
    """

    num_steps: int
    label_accuracy: float
    images_per_second: float


def sufficient(points: Sequence[Point]) -> Point:
    """Return the point of fewest steps whose label accuracy is within ``MARGIN`` of the best."""
    best = max(point.label_accuracy for point in points)
    enough = [point for point in points if point.label_accuracy >= best - MARGIN]
    return min(enough, key=lambda point: point.num_steps)


def print_sufficient_steps(
    samplers: Mapping[str, Sequence[DiffusionSampler]], measure: Callable[[DiffusionSampler], Point]
) -> None:
    """Measure each sampler at some step counts; print the accuracies and the speed at the smallest sufficient count."""
    print("| sampler | label accuracy by steps | sufficient steps | images/s there |\n|---|---|---:|---:|")
    for name, versions in samplers.items():
        points = [measure(sampler) for sampler in versions]
        enough = sufficient(points)
        accuracies = ", ".join(f"{point.num_steps}: {point.label_accuracy:.3f}" for point in points)
        print(f"| {name} | {accuracies} | {enough.num_steps} | {enough.images_per_second:.1f} |")


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call: of the processor (not of waiting for its other users), or a GPU's wall-clock time."""
    if device.type == "cpu":
        begin = time.process_time()
        function()
        return time.process_time() - begin
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def bare_calls(network: DiT, noise_BCHW: Tensor, times_SB1: Tensor) -> Tensor:
    """Call the network once per step on the same state; nothing else."""
    for times_B1 in times_SB1:
        (output,) = network(noise_BCHW, times_B1, Condition())
    return output


@torch.inference_mode()
def print_overheads(samplers: dict[str, DiffusionSampler], batch_size: int, rounds: int, device: torch.device) -> None:
    """Print each sampler's time over that of its bare network calls, and what it takes around calls that cost nothing.

    The difference of two long times is uncertain on a busy machine; the time around free calls is not.
    """
    schedule = NoiseSchedule("cosine", zero_terminal_snr=True)
    network = DiT(image_size=32, in_channels=3, patch_size=4, dim=128, depth=4, num_heads=4).to(device).eval()
    randomness = StepRandomness(generator_for(0, "benchmark", device=device), batch_size)
    noise = randomness.normal(3, 32, 32)
    denoiser = Denoiser(network, schedule, "v")
    free = Denoiser(lambda z, times, condition: (noise,), schedule, "v")
    print(
        "| sampler | bare calls, ms per step | sampler, ms per step | ratio | sampler around free calls, ms per step | share |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, sampler in samplers.items():
        timesteps_S1 = torch.tensor(sampler.timesteps(schedule), device=device)[:, None].expand(-1, batch_size)
        times_SB1 = torch.stack([schedule.time(timestep_B)[:, None] for timestep_B in timesteps_S1])
        kinds = (
            partial(bare_calls, network, noise, times_SB1),
            partial(sampler, denoiser, noise, Condition(), randomness),
            partial(sampler, free, noise, Condition(), randomness),
        )
        repeats = [[seconds(kind, device) for kind in kinds] for _ in range(rounds + 2)][2:]  # the first two warm up
        bare, full, own = (1e3 * statistics.median(kind) / sampler.num_steps for kind in zip(*repeats, strict=True))
        print(f"| {name} | {bare:.2f} | {full:.2f} | {full / bare:.3f} | {own:.2f} | {own / bare:.1%} |")


STEP_COUNTS = {"DDIM": (5, 10, 20, 50), "DPM-Solver++ 2M": (5, 10, 20, 50), "ancestral": (20, 50, 100)}
MAKE_SAMPLER: dict[str, Callable[[int], DiffusionSampler]] = {
    "DDIM": DDIM, "DPM-Solver++ 2M": DPMSolverPP2M, "ancestral": Ancestral,
}  # fmt: skip


def label_accuracy_of(
    run_folder: str, classifier_file: str, num_seeds: int, overrides: Sequence[str], device: torch.device
) -> tuple[Any, Callable[[Any], Point]]:
    """Return what measures a sampler on a trained run.

    Args:
        run_folder: Folder of a run that draws images of labels.
        classifier_file: Checkpoint of its data's label classifier.
        num_seeds: Images per label set.
        overrides: Of its config.
        device: Where to draw.

    Returns:
        The run's module, and a function from a sampler to its point.
    """
    run = RunFolder.existing(run_folder, "run")
    config = apply_overrides(run_config(run), run.overrides(), list(overrides))
    module: Any = build.build_module(config)
    build.load_weights(module, run, run.load_checkpoint(), "ema")
    module.to(device).eval()
    data = build.build_datamodule(config)
    labels_RL = torch.cat([*data.label_sets.values()] * num_seeds).to(device)
    index_R = torch.arange(len(labels_RL))
    classifier = load_label_classifier(classifier_file).to(device)

    @torch.inference_mode()
    def measure(sampler: Any) -> Point:
        module.sampler = sampler
        recognised, spent = [], 0.0
        for rows in index_R.split(64):
            blank = torch.zeros(len(rows), data.channels, data.image_size, data.image_size, device=device)
            batch = Batch(blank, rows, labels=labels_RL[rows])
            randomness = module.evaluation_randomness(batch, "benchmark")
            drawn: list[Tensor] = []
            spent += seconds(lambda: drawn.append(module.sample(batch, randomness)["sample"]), device)  # noqa: B023
            recognised.append(recognised_labels(classifier(drawn[0]), labels_RL[rows]))
        pooled = label_scores(torch.cat(recognised), labels_RL).pooled
        return Point(sampler.num_steps, pooled, len(labels_RL) / spent)

    return module, measure


def print_generators(
    runs: Sequence[str], classifier: str, num_seeds: int, steps: Sequence[int] | None, device: torch.device
) -> None:
    """Print label accuracy and speed of several generators side by side."""
    print("| run | sampler | steps | guidance | label accuracy | images/s | over the first row |")
    print("|---|---|---:|---|---:|---:|---:|")
    first = None
    for run in runs:
        module, measure = label_accuracy_of(run, classifier, num_seeds, [], device)
        for number in steps or [module.sampler.num_steps]:
            point = measure(replace(module.sampler, num_steps=number))
            first = first or point.images_per_second
            name, guidance = (
                type(module.sampler).__name__,
                f"{type(module.guidance).__name__} {module.guidance.scale:g}",
            )
            print(
                f"| {Path(run).parent.name} | {name} | {number} | {guidance} | {point.label_accuracy:.3f} "
                f"| {point.images_per_second:.1f} | {point.images_per_second / first:.2f} |"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", nargs="+", help="folder of a conditional DDPM, or of several generators")
    parser.add_argument("--steps", type=int, nargs="+", help="steps of the several generators")
    parser.add_argument("--classifier", help="checkpoint of its data's label classifier")
    parser.add_argument("--seeds", type=int, default=4, help="images for each label set")
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.run:
        if len(options.run) > 1:
            print(f"{hardware(device)}; {options.seeds} seeds\n")
            print_generators(options.run, options.classifier, options.seeds, options.steps, device)
            return
        (run,) = options.run
        print(f"{hardware(device)}; {run}, {options.seeds} seeds, guidance scale {options.scale}\n")
        scale = [f"guidance.scale={options.scale}"]
        _, measure = label_accuracy_of(run, options.classifier, options.seeds, scale, device)
        versions = {name: [MAKE_SAMPLER[name](n) for n in counts] for name, counts in STEP_COUNTS.items()}
        print_sufficient_steps(versions, measure)
        return
    steps = options.num_steps
    samplers = {
        "DDIM": DDIM(steps),
        "DDIM, eta 1": DDIM(steps, eta=1.0),
        "DDIM, dynamic threshold": DDIM(steps, threshold="dynamic"),
        "ancestral": Ancestral(steps),
        "DPM-Solver++ 2M": DPMSolverPP2M(steps),
    }
    print(f"{hardware(device)}; batch {options.batch_size}, {steps} steps, {options.rounds} rounds\n")
    print_overheads(samplers, options.batch_size, options.rounds, device)


if __name__ == "__main__":
    main()
