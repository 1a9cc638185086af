"""The common part of all flow-map objectives: draw (r, t) and z_t, run both heads once, weight the errors.

The heads are trained side by side: v on the conditional velocity e - x in every row (flow matching, arXiv 2210.02747), u
on the same where r = t, and on the objective's own self-consistency on the leading slice with r < t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from generative.flow_map import MIN_TIME, FlowMap, per_image
from generative.objectives.weighting import AdaptiveWeight, squared_error
from generative.randomness import Randomness
from generative.ranges import NonNegative
from generative.ranks import means_of_rows
from generative.schedules.time_distribution import TimeDistribution
from generative.types import Condition, LossOutput


@dataclass(frozen=True)
class FlowSlice:
    """The rows with r < t of a batch, M in number.

    Attributes:
        z: (M, C, H, W) states at t.
        r: (M,) end times.
        t: (M,) start times.
        u: (M, C, H, W) average velocity of the network, with gradient.
        v: (M, C, H, W) instantaneous velocity of the network, detached.
        conditional_velocity: (M, C, H, W) e - x, guided where the condition is.
        condition: Condition of the rows.
        progress: Share of the training done, in [0, 1).
        randomness: Source of further draws, one row each.
    """

    z: Tensor
    r: Tensor
    t: Tensor
    u: Tensor
    v: Tensor
    conditional_velocity: Tensor
    condition: Condition
    progress: float
    randomness: Randomness


Judge = Callable[[Tensor, Tensor, Tensor], LossOutput]


@dataclass(frozen=True)
class FlowMapObjective(ABC):
    """Trains a two-headed flow map; subclasses say what holds between the times.

    Attributes:
        time_distribution: Distribution of the pairs (r, t).
        weight: Adaptive weight of each row's error.
        time_power: Each row's loss counts max(t, 0.05) to this power. With image output the gradient on a row's image grows
            as 1/t, so that 0 leaves most of the step to the smallest times and little to t = 1, where the mean is learnt.
        velocity_only_share: Share of the training, from its start, with r = t everywhere: the velocity is learnt before
            the flow map leans on it.
    """

    time_distribution: TimeDistribution = field(default_factory=TimeDistribution)
    weight: AdaptiveWeight = field(default_factory=AdaptiveWeight)
    time_power: NonNegative = 0.0
    velocity_only_share: NonNegative = 0.0

    @property
    def compared_over(self) -> float | None:
        """Distance in time of two passes whose difference is taken for a derivative; they must differ in nothing else.

        None where no passes are compared.
        """
        return None

    @property
    def teaches_average(self) -> bool:
        """Whether some row of a training has r < t, which alone teach the average velocity between two times."""
        return self.time_distribution.distinct_share > 0 and self.velocity_only_share < 1

    @abstractmethod
    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """Return prediction and target on the slice with r < t.

        Returns:
            Prediction (with gradient) and target (without), each (M, C, H, W).
        """

    def consistency_factors(
        self, error_M: Tensor, time_M: Tensor, velocity_factors_M: Tensor, progress: float
    ) -> Tensor:
        """Return the factors of the errors of the slice.

        Args:
            error_M: (M,) squared errors of prediction against target.
            time_M: (M,) start times.
            velocity_factors_M: (M,) factors of the velocity head's errors in the same rows.
            progress: Share of the training done.

        Returns:
            (M,) factors without gradient.
        """
        return self.weight.factors(error_M, time_M, progress)

    def own_target_factors(
        self, error_M: Tensor, time_M: Tensor, velocity_factors_M: Tensor, progress: float
    ) -> Tensor:
        """Return the factors where the target is the network's own: that of the larger of a row's two errors.

        The velocity head's keeps both heads at one scale. The own one bounds what a row can do: few rows whose derivative
        has gone wild would else outweigh all others. Arguments as of ``consistency_factors``.
        """
        return torch.minimum(velocity_factors_M, self.weight.factors(error_M, time_M, progress))

    def __call__(
        self,
        flow_map: FlowMap,
        image_BCHW: Tensor,
        source_BCHW: Tensor,
        condition: Condition,
        randomness: Randomness,
        progress: float = 1.0,
        mean_state_BCHW: Tensor | None = None,
        judged: Judge | None = None,
    ) -> LossOutput:
        """Return the loss of a batch.

        Args:
            image_BCHW: (B, C, H, W) clean images x in [-1, 1].
            source_BCHW: (B, C, H, W) other end of the path, e at t = 1.
            condition: With ``guidance`` the velocities learnt are the guided ones, at the cost of a forward pass more.
            randomness: Source of the times.
            progress: Share of the training done, in [0, 1].
            mean_state_BCHW: Replaces the source in the rows with r = t = 1, where the velocity head gives E[x | condition]:
                for a source that is independent of x any state has the same answer, and one without noise is learnt
                soonest. None keeps the source.
            judged: Gives further terms on the average velocity's estimates of the images, by these, the images and their (B,)
                times; None for no such terms.

        Returns:
            The loss, with the unweighted mean squared velocity errors as logs (the weighted loss stays flat while samples
            improve).
        """
        distinct = progress >= self.velocity_only_share and self.time_distribution.distinct_share > 0
        pairs = self.time_distribution(randomness, distinct)
        t = per_image(pairs.t_B)
        if mean_state_BCHW is not None:
            source_BCHW = torch.where(per_image(pairs.r_B) == 1, mean_state_BCHW, source_BCHW)
        z = (1 - t) * image_BCHW + t * source_BCHW
        u, v = flow_map.velocities(z, pairs.r_B, pairs.t_B, condition)
        pixels, conditional_velocity = image_BCHW[0].numel(), source_BCHW - image_BCHW
        if condition.guidance is not None:
            conditional_velocity = conditional_velocity + _guiding(flow_map, z, pairs.t_B, v.detach(), condition)
        velocity_error = squared_error(v, conditional_velocity)
        velocity_factors = self.weight.factors(velocity_error, pairs.t_B, progress, pairs.r_B == 1)
        balance = pairs.t_B.clamp(min=MIN_TIME) ** self.time_power
        m = pairs.num_distinct
        average_error = squared_error(u[m:], conditional_velocity[m:])
        average_loss = (average_error * self.weight.factors(average_error, pairs.t_B[m:], progress) * balance[m:]).sum()
        logs = {"velocity_error": velocity_error.mean() / pixels}
        if distinct:
            n = max(m, 1)  # ranks that share the weights call the network together: one without such a row in vain
            leading = torch.arange(n, device=z.device)
            rows = FlowSlice(
                z[:n], pairs.r_B[:n], pairs.t_B[:n], u[:n], v[:n].detach(), conditional_velocity[:n],
                condition.select(leading), progress, randomness.select(leading),
            )  # fmt: skip
            prediction, target = self.consistency(flow_map, rows)
            error = squared_error(prediction[:m], target[:m])
            factors = self.consistency_factors(error, pairs.t_B[:m], velocity_factors[:m], progress)
            average_loss = average_loss + (error * factors * balance[:m]).sum()
            logs |= means_of_rows({"consistency_error": error / pixels})
        loss = average_loss / len(t) + (velocity_error * velocity_factors * balance).mean()
        loss = loss * pixels ** (
            self.weight.power - 1
        )  # as of a mean over pixels: gradients do not grow with the image
        if judged is not None:
            terms = judged(z - t.clamp(min=MIN_TIME) * u, image_BCHW, pairs.t_B)
            loss, logs = loss + terms.loss, logs | terms.logs
        return LossOutput(loss, {name: value.detach() for name, value in logs.items()})


@torch.no_grad()
def _guiding(flow_map: FlowMap, z_BCHW: Tensor, t_B: Tensor, v_BCHW: Tensor, condition: Condition) -> Tensor:
    """(B, C, H, W) what guidance adds to the velocities, by the network's own answers with and without labels."""
    assert condition.guidance is not None
    unlabelled = replace(condition, labels=None, guidance=None)
    _, without = flow_map.velocities(z_BCHW, t_B, t_B, unlabelled)
    return per_image(condition.guidance) * (v_BCHW - without)
