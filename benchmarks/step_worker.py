"""Makes training steps of one checkout on demand: the part of ``benchmarks/speed.py`` that runs in a process of its own.

``python step_worker.py KIND CHECKOUT THREADS BATCH COMPILE [overrides]``; for each line of its input, a number of steps, it
makes them and prints seconds of the wall clock and of the processor. Kinds: ``default``, the experiment's own step on its own
data; ``bare``, the objective alone on random images without a condition, as the public codes are measured; ``first`` and
``haidog``, the public codes. It must run in older checkouts too.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

SIZE = {"input_size": 32, "patch_size": 2, "in_channels": 1, "dim": 144, "depth": 6, "num_heads": 3, "num_classes": 10}


def product_step(kind: str, batch_size: int, compiled: bool, overrides: list[str]) -> Callable[[int], None]:
    """Return a step of this project: loss, backward pass, clipping, optimiser."""
    from generative.randomness import StepRandomness, generator_for
    from generative.types import Condition
    from launch import build
    from launch.compose import compose_config

    config = compose_config(["trainer=cpu", *overrides])
    config.name = "benchmark"
    module: Any = build.build_module(config)
    optimizer = module.configure_optimizers()["optimizer"]
    forward: Callable[[], Any] = nullcontext
    if compiled:
        from lightning_modules.compiled import CompiledTraining, try_compiler

        try_compiler(torch.device("cpu"))
        forward = CompiledTraining(module.network, module.trained_method).used
    if kind == "default":
        data = build.build_datamodule(config)
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)

        def partial_loss(randomness: Any) -> torch.Tensor:
            return module.loss(batch, randomness).loss

        batch_size = len(batch.image)

    else:
        image = torch.rand(batch_size, 1, 32, 32) * 2 - 1

        def partial_loss(randomness: Any) -> torch.Tensor:
            source = torch.randn_like(image)
            state = torch.zeros_like(image)
            return module.objective(module.flow_map, image, source, Condition(), randomness, 0.9, state).loss

    def step(number: int) -> None:
        optimizer.zero_grad()
        with forward():
            loss = partial_loss(StepRandomness(generator_for(0, "objective", number), batch_size))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
        optimizer.step()

    return step


def public_step(kind: str, batch_size: int) -> Callable[[int], None]:
    """Return a step of a public code as its authors make it: loss, backward pass, AdamW."""
    loader = types.ModuleType("datasets")  # theirs reads MNIST, which is not measured
    loader.get_mnist_dataloader = None  # type: ignore[attr-defined]
    sys.modules["datasets"] = loader
    from meanflow import MeanFlow
    from models.dit import MFDiT

    torch.manual_seed(0)
    network = MFDiT(**SIZE)
    settings: dict[str, Any] = {"channels": 1, "image_size": 32, "num_classes": 10, "cfg_ratio": 0.1}
    first = {"flow_ratio": 0.5, "cfg_scale": 2.0, "cfg_uncond": "u"}
    flow = MeanFlow(**settings, **(first if kind == "first" else {"cfg_scale": [1.0, 5.0]}))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    image, label = torch.rand(batch_size, 1, 32, 32), torch.randint(10, (batch_size,))

    def step(number: int) -> None:
        flow.loss(network, image, label)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Make steps as asked."""
    kind, checkout, threads, batch_size, compiled, *overrides = sys.argv[1:]
    torch.set_num_threads(int(threads))
    sys.path.insert(0, checkout)
    of_public = kind in ("first", "haidog")
    step = (
        public_step(kind, int(batch_size))
        if of_public
        else product_step(kind, int(batch_size), compiled == "1", overrides)
    )
    number = 0
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step(number)
            number += 1
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


if __name__ == "__main__":
    main()
