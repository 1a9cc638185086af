"""The network that a training aims at, in closed form: E[x | z, y] of data whose law is known. It has nothing to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.degradations import Degradation
from generative.flow_map import MIN_TIME
from generative.networks.contract import ImageNetwork
from generative.ranges import Count, WholeNumber
from generative.schedules.noise import NoiseSchedule
from generative.truth.law import GaussianMixture
from generative.truth.posterior import posteriors
from generative.truth.priors import GaussianField
from generative.types import Condition


@dataclass(frozen=True)
class _Asked:
    """The laws of the rows for a condition, by groups of rows."""

    image: Tensor
    groups: list[tuple[Tensor, GaussianMixture]]


@checked("network")
class ExactNetwork(ImageNetwork):
    """Answers as the best trained network would: a solver that is run with it has no error but its own.

    With a noise schedule its one output is of a diffusion; without one its outputs are of the straight path from noise: the
    average and the instantaneous velocity of a flow map, or the one estimate of the image of a regression.

    Args:
        prior: Law of the data.
        degradation: What the images were degraded by that the condition shows; linear with Gaussian noise.
        schedule: Noise schedule of a diffusion; None for the straight path.
        output: What the outputs are: ``noise``, ``image``, ``v``, or ``velocity`` of a flow map.
        num_times: Number of times T that it is told.
        num_outputs: 2 for a flow map, else 1.
        condition_channels: Channels of the condition's image; 0 where there is none.
        label_factors: Of the data's labels, of which there are none.
        source: Where a flow starts.
    """

    def __init__(
        self,
        prior: GaussianField | None,
        degradation: Degradation | None = None,
        schedule: NoiseSchedule | None = None,
        output: Literal["noise", "image", "v", "velocity"] = "image",
        num_times: Count = 1,
        num_outputs: Literal[1, 2] = 1,
        condition_channels: WholeNumber = 0,
        label_factors: Sequence[int] = (),
        source: Literal["noise"] = "noise",
    ) -> None:
        super().__init__()
        if prior is None:
            raise ValueError("network=exact needs data whose law is known: choose data=gauss or data=mixture.")
        if label_factors:
            raise ValueError("network=exact knows no labels: set module.labels=false.")
        self.prior = prior
        self.degradation = degradation
        self.schedule = schedule
        self.output = output
        self.num_times = num_times
        self.num_outputs = num_outputs
        self.condition_channels = condition_channels
        self.num_labels = 0
        self._asked: _Asked | None = None

    def forward(self, x_BCHW: Tensor, times_BT: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """See the contract of ``ImageNetwork``."""
        z_BCP, times_BT = x_BCHW.flatten(2).cpu().double(), times_BT.cpu().double()
        answers = [torch.empty_like(z_BCP) for _ in range(self.num_outputs)]
        for rows_R, law in self._laws(len(x_BCHW), condition):
            answer = self._diffusion if self.schedule else self._flow
            for all_BCP, output_RCP in zip(answers, answer(law, z_BCP[rows_R], times_BT[rows_R]), strict=True):
                all_BCP[rows_R] = output_RCP
        return tuple(answer_BCP.view(x_BCHW.shape).to(x_BCHW) for answer_BCP in answers)

    def _laws(self, num_rows: int, condition: Condition) -> list[tuple[Tensor, GaussianMixture]]:
        if condition.image is None:
            return [(torch.arange(num_rows), self.prior.law)]
        # The steps of a sampler ask for the same images again.
        if self._asked is None or not torch.equal(self._asked.image, condition.image):
            if self.degradation is None:
                raise ValueError(
                    "network=exact needs to know what degraded the images: choose a linear degradation, such as "
                    "degradation=holes."
                )
            with torch.inference_mode(False):  # what is kept may meet gradients later
                image_BKHW = condition.image.clone()
                found = list(posteriors(self.prior.law, self.degradation, image_BKHW[:, :-1], image_BKHW[:, -1:]))
                self._asked = _Asked(image_BKHW, found)
        return self._asked.groups

    def _diffusion(self, law: GaussianMixture, z_RCP: Tensor, times_RT: Tensor) -> tuple[Tensor]:
        assert self.schedule is not None
        timestep_R = (times_RT[:, 0] * self.schedule.num_timesteps).round().long() - 1
        abar_R = self.schedule.alphas_cumprod[timestep_R]
        signal_R, level_R = abar_R.sqrt(), (1 - abar_R).sqrt()
        image_RCP, noise_RCP = law.expected(z_RCP, signal_R, level_R)
        if self.output == "v":
            return (signal_R[:, None, None] * noise_RCP - level_R[:, None, None] * image_RCP,)
        return (image_RCP if self.output == "image" else noise_RCP,)

    def _flow(self, law: GaussianMixture, z_RCP: Tensor, times_RT: Tensor) -> tuple[Tensor, ...]:
        t_R = times_RT[:, 0]
        if self.num_outputs == 1:
            return (law.expected(z_RCP, 1 - t_R, t_R)[0],)
        span_R = times_RT[:, 1]
        velocity_RCP = law.velocity(z_RCP, t_R)
        average_RCP = velocity_RCP
        if span_R.any():
            moved_RCP = law.flowed(z_RCP, t_R, (t_R - span_R).clamp(min=0))
            span_R11 = span_R[:, None, None]
            average_RCP = torch.where(span_R11 > 0, (z_RCP - moved_RCP) / span_R11, velocity_RCP)
        if self.output == "velocity":
            return average_RCP, velocity_RCP
        # A flow map of image output divides by clipped times (generative.flow_map).
        clipped_R11 = t_R.clamp(min=MIN_TIME)[:, None, None]
        return z_RCP - clipped_R11 * average_RCP, z_RCP - clipped_R11 * velocity_RCP
