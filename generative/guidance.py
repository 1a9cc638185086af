"""Guidance by labels: hiding them in training, and pushing towards them in sampling.

Classifier-free guidance (arXiv 2207.12598) in an interval of times (arXiv 2404.07724) with rescaling (arXiv 2305.08891,
section 3.4) and a rise (Muse, arXiv 2301.00704, section 2.7) wraps a network; guidance by the gradient of a classifier
(arXiv 2105.05233) wraps a denoiser. The null condition is the empty set of labels, all zeros. A network can also learn to
guide itself (improved MeanFlow, arXiv 2512.02012): then sampling calls it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from generative.checks import checked
from generative.denoiser import Denoiser, Network, Prediction
from generative.randomness import Randomness
from generative.ranges import NonNegative, Positive, Share
from generative.types import Condition

Score = Callable[[Tensor, Tensor], Tensor]
MIN_STD = 1e-8  # a network initialised to zero gives outputs without spread


@checked("module.label_dropout")
@dataclass(frozen=True)
class LabelDropout:
    """Hides labels in training.

    Attributes:
        set_probability: Probability that the whole set of labels of an image becomes the null condition.
        object_probability: Probability that a single label is left out.
    """

    set_probability: Share = 0.1
    object_probability: Share = 0.0

    @property
    def hides_all(self) -> bool:
        """Whether the network is shown the null condition, at least of images with few labels."""
        return self.set_probability > 0 or self.object_probability > 0

    def __call__(self, labels_BL: Tensor, randomness: Randomness) -> Tensor:
        """Hide some labels.

        Args:
            labels_BL: (B, L) multi-hot labels.

        Returns:
            (B, L) labels, some set to zero.
        """
        keep_set = randomness.uniform() >= self.set_probability
        keep_object = randomness.uniform(labels_BL.shape[1]) >= self.object_probability
        return labels_BL * (keep_set[:, None] & keep_object)


@checked("guidance")
@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Moves a network's output away from the unconditional one: u + scale (c - u).

    Attributes:
        scale: 1 is the plain conditional network, at the cost of one call.
        interval: Times, 0 clean and 1 noise, between which guidance acts, both included; outside of it the plain network is
            called once. The time of masked tokens is the share that is still masked.
        rise: Power p with which the scale rises from 1 at time 1 to its whole at time 0, 1 + (scale - 1) (1 - time)^p: the
            first steps, which settle what the image is, stay diverse. 0 is the whole scale at all times, 1 a straight rise.
        rescale: Share phi in [0, 1] of the output that gets back the conditional output's standard deviation; 0.7 in the
            paper. Large scales oversaturate without it.
    """

    scale: float = 1.0
    interval: tuple[Share, Share] = (0.0, 1.0)
    rise: NonNegative = 0.0
    rescale: Share = 0.0

    def __post_init__(self) -> None:
        if self.interval[0] > self.interval[1]:
            raise ValueError(
                f"guidance.interval={list(self.interval)} must be two times [low, high], the lower one first."
            )

    @property
    def asks_null(self) -> bool:
        """Whether the network is asked for its answer to the null condition."""
        return self.scale != 1

    def wrap(self, network: Network) -> Network:
        """Return a network with the same contract whose outputs are guided.

        Args:
            network: Network that was trained with the null condition.

        Returns:
            The network itself for a scale of 1.
        """
        return _GuidedNetwork(network, self) if self.asks_null else network


