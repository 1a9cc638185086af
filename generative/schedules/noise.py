"""How much signal and noise each timestep of a diffusion has: z_t = sqrt(abar_t) x + sqrt(1 - abar_t) e.

Linear betas (DDPM, arXiv 2006.11239), the cosine schedule (arXiv 2102.09672, eq. 17), and the rescaling to a signal-to-noise
ratio (SNR) of zero at the last timestep (arXiv 2305.08891, algorithm 1). Timesteps are 0 ... T-1, T-1 the noisiest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from generative.checks import checked
from generative.ranges import AtLeastTwo, BelowOne

MAX_BETA = 0.999  # arXiv 2102.09672: without the clip the last cosine step has no signal left to divide by
COSINE_OFFSET = 0.008  # arXiv 2102.09672: keeps the first noise level about as large as a pixel's quantisation


class Level(NamedTuple):
    """One timestep's factors of image and noise, as floats.

    Attributes:
        signal: sqrt(abar) in [0, 1].
        noise: sqrt(1 - abar) in [0, 1].
    """

    signal: float
    noise: float


CLEAN = Level(1.0, 0.0)  # where every sampler ends


@checked("schedule")
@dataclass(frozen=True)
class NoiseSchedule:
    """An immutable noise schedule.

    Attributes:
        kind: ``"linear"`` or ``"cosine"``.
        num_timesteps: Number of timesteps T.
        beta_start: First beta of the linear schedule.
        beta_end: Last beta of the linear schedule.
        zero_terminal_snr: Rescale, so that the last timestep is pure noise, as sampling assumes. Without it the network
            learns to read the mean brightness off the signal left at T-1, and samples from noise come out medium bright.
    """

    kind: Literal["linear", "cosine"] = "linear"
    num_timesteps: AtLeastTwo = 1000
    beta_start: BelowOne = 1e-4
    beta_end: BelowOne = 0.02
    zero_terminal_snr: bool = False
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"schedule.beta_start={self.beta_start} and schedule.beta_end={self.beta_end} must satisfy "
                "0 < beta_start <= beta_end < 1."
            )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64 abar on the CPU, falling from nearly 1; the last one exactly 0 for zero terminal SNR."""
        alphas_cumprod = (1 - self._betas()).cumprod(0)
        return rescale_to_zero_terminal_snr(alphas_cumprod) if self.zero_terminal_snr else alphas_cumprod

    @property
    def terminal_snr_is_zero(self) -> bool:
        """Whether the last timestep holds no signal."""
        return self.zero_terminal_snr

    def level(self, timestep: int) -> Level:
        """Return the factors of one timestep in float64, for samplers.

        Args:
            timestep: Timestep in [0, T-1].

        Returns:
            sqrt(abar) and sqrt(1 - abar).
        """
        alpha_cumprod = float(self.alphas_cumprod[timestep])
        return Level(math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod))

    def signal(self, timestep_B: Tensor) -> Tensor:
        """Return sqrt(abar) as (B, 1, 1, 1) float32, for (B,) int64 timesteps."""
        return self._table(timestep_B.device)[0][timestep_B][:, None, None, None]

    def noise_level(self, timestep_B: Tensor) -> Tensor:
        """Return sqrt(1 - abar) as (B, 1, 1, 1) float32, for (B,) int64 timesteps."""
        return self._table(timestep_B.device)[1][timestep_B][:, None, None, None]

    def snr(self, timestep_B: Tensor) -> Tensor:
        """Return abar / (1 - abar) as (B,) float32, for (B,) int64 timesteps."""
        return self._table(timestep_B.device)[2][timestep_B]

    def time(self, timestep_B: Tensor) -> Tensor:
        """Return network times (t + 1) / T in (0, 1] as (B,) float32, for (B,) int64 timesteps."""
        return (timestep_B + 1).float() / self.num_timesteps

    def add_noise(self, image_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """Draw from q(z_t | x) with given noise (arXiv 2006.11239, eq. 4).

        Args:
            image_BCHW: (B, C, H, W) clean images in [-1, 1].
            noise_BCHW: (B, C, H, W) standard normal noise.
            timestep_B: (B,) int64 timesteps in [0, T-1].

        Returns:
            (B, C, H, W) noisy states.
        """
        return torch.addcmul(self.signal(timestep_B) * image_BCHW, self.noise_level(timestep_B), noise_BCHW)

    def _betas(self) -> Tensor:
        if self.kind == "linear":
            return torch.linspace(self.beta_start, self.beta_end, self.num_timesteps, dtype=torch.float64)
        time = torch.arange(self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps
        alphas_cumprod = torch.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).square()
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)

    def _table(self, device: torch.device) -> Tensor:
        """(3, T) float32 signal, noise level and SNR, copied to each device once: a copy per step would synchronise."""
        if device not in self._tables:
            with torch.inference_mode(False):  # a table first used in validation must still serve training
                abar = self.alphas_cumprod
                rows = torch.stack([abar.sqrt(), (1 - abar).sqrt(), abar / (1 - abar)])
                self._tables[device] = rows.float().to(device)
        return self._tables[device]


def rescale_to_zero_terminal_snr(alphas_cumprod_T: Tensor) -> Tensor:
    """Shift and scale sqrt(abar) so that the last is 0 and the first stays (arXiv 2305.08891, algorithm 1).

    Args:
        alphas_cumprod_T: (T,) abar.

    Returns:
        (T,) rescaled abar.
    """
    signal = alphas_cumprod_T.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()
