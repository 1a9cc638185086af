"""What training on several ranks sends and holds, computed for each network preset; nothing here is measured.

``python benchmarks/communication.py`` builds the networks without memory for their weights (meta device) and writes
``benchmarks/results/communication.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.compose import compose_config
from launch.options import groups

RESULT = Path(__file__).parent / "results" / "communication.md"
EXPERIMENTS = {  # of which a preset is built; by the start of the preset's name, longer ones first
    "dit": "meanflow_dit",
    "unet_context": "ddpm_iclevr_context_unet",
    "unet_cifar10": "ddpm_cifar10",
    "unet_small": "ddpm_iclevr",
    "unet_tiny": "ddpm_scenes",
    "unet": "ddpm_iclevr_large",
    "token_transformer_tiny": "maskgit_scenes",
    "token_transformer": "maskgit_cats_large",
    "autoencoder_tiny": "vqgan_scenes",
    "autoencoder": "vqgan_cats_large",
    "resnet": "label_classifier",
}
TOKENIZER_OF = {"maskgit_scenes": "vqgan_scenes", "maskgit_cats_large": "vqgan_cats_large"}
RANKS = (2, 8, 64)
LINKS = {  # bytes per second in each direction
    "NVLink 4": 450e9,  # NVIDIA H100 SXM: 900 GB/s, both directions together
    "PCIe 4.0 x16": 31.5e9,
    "100 Gb/s": 12.5e9,
    "10 Gb/s": 1.25e9,
}
FLOAT = 4  # bytes: weights, gradients and moments are float32, also under bf16-mixed
COPIES = 5  # weights, gradients, two moments of AdamW, EMA
UNSHARDED = ("autoencoder", "resnet")  # refused by trainer=fsdp


@dataclass(frozen=True)
class Cost:
    """What one preset costs.

    Attributes:
        preset: Name of the network preset.
        experiment: Experiment that it was built for.
        parameters: Trainable parameters, the discriminator's too.
        largest_block: Parameters of the largest part that FSDP gathers at once.
        gathers: Times that FSDP gathers the weights in a step; None where it is refused.
    """

    preset: str
    experiment: str
    parameters: int
    largest_block: int
    gathers: int | None

    def ddp_bytes(self, ranks: int) -> float:
        """Bytes that each rank sends in a step: a ring all-reduce of the gradients."""
        return 2 * (ranks - 1) / ranks * FLOAT * self.parameters

    def fsdp_bytes(self, ranks: int) -> float | None:
        """Bytes that each rank sends in a step: all-gathers of the weights and a reduce-scatter of the gradients."""
        return None if self.gathers is None else (self.gathers + 1) * (ranks - 1) / ranks * FLOAT * self.parameters

    def ddp_memory(self) -> float:
        """Bytes a rank holds beside activations; DDP's buckets are one more copy of the gradients."""
        return (COPIES + 1) * FLOAT * self.parameters

    def fsdp_memory(self, ranks: int) -> float | None:
        """Bytes a rank holds beside activations: its part, and weights and gradients of the block at work and the next."""
        if self.gathers is None:
            return None
        return FLOAT * (COPIES * self.parameters / ranks + 4 * self.largest_block)


def networks(preset: str, experiment: str) -> list[torch.nn.Module]:
    """Build what the optimiser of an experiment moves, without memory.

    Args:
        preset: Network preset.
        experiment: The experiment.

    Returns:
        The network and, for a tokenizer, its discriminator.
    """
    config = compose_config([f"experiment={experiment}", f"network={preset}"])
    with torch.device("meta"):
        if experiment not in TOKENIZER_OF:
            parts = [instantiate(config.network, _convert_="all")]
            return [*parts, instantiate(config.discriminator, _convert_="all")] if config.discriminator else parts
        tokenizer = compose_config([f"experiment={TOKENIZER_OF[experiment]}"])
        encoder = instantiate(tokenizer.network, _convert_="all")
        make = instantiate(config.network, _convert_="all")
        codes = torch.empty(encoder.num_codes, encoder.bottleneck.dim)
        side = encoder.image_size // encoder.grid_size
        patch_shape = (encoder.in_channels, side, side)
        return [make(num_codes=len(codes), grid_size=encoder.grid_size, codebook_KE=codes, patch_shape=patch_shape)]