@dataclass(frozen=True)
class _GuidedNetwork:
    network: Network
    guidance: ClassifierFreeGuidance

    def __call__(self, x_BCHW: Tensor, times_BT: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """See the network contract: ``network(x_BCHW, times_BT, condition) -> tuple``."""
        if condition.labels is None:
            raise ValueError("guidance.scale other than 1 needs labels: set guidance.scale=1, or train with labels.")
        low, high = self.guidance.interval
        if (low, high) == (0.0, 1.0):  # asking the times would synchronise with the device
            return self._guided(x_BCHW, times_BT, condition, condition.labels, None)
        inside_B = (times_BT[:, 0] >= low) & (times_BT[:, 0] <= high)
        if not inside_B.any():
            return self.network(x_BCHW, times_BT, condition)
        return self._guided(x_BCHW, times_BT, condition, condition.labels, inside_B)

    def _guided(
        self, x_BCHW: Tensor, times_BT: Tensor, condition: Condition, labels_BL: Tensor, inside_B: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Run both branches in one batch; rows that are not inside keep the conditional output."""
        both = Condition(
            image=None if condition.image is None else condition.image.repeat(2, 1, 1, 1),
            labels=torch.cat([labels_BL, torch.zeros_like(labels_BL)]),
            guidance=None if condition.guidance is None else condition.guidance.repeat(2),
        )
        outputs = self.network(torch.cat([x_BCHW, x_BCHW]), torch.cat([times_BT, times_BT]), both)
        scale: float | Tensor = self.guidance.scale
        if self.guidance.rise:
            scale = 1 + (self.guidance.scale - 1) * (1 - times_BT[:, 0]) ** self.guidance.rise
        guided = []
        for output in outputs:
            conditional, unconditional = output.chunk(2)
            weight = scale.view(-1, *[1] * (output.ndim - 1)).to(output) if isinstance(scale, Tensor) else scale
            mixed = rescaled(torch.lerp(unconditional, conditional, weight), conditional, self.guidance.rescale)
            if inside_B is not None:
                mixed = torch.where(inside_B.view(-1, *[1] * (mixed.ndim - 1)), mixed, conditional)
            guided.append(mixed)
        return tuple(guided)


@checked("guidance")
@dataclass(frozen=True)
class TrainedGuidance:
    """Guidance that is part of what a flow map learns, at any scale, so that sampling takes one network call.

    The velocity of scale w is u + w (c - u) of the conditional and the unconditional one. The network is told 1 - 1/w as a time
    of its own and learns from v + (1 - 1/w) (its own guided velocity - its own unconditional one), of which that velocity is
    the fixed point (improved MeanFlow, arXiv 2512.02012).

    Attributes:
        scale: Scale w in sampling, between 1, which is none, and ``largest``.
        largest: Largest scale in training, where 1 - 1/w is uniform: small scales are drawn more often, with density 1/w^2.
    """

    asks_null: ClassVar[bool] = True  # in training
    scale: Annotated[float, Ge(1)] = 3.0
    largest: Annotated[float, Gt(1)] = 8.0

    def __post_init__(self) -> None:
        if self.scale > self.largest:
            raise ValueError(f"guidance.scale={self.scale:g} must not exceed guidance.largest={self.largest:g}.")

    def draw(self, labels_BL: Tensor, randomness: Randomness) -> Tensor:
        """Draw what training tells the network.

        Args:
            labels_BL: (B, L) multi-hot labels, all zeros where they are hidden.

        Returns:
            (B,) shares 1 - 1/w; 0 where the labels are hidden.
        """
        return randomness.uniform() * (1 - 1 / self.largest) * (labels_BL > 0).any(dim=1)

    def shares(self, like_BL: Tensor) -> Tensor:
        """Return what sampling tells the network: (B,) shares 1 - 1/w."""
        return like_BL.new_full((len(like_BL),), 1 - 1 / self.scale)


Guidance = ClassifierFreeGuidance | TrainedGuidance


def rescaled(guided_BCHW: Tensor, conditional_BCHW: Tensor, share: float) -> Tensor:
    """Give guided outputs the standard deviation of the conditional ones (arXiv 2305.08891, eq. 14 to 16).

    Args:
        guided_BCHW: (B, C, H, W) guided outputs.
        conditional_BCHW: (B, C, H, W) conditional outputs.
        share: phi in [0, 1]; 0 returns the guided outputs.

    Returns:
        (B, C, H, W) outputs.
    """
    if share == 0:
        return guided_BCHW
    wanted = conditional_BCHW.std(dim=(1, 2, 3), keepdim=True)
    ratio = wanted / guided_BCHW.std(dim=(1, 2, 3), keepdim=True).clamp(min=MIN_STD)
    return guided_BCHW * torch.lerp(torch.ones_like(ratio), ratio, share)


@checked("module")
@dataclass(frozen=True)
class ClassifierGuidance:
    """Moves the estimate of the image up the gradient of a classifier's score on that estimate.

    arXiv 2105.05233 (algorithm 2) moves the noise by - s times the gradient with respect to z of the log-probability of
    the labels, a = sqrt(abar), s = sqrt(1 - abar), which moves the image by s^2 / a times it. For Gaussian data of standard
    deviation sigma the estimate of the image moves by a sigma^2 / (a^2 sigma^2 + s^2) where z moves by 1, which leaves
    s^2 sigma^2 / (a^2 sigma^2 + s^2), the variance of the image given z, times the gradient with respect to the estimate: no
    gradient has to pass through the network, and nothing is divided by a vanishing signal. For images, whose pixels depend on
    each other, it is an approximation.

    Attributes:
        score: ``score(image_BCHW, labels_BL) -> (B,)`` log-probabilities, of images in [-1, 1].
        scale: Factor of the gradient.
        data_std: Standard deviation sigma of the data around their mean image, in units of images in [-1, 1].
        assisted: Marks results: what the same classifier measures afterwards must be named assisted.
    """

    score: Score
    scale: float = 1.0
    data_std: Positive = 1.0
    assisted: ClassVar[bool] = True

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser whose image estimates are moved.

        Args:
            denoiser: Denoiser of images with labels.

        Returns:
            A denoiser with the same contract; its predictions are of the kind ``image``.
        """
        return _AssistedDenoiser(denoiser.network, denoiser.schedule, denoiser.output, guidance=self)


@dataclass(frozen=True)
class _AssistedDenoiser(Denoiser):
    guidance: ClassifierGuidance = field(kw_only=True)

    def predict(self, z_BCHW: Tensor, timestep: Tensor | int, condition: Condition) -> Prediction:
        if condition.labels is None:
            raise ValueError("module.classifier_guidance needs labels: set module.classifier_guidance=0.")
        plain = super().predict(z_BCHW, timestep, condition)
        estimate = plain.image
        with torch.inference_mode(False), torch.enable_grad():  # samplers run without gradients
            image = estimate.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.guidance.score(image, condition.labels.clone()).sum(), image)
        noise_variance, data_variance = plain.noise_level**2, self.guidance.data_std**2
        variance = noise_variance * data_variance / (plain.signal**2 * data_variance + noise_variance)
        moved = estimate + self.guidance.scale * variance * gradient
        return Prediction(z_BCHW, moved, "image", plain.signal, plain.noise_level)
