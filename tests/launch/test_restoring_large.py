"""Pictures that are larger than what a network sees: in tiles they are what they are whole, and memory is bounded."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import context
from torch import Tensor, nn

from files.images import Picture
from generative.networks import DnCNN, ImageNetwork
from generative.objectives import DiffusionObjective, ImprovedMeanFlow
from generative.samplers import DDIM, FlowMapSampler
from generative.schedules import NoiseSchedule
from generative.tiling import Tiling
from generative.types import Condition
from launch.use.folders import plan
from launch.use.restorer import Restorer, tiling_of
from launch.use.restoring import restore_folder
from lightning_modules import DDPM, GenerativeModule, MeanFlow, RegressionRestorer

TRAINING: dict[str, Any] = {
    "optimizer": partial(torch.optim.AdamW), "learning_rate_factor": lambda step: 1.0, "total_steps": 1,
}  # fmt: skip


class Convolutions(ImageNetwork):
    """Sees two pixels to each side of its own; remembers the sizes that it was shown."""

    condition_channels, num_labels = 4, 0

    def __init__(self, num_times: int, num_outputs: int) -> None:
        super().__init__()
        self.num_times, self.num_outputs = num_times, num_outputs
        torch.manual_seed(0)
        last = nn.Conv2d(8, 3 * num_outputs, 3, padding=1)
        self.layers = nn.Sequential(nn.Conv2d(7, 8, 3, padding=1), nn.Tanh(), last)
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        self.sizes.add(tuple(x.shape[2:]))
        out = self.layers(torch.cat([x, condition.image], 1)) * (0.5 + times[:, :1, None, None])
        return out.chunk(self.num_outputs, dim=1)


def flow() -> MeanFlow:
    return MeanFlow(Convolutions(2, 2), ImprovedMeanFlow(), FlowMapSampler(2), task="restore", **TRAINING)


def diffusion() -> DDPM:
    schedule = NoiseSchedule("cosine", zero_terminal_snr=True)
    own: dict[str, Any] = {"task": "inpaint", "labels": False, "known_in_path": True}
    return DDPM(Convolutions(1, 1), schedule, DiffusionObjective(), DDIM(num_steps=3), **own, **TRAINING)


@pytest.mark.parametrize(("build", "masked"), [(flow, False), (diffusion, True)])
def test_a_sample_in_tiles_is_that_of_the_whole_picture(build: Any, masked: bool) -> None:
    module: GenerativeModule = build().eval()
    picture = Picture(np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8))
    missing = torch.zeros(45, 61, dtype=torch.bool)
    missing[10:33, 20:50] = True

    def sample(tiling: Tiling) -> Tensor:
        module.network.sizes.clear()
        restorer = Restorer(module, None, 16, 3, "sample", torch.device("cpu"), tiling)
        return restorer.restore_in_tiles(restorer.request(0, picture, missing if masked else None))

    whole = sample(Tiling(64, 0))
    assert module.network.sizes == {(45, 61)}
    tiled = sample(Tiling(16, 8))
    assert module.network.sizes == {(16, 16)}
    assert whole.shape == (1, 3, 45, 61)
    assert whole.std() > 0.1
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    assert not torch.allclose(sample(Tiling(16, 2)), whole, atol=1e-3)  # where a tile sees less far than the network


LARGE = (4000, 3000)
GIB = 2**20  # in the system's unit of 1024 bytes


def _restore_large(folder: Path) -> None:
    """In a process of its own, whose highest use of memory is that of this picture."""
    torch.set_num_threads(1)
    network = DnCNN(width=4, depth=3, in_channels=3, condition_channels=4)
    module = RegressionRestorer(network, **TRAINING).eval()
    restorer = Restorer(module, None, 32, 3, "mean", torch.device("cpu"), tiling_of(module, 32))
    job = plan(folder / "in.jpg", folder / "out.jpg", None, False, False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert restore_folder(restorer, job)
    (folder / "grown").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def test_a_photograph_keeps_its_size_and_takes_less_than_a_gibibyte(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize(LARGE).convert("RGB").save(tmp_path / "in.jpg")
    process = context.Process(target=_restore_large, args=(tmp_path,), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert Image.open(tmp_path / "out.jpg").size == LARGE
    assert int((tmp_path / "grown").read_text()) < GIB
