"""MeanFlow (arXiv 2505.13447): a flow map draws images of labels, or restores degraded ones, in one step or several.

Of a restorer one network gives the MMSE answer (``mean``) and a posterior sample (``sample``): by a conditional flow from noise
(the default), or by the flow from the degraded to the clean image (the bridge, InDI, arXiv 2303.11435), which can only answer
with one image per input. A trained regression can go before it: a flow begins at its answer and a little noise, and moves it to
where images are at the least squared error that this can be had for (PMRF, arXiv 2410.00418); or a flow from noise is shown it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from generative.checks import checked
from generative.degradations import Degradation
from generative.flow_map import FlowMap, FlowMapOutput
from generative.guidance import ClassifierFreeGuidance, Guidance, TrainedGuidance
from generative.likelihood import CALLS_PER_STEP, bits_per_dimension, flow_nats, of_levels
from generative.metrics.likelihood import NLL
from generative.networks import ExactNetwork, ImageNetwork
from generative.networks.trained_regression import TrainedRegression
from generative.objectives.flow_map import FlowMapObjective
from generative.randomness import Randomness
from generative.ranges import NonNegative, Share
from generative.samplers import FlowSampler
from generative.truth import GaussianField
from generative.types import Batch, Condition, LossOutput, State
from lightning_modules.conditional_module import USES, ImageTask
from lightning_modules.contract import Card, Output, Part, Task
from lightning_modules.judged_module import JudgedModule
from lightning_modules.space_module import SpaceModule

Source = Literal["noise", "degraded", "regression"]
# Radians of a network's fastest feature of time over which a difference is still its derivative, to a few per cent.
LARGEST_ANGLE = 0.1


@checked("module")
class MeanFlow(JudgedModule, SpaceModule):
    """Draws or restores images with a flow map.

    Args:
        network: Two-headed network of two times; of three where it learns guidance (``generative.guidance.TrainedGuidance``).
        sampler: How ``sample`` is drawn.
        output: What the network's heads give, ``image`` or ``velocity``.
        task: What it does; see ``ConditionalModule``.
        labels: Whether the network is told the labels of the data set.
        guidance: Guidance by them: learnt, or of the sampler's network calls.
        source: Where the flow starts: ``noise``, or for restoration ``degraded`` (bridge), or ``regression`` (PMRF), the answer
            of a trained regression with noise on it.
        source_std: Standard deviation of that noise, images in [-1, 1].
        regression: Checkpoint of the trained regression; None without one.
        sees_regression: Whether the network is shown the regression's answer in the place of the degraded image.
        sees_degraded: Whether a restoring network is shown the degraded image and the validity map, besides where it starts.
        known_in_path: Hold exactly known pixels on their own path in every step of ``sample``.
        mean_weight: Slider in [0, 1]: ``sample`` becomes (1 - w) sample + w mean.
        **kwargs: Arguments of ``SpaceModule`` and ``JudgedModule``.
    """

    training_only: ClassVar[Mapping[str, Any]] = {**SpaceModule.training_only, **JudgedModule.training_only}
    part_keys: ClassVar[tuple[str, ...]] = (*SpaceModule.part_keys, "regression")
    tasks: ClassVar[frozenset[Task]] = frozenset({"generate", "restore", "inpaint"})
    default_task: ClassVar[ImageTask] = "restore"
    card: ClassVar[Card] = Card(
        "MeanFlow: a flow map that makes images in one step or several (arXiv 2505.13447)",
        USES,
        "A sample is an invention where the input says nothing. Other degradations than those of training, other image "
        "sizes and other subjects are outside of what was learned.",
    )

    def __init__(
        self,
        network: ImageNetwork,
        objective: FlowMapObjective,
        sampler: FlowSampler,
        output: FlowMapOutput = "image",
        task: ImageTask | None = None,
        labels: bool = False,
        guidance: Guidance | None = None,
        source: Source = "noise",
        sees_degraded: bool = True,
        sees_regression: bool = False,
        source_std: NonNegative = 0.1,
        regression: str | None = None,
        known_in_path: bool = False,
        mean_weight: Share = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, task, labels, guidance, **kwargs)
        self.objective = objective
        self.sampler = sampler
        self.output = output
        self.source = source
        self.sees_degraded = sees_degraded
        self.sees_regression = sees_regression
        self.source_std = source_std
        self.regression = None if regression is None else TrainedRegression.load(regression)
        self.known_in_path = known_in_path
        self.mean_weight = mean_weight
        if source != "noise" and not self.restores:
            raise ValueError(
                f"module.source={source} needs degraded images, and task=generate has none: set module.source=noise."
            )
        if source != "noise" and self.latent_space:
            raise ValueError(
                f"module.source={source} begins at an image, and noisy images are not encoded: set module.source=noise, or "
                "space=pixel."
            )
        if (source == "regression" or (self.restores and sees_regression)) and self.regression is None:
            raise ValueError(
                "module.source=regression and module.sees_regression=true need a trained regression of the same data and "
                "degradation: train one with experiment=regression_dit, or name one with regression=RUN."
            )
        if self.latent_space and self.judges:
            raise ValueError(
                "discriminator= and perceptual= judge images, and space= has latents: set discriminator=none perceptual=none, "
                "or space=pixel."
            )
        if mean_weight and not self.restores:
            raise ValueError(
                "module.mean_weight blends with mean, which task=generate has not: set module.mean_weight=0."
            )
        if isinstance(self.guidance, TrainedGuidance) and not self.flow_map.guided:
            raise ValueError(
                "guidance=trained needs a network that is told the scale: set network.num_times=3, or guidance=classifier_free."
            )

    @property
    def flow_map(self) -> FlowMap:
        """What the network says, without guidance by further calls."""
        return FlowMap(self.network, self.output, guided=getattr(self.network, "num_times", 2) > 2)

    def exact_network(self, prior: GaussianField, degradation: Degradation) -> ImageNetwork | None:
        if self.latent_space or self.labels or not self.sees_image or self.source != "noise" or self.sees_regression:
            return None
        return ExactNetwork(prior, degradation, None, self.output, 2, 2, prior.channels + 1)

    @property
    def outputs(self) -> dict[str, Output]:
        first = 0 if self.regression is None else 1
        outputs = {"sample": Output(self.sampler.num_network_calls + first)}
        of_mean = 1 if self.source == "regression" else 1 + first
        return outputs | {"mean": Output(of_mean)} if self.restores else outputs

    @property
    def sees_image(self) -> bool:
        return super().sees_image and self.sees_degraded

    def check_training(self) -> None:
        """The sampler asks for what is taught, and a difference of two passes is a derivative of the network."""
        if self.sampler.uses_average and not self.objective.teaches_average:
            shares = self.objective.velocity_only_share, self.objective.time_distribution.distinct_share
            raise ValueError(
                f"{type(self.sampler).__name__} jumps by the average velocity, which {type(self.objective).__name__} does not "
                f"teach with objective.velocity_only_share={shares[0]:g} and "
                f"objective.time_distribution.distinct_share={shares[1]:g}: set sampler=heun or sampler=euler."
            )
        step = self.objective.compared_over
        if step is None:
            return
        if self._drops_out:
            raise ValueError(
                "objective.derivative=difference needs a network without dropout: set network.dropout=0, "
                "or objective.derivative=exact."
            )
        if any(isinstance(part, _BatchNorm) for part in self.network.modules()):
            raise ValueError(
                "objective.derivative=difference needs a network without batch norm, whose statistics differ between the two "
                "passes: set objective.derivative=exact, or choose another network."
            )
        if (angle := getattr(self.network, "time_frequency", 0.0) * step) > LARGEST_ANGLE:
            raise ValueError(
                f"objective.derivative=difference over objective.difference_step={step:g} passes {angle:.2g} radians of the "
                f"network's fastest time feature, and is a derivative up to {LARGEST_ANGLE:g}: set objective.derivative=exact."
            )

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        source, condition = self._source(batch, randomness), self.condition(batch, randomness)
        if condition.labels is not None and isinstance(self.guidance, TrainedGuidance):
            condition = replace(condition, guidance=self.guidance.draw(condition.labels, randomness))
        return self.objective(
            self.flow_map,
            self.space.encoded(batch),
            source,
            condition,
            randomness,
            self.progress,
            self._mean_state(batch) if self.restores and self.source != "regression" else None,
            self.judged if self.judges else None,
        )

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """``sample`` by the sampler, ``mean`` of restorers in one network call, without guidance."""
        images = {}
        if self.restores and (self.wants("mean") or self.mean_weight):
            images["mean"] = self._mean(batch)
        if self.wants("sample"):
            source = self._source(batch, randomness)
            sample = self.space.decoded(self.sampler(self._path_map(batch), source, self._guided_condition(batch)))
            images["sample"] = sample.lerp(images["mean"], self.mean_weight) if self.mean_weight else sample
        return {name: self.finished(image, batch) for name, image in images.items()}

    def states(self, batch: Batch, randomness: Randomness) -> Iterator[State]:
        source = self._source(batch, randomness)
        return self.decoded_states(self.sampler.states(self._path_map(batch), source, self._guided_condition(batch)))

    @property
    def knows_likelihood(self) -> bool:
        return not self.latent_space and self.source == "noise"

    def bits_per_dimension(
        self, batch: Batch, continuous_BCHW: Tensor, randomness: Randomness, num_calls: int
    ) -> dict[str, Tensor]:
        """Of the flow along v from noise; see ``GenerativeModule.bits_per_dimension``."""
        steps = num_calls // CALLS_PER_STEP
        nats_B = flow_nats(self.flow_map, continuous_BCHW, self.condition(batch), randomness, steps)
        return {NLL: bits_per_dimension(of_levels(nats_B, continuous_BCHW), continuous_BCHW)}

    def sampling_record(self) -> dict[str, Any]:
        restores = {"mean_weight": self.mean_weight, "known_in_path": self.known_in_path}
        return {
            **super().sampling_record(),
            **(restores if self.restores else {}),
            "sampler": type(self.sampler).__name__,
            "num_steps": self.sampler.num_steps,
        }

    def _guided_condition(self, batch: Batch) -> Condition:
        condition = self.condition(batch)
        if condition.labels is None or not isinstance(self.guidance, TrainedGuidance):
            return condition
        return replace(condition, guidance=self.guidance.shares(condition.labels))

    def _path_map(self, batch: Batch) -> FlowMap:
        flow_map = self.flow_map
        if isinstance(self.guidance, ClassifierFreeGuidance):
            flow_map = replace(flow_map, network=self.guidance.wrap(flow_map.network))
        if self.known_in_path and self.restores:
            flow_map = self.space.known(batch).in_flow_map(flow_map)
        return flow_map

    @classmethod
    def unread(cls, arguments: Mapping[str, Any]) -> dict[str, str]:
        unread = super().unread(arguments)
        if arguments.get("source") != "regression":
            unread["module.source_std"] = "the flow does not begin at a regression (module.source=regression)"
        if arguments.get("source") != "regression" and not arguments.get("sees_regression"):
            unread["regression"] = "nothing begins with a regression"
        objective = arguments.get("objective") or {}
        if objective.get("derivative") == "exact":
            unread["objective.difference_step"] = "it is of objective.derivative=difference"
        if (objective.get("time_distribution") or {}).get("distribution") == "uniform":
            keys = ("objective.time_distribution.mean", "objective.time_distribution.std")
            unread |= dict.fromkeys(
                keys, "times are drawn uniformly (objective.time_distribution.distribution=uniform)"
            )
        return unread

    def parts_record(self) -> dict[str, Any]:
        record = super().parts_record()
        return record if self.regression is None else record | {"regression": self.regression.record()}

    def parts(self) -> dict[str, Part]:
        if self.regression is None:
            return super().parts()
        part = Part(self.regression.network, self.regression.settings(), self.regression.card())
        return super().parts() | {"regression": part}

    def pixel_networks(self) -> list[ImageNetwork]:
        return super().pixel_networks() + ([] if self.regression is None else [self.regression.network])

    def condition(self, batch: Batch, randomness: Randomness | None = None) -> Condition:
        if self.restores and self.sees_regression:
            batch = replace(batch, degraded=self._regressed(batch))
        return super().condition(batch, randomness)

    def _regressed(self, batch: Batch) -> Tensor:
        assert self.regression is not None
        return self.regression.to(batch.image.device).answer(batch)

    def _mean(self, batch: Batch) -> Tensor:
        if self.source == "regression":  # its flow begins there and forgets no other answer
            return self._regressed(batch)
        return self.space.decoded(self.flow_map.mean(self._mean_state(batch), self.condition(batch)))

    def _source(self, batch: Batch, randomness: Randomness) -> Tensor:
        if self.source == "degraded":
            return batch.observed()[0]
        if self.source == "regression":
            noise = randomness.normal(*batch.image.shape[1:])
            return torch.add(self._regressed(batch), noise, alpha=self.source_std)
        return randomness.normal(*self.space.shape(batch))

    def _mean_state(self, batch: Batch) -> Tensor:
        # The noise tells nothing of the image: its own mean, zero, stands for all of it. The bridge's source does tell.
        if self.source == "degraded":
            return batch.observed()[0]
        return torch.zeros(len(batch.image), *self.space.shape(batch), device=batch.image.device)
