"""MeanFlow image restoration: one network gives the MMSE answer (``mean``) and a posterior sample (``sample``).

Posterior sampling by a conditional flow from noise (the default), or the flow from the degraded to the clean image (the
bridge, InDI, arXiv 2303.11435), which can only answer with one image per input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.flow_map import FlowMap, FlowMapOutput
from generative.networks import ImageNetwork
from generative.objectives.flow_map import FlowMapObjective
from generative.randomness import Randomness
from generative.ranges import Share
from generative.samplers import FlowSampler
from generative.types import Batch, Condition, LossOutput, State, restoration_condition
from lightning_modules.contract import Card, Output, Task
from lightning_modules.generative_module import GenerativeModule

Source = Literal["noise", "degraded"]


@checked("module")
class MeanFlowRestorer(GenerativeModule):
    """Restores degraded images with a flow map.

    Args:
        network: Two-time, two-headed network.
        sampler: How ``sample`` is drawn.
        output: What the network's heads give, ``image`` or ``velocity``.
        source: Where the flow starts: ``noise`` (conditional generation) or ``degraded`` (bridge).
        conditional: Whether the network also sees the degraded image and the validity map.
        mean_weight: Slider in [0, 1]: ``sample`` becomes (1 - w) sample + w mean.
        reimpose_known: Put exactly known pixels back into the outputs.
        **kwargs: Arguments of ``GenerativeModule``.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({"restore", "inpaint"})
    card: ClassVar[Card] = Card(
        "MeanFlow restorer: a DiT that restores degraded images in one step or several (arXiv 2505.13447)",
        "Restoring images with the degradations that it was trained on: `mean` is the answer of least squared error, "
        "`sample` one plausible image.",
        "A sample is an invention where the input says nothing. Other degradations than those of training, other image "
        "sizes and other subjects are outside of what was learned.",
    )

    def __init__(
        self,
        network: ImageNetwork,
        objective: FlowMapObjective,
        sampler: FlowSampler,
        output: FlowMapOutput = "image",
        source: Source = "noise",
        conditional: bool = True,
        mean_weight: Share = 0.0,
        reimpose_known: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.objective = objective
        self.sampler = sampler
        self.flow_map = FlowMap(network, output)
        self.source = source
        self.conditional = conditional
        self.mean_weight = mean_weight
        self.reimpose_known = reimpose_known

    @property
    def outputs(self) -> dict[str, Output]:
        return {"sample": Output(self.sampler.num_network_calls), "mean": Output(1)}

    def check_training(self) -> None:
        """Both passes of a difference go through the same network."""
        if self.objective.compares_passes and self._drops_out:
            raise ValueError(
                "objective.derivative=difference needs a network without dropout: set network.dropout=0, "
                "or objective.derivative=exact."
            )

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        source = self._source(batch, randomness)
        return self.objective(
            self.flow_map,
            batch.image,
            source,
            self._condition(batch),
            randomness,
            self.progress,
            self._mean_state(batch),
        )

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """``sample`` by the sampler, ``mean`` in one network call."""
        source, condition = self._source(batch, randomness), self._condition(batch)
        mean = self.flow_map.mean(self._mean_state(batch), condition)
        sample = self.sampler(self.flow_map, source, condition)
        sample = sample.lerp(mean, self.mean_weight)
        return {"sample": self._finish(sample, batch), "mean": self._finish(mean, batch)}

    def states(self, batch: Batch, randomness: Randomness) -> Iterator[State]:
        return self.sampler.states(self.flow_map, self._source(batch, randomness), self._condition(batch))

    def sampling_record(self) -> dict[str, Any]:
        return {
            "sampler": type(self.sampler).__name__,
            "num_steps": self.sampler.num_steps,
            "mean_weight": self.mean_weight,
            "reimpose_known": self.reimpose_known,
        }

    def _source(self, batch: Batch, randomness: Randomness) -> Tensor:
        if self.source == "degraded":
            return batch.observed()[0]
        return randomness.normal(*batch.image.shape[1:])

    def _mean_state(self, batch: Batch) -> Tensor:
        # The noise tells nothing of the image: its own mean, zero, stands for all of it. The bridge's source does tell.
        return batch.observed()[0] if self.source == "degraded" else torch.zeros_like(batch.image)

    def _condition(self, batch: Batch) -> Condition:
        return restoration_condition(*batch.observed()) if self.conditional else Condition()

    def _finish(self, image: Tensor, batch: Batch) -> Tensor:
        image = image.clamp(-1, 1)
        if self.reimpose_known:
            degraded, validity = batch.observed()
            image = image.lerp(degraded, validity)
        return image