def cost_of(preset: str) -> Cost:
    """Count the parameters of a preset.

    Args:
        preset: Network preset.

    Returns:
        Its costs.
    """
    experiment = EXPERIMENTS[max((start for start in EXPERIMENTS if preset.startswith(start)), key=len)]
    parts = networks(preset, experiment)
    lists = [module for module in parts[0].modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = [sum(p.numel() for p in block.parameters()) for each in lists for block in each]
    gathers = (
        3 if experiment.startswith("meanflow") else 2
    )  # forward, backward; MeanFlow's derivative is a forward more
    return Cost(
        preset,
        experiment,
        sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad),
        max(blocks, default=0),
        None if preset.startswith(UNSHARDED) else gathers,
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in Markdown.

    Args:
        header: Names of the columns.
        rows: Cells.

    Returns:
        The table; all columns but the first two are aligned to the right.
    """
    rule = ["---" if i < 2 else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def cell(value: float | None, unit: float, digits: int = 1) -> str:
    """Write a number.

    Args:
        value: The number; None where there is none.
        unit: What one is.
        digits: Decimals.

    Returns:
        The text; small values keep one digit that is not zero.
    """
    if value is None:
        return "-"
    scaled = value / unit
    return f"{scaled:,.{digits}f}" if scaled >= 10**-digits else f"{scaled:.1g}"


def report(costs: Sequence[Cost]) -> str:
    """Write the result page.

    Args:
        costs: Costs of the presets.

    Returns:
        Markdown.
    """
    counts = "/".join(str(n) for n in RANKS)
    sizes = table(
        ["preset", "built for", "M parameters", f"DDP MB sent a step, {counts} ranks", f"FSDP MB, {counts} ranks",
         "DDP GB held", f"FSDP GB held, {counts} ranks"],
        [
            [
                c.preset, c.experiment, cell(c.parameters, 1e6),
                " / ".join(cell(c.ddp_bytes(n), 1e6) for n in RANKS),
                " / ".join(cell(c.fsdp_bytes(n), 1e6) for n in RANKS) if c.gathers else "-",
                cell(c.ddp_memory(), 1e9, 2),
                " / ".join(cell(c.fsdp_memory(n), 1e9, 2) for n in RANKS) if c.gathers else "-",
            ]
            for c in costs
        ],
    )  # fmt: skip
    times = [
        f"## {ranks} ranks: milliseconds a step on the link, DDP / FSDP\n\n"
        + table(
            ["preset", "built for", *LINKS],
            [
                [
                    c.preset,
                    c.experiment,
                    *(
                        f"{cell(c.ddp_bytes(ranks), s / 1e3)} / {cell(c.fsdp_bytes(ranks), s / 1e3)}"
                        for s in LINKS.values()
                    ),
                ]
                for c in costs
            ],
        )
        for ranks in RANKS
    ]
    return "\n\n".join([INTRODUCTION, sizes, *times]) + "\n"


INTRODUCTION = f"""# What several ranks send and hold, by network preset

Computed by `python benchmarks/communication.py` from the parameters of each preset but for those of `module=regression` alone
and `network=exact`; nothing on this page is measured.

- Sent: bytes that each rank sends (and receives) in an optimiser step. DDP: one ring all-reduce of the gradients,
  2 (N - 1) / N of them. FSDP: (N - 1) / N of the weights for each gathering (forward, backward, and MeanFlow's derivative
  once more) and the same of the gradients for the reduce-scatter. All in float32, also under bf16-mixed.
- Held: weights, gradients, two moments of AdamW and the EMA, {COPIES * FLOAT} bytes a parameter, without activations;
  DDP has its buckets beside them, FSDP 1/N of them and the weights and gradients of two of the largest blocks. An
  evaluation holds all weights on every rank. "-": refused by `trainer=fsdp`.
- Milliseconds: bytes over the link's nominal speed in one direction, nothing else: no latency, no overlap with computing
  (DDP overlaps all but the last bucket with the backward pass), a ring whose slowest link is the one named."""


def main() -> None:
    """Compute, print and keep the tables."""
    costs = [cost_of(preset) for preset in groups()["network"] if preset.startswith(tuple(EXPERIMENTS))]
    text = report(sorted(costs, key=lambda c: c.parameters))
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
