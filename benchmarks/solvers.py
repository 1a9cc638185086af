"""What solvers lose with the exact network, and how near guidance without training comes to the exact posterior.

``PYTHONPATH=. python benchmarks/solvers.py`` prints the tables of ``benchmarks/results/solvers.md``: some minutes of one core.
Gaussian fields of 8 x 8 pixels, 64 images with 32 samples each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from generative.degradations import BlockMask, Degradation, Downsample, GaussianNoise, Sequential
from generative.denoiser import Denoiser
from generative.flow_map import FlowMap
from generative.metrics import ExactPosteriorMetrics
from generative.networks import ExactNetwork
from generative.posterior_guidance import DPS, MMPS, PiGDM, PosteriorGuidance, RePaint
from generative.randomness import IndexRandomness, Randomness
from generative.samplers import (
    DDIM,
    Ancestral,
    DiffusionSampler,
    DPMSolverPP2M,
    Euler,
    FlowMapSampler,
    FlowSampler,
    Heun,
)
from generative.schedules import NoiseSchedule
from generative.truth.reference import FIELD, HOLE, reference_problem
from generative.types import Batch, Condition, restoration_condition

NUM_IMAGES, NUM_SAMPLES = 64, 32
SCHEDULE = NoiseSchedule("cosine", zero_terminal_snr=True)
HEAD = ("bias", "spread", "W2")
STEPS = {
    "ancestral": (Ancestral, (10, 20, 50, 100, 320)),
    "ancestral, variance large": (Ancestral, (10, 20, 50, 100)),
    "ddim": (DDIM, (5, 10, 20, 50, 150)),
    "dpm_solver": (DPMSolverPP2M, (5, 10, 15, 20, 30, 60)),
    "euler": (Euler, (2, 4, 8, 16, 32, 64)),
    "heun": (Heun, (2, 4, 8, 16)),
    "flow_map": (FlowMapSampler, (1, 4)),
}


def several(batch: Batch) -> Batch:
    """Repeat a batch for each sample, the images fastest."""
    return batch.select(torch.arange(len(batch.image)).repeat(NUM_SAMPLES))


def draws() -> Randomness:
    return IndexRandomness.for_images(0, "solvers", torch.arange(NUM_IMAGES * NUM_SAMPLES))


def measured(samples: Tensor, batch: Batch, degradation: Degradation) -> tuple[float, ...]:
    """Return bias, spread and squared Wasserstein distance."""
    metrics = ExactPosteriorMetrics(FIELD, degradation)
    exact = IndexRandomness.for_images(0, "exact", batch.index)
    metrics.update(batch, None, samples.clamp(-1, 1).view(NUM_SAMPLES, *batch.image.shape), exact)
    found = metrics.compute()
    return tuple(found[f"posterior_{name}/sample"] for name in ("bias", "spread", "w2"))


def solver(sampler: Any) -> tuple[float, ...]:
    """Measure a sampler with the exact network."""
    batch, degradation = reference_problem(NUM_IMAGES)
    condition, randomness = restoration_condition(*several(batch).observed()), draws()
    noise = randomness.normal(*batch.image.shape[1:])
    if isinstance(sampler, FlowSampler):
        flow_map = FlowMap(ExactNetwork(FIELD, degradation, None, "image", 2, 2, 2), "image")
        return measured(sampler(flow_map, noise, condition), batch, degradation)
    denoiser = Denoiser(ExactNetwork(FIELD, degradation, SCHEDULE, "v", condition_channels=2), SCHEDULE, "v")
    return measured(sampler(denoiser, noise, condition, randomness), batch, degradation)


def guided(guidance: PosteriorGuidance, sampler: DiffusionSampler) -> tuple[float, ...]:
    """Measure guidance by a degraded image of an exact network that does not see it."""
    batch, _ = reference_problem(NUM_IMAGES)
    assert guidance.degradation is not None
    if not isinstance(guidance.degradation, BlockMask):
        index = IndexRandomness.for_images(0, "degradation", batch.index)
        degraded = guidance.degradation(batch.image, index)
        batch = replace(batch, degraded=degraded.image, validity=degraded.validity)
    randomness, all_rows = draws(), several(batch)
    denoiser = Denoiser(ExactNetwork(FIELD, None, SCHEDULE, "v"), SCHEDULE, "v")
    wrapped = guidance.wrap(denoiser, *all_rows.observed(), randomness)
    samples = sampler(wrapped, randomness.normal(*batch.image.shape[1:]), Condition(), randomness)
    return measured(samples, batch, guidance.degradation)


def guidances() -> Iterator[tuple[str, PosteriorGuidance, DiffusionSampler]]:
    """Yield degradation, method and sampler of each row."""
    noisy = Sequential({"down": Downsample(2), "noise": GaussianNoise(0.05)})
    for words, degradation in (("hole", BlockMask(HOLE)), ("half of the sides, noise 0.05", noisy)):
        methods: list[PosteriorGuidance] = [MMPS(degradation, inner_steps=n) for n in (1, 3, 10)]
        methods += [PiGDM(degradation, data_std=0.25), *(DPS(degradation, strength=s) for s in (0.03, 0.1, 0.3))]
        if words == "hole":
            methods += [RePaint(degradation, rounds=n) for n in (1, 10)]
        yield from ((words, method, Ancestral(50, variance="large")) for method in methods)
        yield from ((words, MMPS(degradation), sampler) for sampler in (DDIM(50), DPMSolverPP2M(20)))


def line(*cells: object) -> None:
    print(
        "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def main() -> None:
    """Print both tables."""
    torch.set_grad_enabled(False)
    line("sampler", "steps", "calls", *HEAD)
    line(*["---"] * 2, *["---:"] * 4)
    for name, (kind, numbers) in STEPS.items():
        for steps in numbers:
            sampler = kind(steps, **({"variance": "large"} if "large" in name else {}))
            line(name, steps, sampler.num_network_calls, *solver(sampler))
    print()
    line("degradation", "guidance", "sampler", "calls", *HEAD)
    line(*["---"] * 3, *["---:"] * 4)
    for words, guidance, walk in guidances():
        calls = walk.num_network_calls * guidance.calls_per_step
        line(words, guidance.described, f"{type(walk).__name__} {walk.num_steps}", calls, *guided(guidance, walk))


if __name__ == "__main__":
    main()
