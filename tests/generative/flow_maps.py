"""Small flow maps for the tests: a network with weights everywhere, and flows that are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from generative.flow_map import per_image
from generative.networks import DiT
from generative.randomness import StepRandomness, generator_for
from generative.types import Condition


def randomness(size: int = 8, seed: int = 0) -> StepRandomness:
    return StepRandomness(generator_for(seed, "test"), size)


def network(dtype: torch.dtype = torch.float32) -> DiT:
    torch.manual_seed(0)
    net = DiT(
        image_size=8, in_channels=1, condition_channels=2, num_times=2, num_outputs=2, dim=32, depth=2, num_heads=2
    )
    for parameter in net.parameters():  # zero-initialised gates would hide most of the network
        nn.init.normal_(parameter, std=0.2)
    return net.to(dtype)


def inputs(size: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Condition]:
    g = torch.Generator().manual_seed(1)
    z, v = torch.randn(2, size, 1, 8, 8, generator=g, dtype=dtype)
    t = 0.3 + 0.6 * torch.rand(size, generator=g, dtype=dtype)
    r = t * torch.rand(size, generator=g, dtype=dtype)
    return z, v, r, t, Condition(torch.randn(size, 2, 8, 8, generator=g, dtype=dtype))


class LinearFlow(nn.Module):
    """The exact flow map of a data set with one image x: u = v = (z - x) / t for all r."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return (self.image.expand_as(z), self.image.expand_as(z))


class LinearVelocity(LinearFlow):
    """The same flow with velocity output, exact down to t = 0."""

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        velocity = (z - self.image) / per_image(times[:, 0])
        return velocity, velocity


class ExactGaussianFlow(nn.Module):
    """Velocity and flow map of data ~ N(0, s^2) from noise ~ N(0, 1), independent pixels: both linear in z."""

    def __init__(self, data_std: float) -> None:
        super().__init__()
        self.data_std = data_std

    def std(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * self.data_std**2 + t**2).sqrt()

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        t, r = per_image(times[:, 0]), per_image(times[:, 0] - times[:, 1])
        velocity = z * (t - (1 - t) * self.data_std**2) / self.std(t) ** 2
        gap = (t - r).clamp(min=1e-6)
        average = (z - z * self.std(r) / self.std(t)) / gap
        return torch.where(t - r > 1e-6, average, velocity), velocity


class Perceptron(nn.Module):
    """A two-headed flow map of points in the plane."""

    def __init__(self) -> None:
        super().__init__()
        width = 96
        self.trunk = nn.Sequential(
            nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.heads = nn.Linear(width, 4)

    def forward(self, z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        u, v = self.heads(self.trunk(torch.cat([z.flatten(1), times], dim=1))).chunk(2, dim=1)
        return u.view_as(z), v.view_as(z)
