"""Denoising objective: squared error at a random timestep, in the space of image, noise or v.

DDPM (arXiv 2006.11239, eq. 14) is output ``noise``, loss space ``noise``, uniform weight; JiT (arXiv 2511.13720) is output
``image``, loss space ``v``. At a fixed state, errors in two spaces differ by a factor of the timestep alone, so the error is
taken on the network's own output and multiplied by the square of that factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.denoiser import Denoiser, DenoiserOutput, conversion
from generative.randomness import Randomness
from generative.ranges import Positive, Share
from generative.schedules.noise import NoiseSchedule
from generative.types import Condition, LossOutput

LEAST_SHARE = 0.1  # of the draws that uniform timesteps give each: what is drawn less often counts as not trained
MIN_LEVEL = 0.05  # JiT (arXiv 2511.13720) clips its divisor there; unclipped, the last steps outweigh all others


@checked("objective")
@dataclass(frozen=True)
class DiffusionObjective:
    """Denoising loss.

    Attributes:
        loss_space: Where the squared error is taken: ``"v"``, ``"noise"`` or ``"image"``; what the network outputs is the
            denoiser's setting.
        weight: ``"uniform"``, or ``"min_snr"`` (arXiv 2303.09556): min(SNR, gamma) on the squared error of the image,
            whatever the loss space.
        gamma: Where min-SNR stops to rise; 5 in the paper.
        logit_mean: Timesteps t with t/T = sigmoid(N(mean, std)) (arXiv 2403.03206, section 3.1), so that a short training
            spends its steps where the content of an image is decided; None draws them uniformly, as DDPM does.
        logit_std: Standard deviation of that normal.
        terminal_share: Probability that a row stands at the last timestep, where sampling starts, whatever logit_mean is: the
            logit-normal one practically never draws it.
    """

    loss_space: DenoiserOutput = "v"
    weight: Literal["uniform", "min_snr"] = "uniform"
    gamma: Positive = 5.0
    logit_mean: float | None = None
    logit_std: Positive = 1.0
    terminal_share: Share = 0.0

    def probability(self, timestep: int, num_timesteps: int) -> float:
        """Return how probable a timestep is for a row.

        Args:
            timestep: Timestep in [0, T-1].
            num_timesteps: Number of timesteps T.

        Returns:
            Probability in [0, 1].
        """
        first, following = timestep / num_timesteps, (timestep + 1) / num_timesteps
        drawn = self._share_from(first) - self._share_from(following)
        at_end = self.terminal_share if timestep == num_timesteps - 1 else 0.0
        return at_end + (1 - self.terminal_share) * drawn

    def _share_from(self, share: float) -> float:
        """Probability that t/T is drawn at or above a share in [0, 1]."""
        if self.logit_mean is None or share in (0, 1):
            return 1 - share
        log_odds = math.log(share / (1 - share))
        return 0.5 * math.erfc((log_odds - self.logit_mean) / (self.logit_std * math.sqrt(2)))

    def check_start(self, timestep: int, num_timesteps: int) -> None:
        """Refuse to train without the timestep that sampling starts from.

        Args:
            timestep: The sampler's first timestep.
            num_timesteps: Number of timesteps T.

        Raises:
            ValueError: The timestep is drawn less than a tenth as often as uniformly.
        """
        probability = self.probability(timestep, num_timesteps)
        if probability * num_timesteps < LEAST_SHARE:
            raise ValueError(
                f"objective.logit_mean={self.logit_mean} and objective.terminal_share={self.terminal_share:g} draw timestep "
                f"{timestep}, where sampling starts, with probability {probability:.1g}, so that it stays untrained: set "
                f"objective.terminal_share=0.02{'' if timestep == num_timesteps - 1 else ' and sampler.spacing=trailing'}."
            )

    def check(self, schedule: NoiseSchedule) -> None:
        """Refuse to leave the timestep without weight that sampling starts from; ``check_start`` asks whether it is drawn.

        Args:
            schedule: The denoiser's noise schedule.

        Raises:
            ValueError: If the loss gives no weight to the image where the signal is zero: in noise space an error of the
                image counts SNR times, with min-SNR at most as much.
        """
        if schedule.terminal_snr_is_zero and (self.loss_space == "noise" or self.weight == "min_snr"):
            culprit = "loss_space=noise" if self.loss_space == "noise" else "weight=min_snr"
            raise ValueError(
                f"objective.{culprit} gives the last timestep of schedule.zero_terminal_snr=true no weight, so that the "
                "start of sampling stays untrained: set objective.loss_space=v and objective.weight=uniform."
            )

    def __call__(
        self, denoiser: Denoiser, image_BCHW: Tensor, condition: Condition, randomness: Randomness
    ) -> LossOutput:
        """Return the loss of a batch.

        Args:
            image_BCHW: (B, C, H, W) clean images in [-1, 1].

        Returns:
            The mean of ``errors``, with the unweighted mean squared error in the loss space as a log.
        """
        error_B, weight_B = self._compare(denoiser, image_BCHW, condition, randomness)
        return LossOutput((weight_B * error_B).mean(), {f"mse_{self.loss_space}": error_B.detach().mean()})

    def errors(self, denoiser: Denoiser, image_BCHW: Tensor, condition: Condition, randomness: Randomness) -> Tensor:
        """Return each image's weighted error, at one random timestep each.

        Args:
            image_BCHW: (B, C, H, W) clean images in [-1, 1].

        Returns:
            (B,) errors, means over channels and pixels.
        """
        error_B, weight_B = self._compare(denoiser, image_BCHW, condition, randomness)
        return weight_B * error_B

    def _compare(
        self, denoiser: Denoiser, image_BCHW: Tensor, condition: Condition, randomness: Randomness
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) squared errors in the loss space, and their (B,) weights."""
        schedule = denoiser.schedule
        self.check(schedule)
        timestep_B = self._timesteps(randomness, schedule.num_timesteps)
        noise = randomness.normal(*image_BCHW.shape[1:])
        z = schedule.add_noise(image_BCHW, noise, timestep_B)
        prediction = denoiser.predict(z, timestep_B, condition)
        target = _target(denoiser, image_BCHW, noise, timestep_B)
        error_B = (prediction.output - target).square().flatten(1).mean(dim=1)
        return error_B * self._factor(denoiser, timestep_B).square(), self._weight(schedule.snr(timestep_B))

    def _timesteps(self, randomness: Randomness, num_timesteps: int) -> Tensor:
        """(B,) random timesteps in [0, T-1]."""
        if self.logit_mean is None:
            share_B = randomness.uniform()
        else:
            share_B = torch.sigmoid(self.logit_mean + self.logit_std * randomness.normal())
        if self.terminal_share:
            share_B = torch.where(randomness.uniform() < self.terminal_share, 1.0, share_B)
        return (share_B * num_timesteps).long().clamp(max=num_timesteps - 1)  # float32 may round up to T

    def _factor(self, denoiser: Denoiser, timestep_B: Tensor) -> Tensor:
        """(B,) factor from errors of the output to errors in the loss space, its divisor at least ``MIN_LEVEL``."""
        if denoiser.output == self.loss_space:
            return torch.ones_like(timestep_B, dtype=torch.float32)
        signal, noise_level = denoiser.schedule.signal(timestep_B), denoiser.schedule.noise_level(timestep_B)
        if denoiser.output == "image":
            noise_level = noise_level.clamp(min=MIN_LEVEL)
        if denoiser.output == "noise":
            signal = signal.clamp(min=MIN_LEVEL)
        return conversion(denoiser.output, self.loss_space, signal, noise_level)[1].flatten()

    def _weight(self, snr_B: Tensor) -> Tensor:
        """(B,) weights: an error of the image is SNR times as large in noise space, SNR + 1 times in v space."""
        if self.weight == "uniform":
            return torch.ones_like(snr_B)
        divisors = {"image": torch.ones_like(snr_B), "noise": snr_B, "v": snr_B + 1}
        return snr_B.clamp(max=self.gamma) / divisors[self.loss_space]


def _target(denoiser: Denoiser, image_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
    """(B, C, H, W) ideal output of the network."""
    if denoiser.output == "image":
        return image_BCHW
    if denoiser.output == "noise":
        return noise_BCHW
    schedule = denoiser.schedule
    return schedule.signal(timestep_B) * noise_BCHW - schedule.noise_level(timestep_B) * image_BCHW
