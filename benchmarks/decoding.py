"""What iterative decoding costs beside its network calls: T steps of the sampler against T bare calls of the transformer.

Prints ratios measured in one run, in turn, because absolute times on a shared machine drift: ``python benchmarks/decoding.py``.
The network has random weights, which cost the same as trained ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generative.networks import TokenTransformer
from generative.randomness import IndexRandomness
from generative.samplers import MaskedTokenSampler
from generative.types import Condition
from launch.record import hardware

HOLE_SHARE = 0.25  # of the tokens, about what the holes of the experiments cover


def seconds(function: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    begin = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{hardware(device)}, batch {arguments.batch}, hole {HOLE_SHARE:.0%} of the tokens\n")
    print("| tokens | codes | sampler | steps | ratio to bare calls, median (min-max) |\n|---:|---:|---|---:|---:|")
    for grid_size, num_codes in ((8, 512), (16, 1024)):
        network = TokenTransformer(num_codes, grid_size).to(device).eval()
        num_tokens = grid_size**2
        tokens = torch.randint(num_codes, (arguments.batch, num_tokens), device=device)
        unknown = torch.zeros_like(tokens, dtype=torch.bool)
        unknown[:, : int(HOLE_SHARE * num_tokens)] = True
        samplers = (
            MaskedTokenSampler(8),
            MaskedTokenSampler(16),
            MaskedTokenSampler(8, "arccos", "halton"),
        )
        for sampler in samplers:
            num_steps = sampler.num_steps

            def bare(
                network: TokenTransformer = network, tokens: torch.Tensor = tokens, calls: int = num_steps
            ) -> None:
                for _ in range(calls):
                    network(tokens, Condition())

            def decode(
                network: TokenTransformer = network,
                tokens: torch.Tensor = tokens,
                unknown: torch.Tensor = unknown,
                sampler: MaskedTokenSampler = sampler,
            ) -> None:
                randomness = IndexRandomness.for_images(0, "benchmark", torch.arange(len(tokens)), tokens.device)
                sampler(network, tokens, unknown, Condition(), randomness)

            for warm_up in (bare, decode):
                warm_up()
            ratios = []
            for _ in range(arguments.rounds):
                before, middle, after = seconds(bare), seconds(decode), seconds(bare)
                ratios.append(middle / ((before + after) / 2))
            print(
                f"| {num_tokens} | {num_codes} | {sampler.order} | {num_steps} | "
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f}) |"
            )


if __name__ == "__main__":
    main()
