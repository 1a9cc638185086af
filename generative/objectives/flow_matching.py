"""Flow matching (arXiv 2210.02747): r = t everywhere; the baseline whose cost the flow-map objectives are held against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from generative.checks import checked
from generative.flow_map import FlowMap
from generative.objectives.flow_map import FlowMapObjective, FlowSlice
from generative.ranges import NonNegative


@checked("objective")
@dataclass(frozen=True)
class FlowMatching(FlowMapObjective):
    """Both heads regress the conditional velocity; sample it with ``Heun`` or ``Euler``."""

    velocity_only_share: NonNegative = 2.0  # beyond the end of training

    @property
    def teaches_average(self) -> bool:
        return False

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """Return u and e - x; never reached in training, as no row has r < t."""
        return rows.u, rows.conditional_velocity
