"""How probable images are to a model, in nats: of a flow by its ordinary differential equation, of a diffusion by its bound.

Both are of images of 8 bits: a density is taken of the images with uniform noise of one grey level on them, which bounds
the negative log-likelihood of the grey levels from above (Theis et al. 2016, arXiv 1511.01844).

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from generative.denoiser import Denoiser
from generative.flow_map import FlowMap
from generative.randomness import Randomness
from generative.types import Condition

LEVEL = 2 / 255  # one grey level of images in [-1, 1]
CALLS_PER_STEP = 4  # of the Runge-Kutta method of fourth order


def bits_per_dimension(nats_B: Tensor, image_BCHW: Tensor) -> Tensor:
    """Divide by the number of values of an image and turn nats into bits."""
    return nats_B / (image_BCHW[0].numel() * math.log(2))


def with_level_noise(image_BCHW: Tensor, randomness: Randomness) -> Tensor:
    """Return images of 8 bits with uniform noise of one grey level, so that they have a density."""
    return image_BCHW + LEVEL * (randomness.uniform(*image_BCHW.shape[1:]) - 0.5)


def of_levels(nats_of_density_B: Tensor, image_BCHW: Tensor) -> Tensor:
    """Turn a negative log-density of images in [-1, 1] into that of their grey levels."""
    return nats_of_density_B - image_BCHW[0].numel() * math.log(LEVEL)


def flow_nats(
    flow_map: FlowMap, image_BCHW: Tensor, condition: Condition, randomness: Randomness, num_steps: int
) -> Tensor:
    """Return the negative log-density of images under the flow from noise along the instantaneous velocity v.

    -log p(x) = -log N(z_1) - integral of div v(z_t, t) dt along dz/dt = v from z_0 = x, with Runge-Kutta steps that are short
    near t = 0, where the flow is stiff. The divergence is Hutchinson's estimate e^T (dv/dz) e with signs e (FFJORD, arXiv
    1810.01367), drawn anew in every step, so that their errors average out.

    Args:
        flow_map: Network whose flow starts from standard normal noise at t = 1.
        image_BCHW: (B, C, H, W) images of any values.
        num_steps: Steps; each takes four network calls, forward and backward.

    Returns:
        (B,) nats.
    """
    z, divergence_B = image_BCHW, image_BCHW.new_zeros(len(image_BCHW))

    def moved(z_BCHW: Tensor, time: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z_BCHW = z_BCHW.detach().requires_grad_()
            t_B = z_BCHW.new_full((len(z_BCHW),), time)
            _, v_BCHW = flow_map.velocities(z_BCHW, t_B, t_B, condition)
            (product_BCHW,) = torch.autograd.grad((v_BCHW * sign_BCHW).sum(), z_BCHW)
        return v_BCHW.detach(), (product_BCHW * sign_BCHW).flatten(1).sum(1)

    times = [(step / num_steps) ** 3 for step in range(num_steps + 1)]
    for begin, end in pairwise(times):
        sign_BCHW = torch.where(randomness.uniform(*z.shape[1:]) < 0.5, -1.0, 1.0)
        middle, step = (begin + end) / 2, end - begin
        first, div_1 = moved(z, begin)
        second, div_2 = moved(z + step / 2 * first, middle)
        third, div_3 = moved(z + step / 2 * second, middle)
        last, div_4 = moved(z + step * third, end)
        z = z + step / 6 * (first + 2 * second + 2 * third + last)
        divergence_B = divergence_B + step / 6 * (div_1 + 2 * div_2 + 2 * div_3 + div_4)
    at_noise_B = (z.double().square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2
    return at_noise_B - divergence_B.double()


def diffusion_nats(
    denoiser: Denoiser, image_BCHW: Tensor, condition: Condition, randomness: Randomness, num_terms: int
) -> Tensor:
    """Return the variational bound of the negative log-likelihood of images of 8 bits (DDPM, arXiv 2006.11239, eq. 5).

    The reverse steps have the posterior's variance, that of the last one is the one before it (arXiv 2102.09672). The term of a
    timestep is then half the fall of the signal-to-noise ratio times the squared error of the image (arXiv 2107.00630, eq. 13).

    Args:
        denoiser: What the network says, without guidance; its estimates of the image are cut to [-1, 1].
        image_BCHW: (B, C, H, W) images of 8 bits in [-1, 1].
        num_terms: Timesteps that are asked, one from each of so many stretches of them; as many as there are is no more a draw.

    Returns:
        (B,) nats, unbiased.
    """
    schedule, abar_T = denoiser.schedule, denoiser.schedule.alphas_cumprod
    signal, noise = abar_T[-1].item(), 1 - abar_T[-1].item()
    squares_B = image_BCHW.double().square().flatten(1)
    nats_B = (signal * squares_B + noise - 1 - math.log(noise)).sum(1) / 2  # of the noise that is started from
    snr_T = abar_T / (1 - abar_T)
    count = min(num_terms, schedule.num_timesteps - 1)
    edges = torch.linspace(1, schedule.num_timesteps, count + 1).round().long().tolist()
    for low, high in pairwise(edges):
        timestep_B = low + (randomness.uniform() * (high - low)).floor().long().clamp(max=high - low - 1)
        error_B = (_estimate(denoiser, image_BCHW, timestep_B, condition, randomness) - image_BCHW).double().square()
        fall_B = (snr_T[timestep_B.cpu() - 1] - snr_T[timestep_B.cpu()]).to(error_B.device)
        nats_B = nats_B + (high - low) * fall_B / 2 * error_B.flatten(1).sum(1)
    first_B = torch.zeros(len(image_BCHW), dtype=torch.int64, device=image_BCHW.device)
    mean_BCHW = _estimate(denoiser, image_BCHW, first_B, condition, randomness)
    variance = (1 - abar_T[1] / abar_T[0]) * (1 - abar_T[0]) / (1 - abar_T[1])
    return nats_B - level_log_probability(image_BCHW, mean_BCHW, variance.sqrt().item()).flatten(1).sum(1)


def level_log_probability(image_BCHW: Tensor, mean_BCHW: Tensor, std: float) -> Tensor:
    """Return the log-probability of each grey level under a normal law of which black and white have the tails.

    Args:
        image_BCHW: (B, C, H, W) images of 8 bits in [-1, 1].
        mean_BCHW: (B, C, H, W) means.
        std: Standard deviation.

    Returns:
        (B, C, H, W) float64.
    """
    image, apart = image_BCHW.double(), (image_BCHW.double() - mean_BCHW.double()) / std
    upper = torch.where(image > 1 - LEVEL / 2, math.inf, apart + LEVEL / 2 / std)
    lower = torch.where(image < LEVEL / 2 - 1, -math.inf, apart - LEVEL / 2 / std)
    # On the side of the mean where both tails are small: their difference keeps its digits.
    flipped = lower > 0
    upper, lower = torch.where(flipped, -lower, upper), torch.where(flipped, -upper, lower)
    of_upper, of_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return of_upper + torch.log1p(-(of_lower - of_upper).exp())


def _estimate(
    denoiser: Denoiser, image_BCHW: Tensor, timestep_B: Tensor, condition: Condition, randomness: Randomness
) -> Tensor:
    z_BCHW = denoiser.schedule.add_noise(image_BCHW, randomness.normal(*image_BCHW.shape[1:]), timestep_B)
    return denoiser.predict(z_BCHW, timestep_B, condition).image.clamp(-1, 1)
