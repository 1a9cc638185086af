"""The losses of VQGAN (Esser et al. 2021, arXiv 2012.09841): reconstruction, perceptual, adversarial; each can be left out.

The discriminator learns in the same backward pass as the autoencoder (``generative.objectives.image_terms``).

Shape legend: B batch, C channels, H/W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.checks import checked
from generative.networks.autoencoder import Autoencoder
from generative.objectives.image_terms import Perceptual, hinge_game
from generative.randomness import Randomness
from generative.ranges import NonNegative, WholeNumber
from generative.types import LossOutput

MAX_ADAPTIVE_WEIGHT = 1e4  # as in the paper's code
ADAPTIVE_EPS = (
    1e-4  # the paper's delta is 1e-6, eq. 7; larger, it is safe where the adversarial gradient starts from zero
)


@checked("objective")
@dataclass(frozen=True)
class AutoencoderObjective:
    """A weighted sum of losses; the bottleneck's own loss, weighted there, is added.

    Attributes:
        l1_weight: Weight of the mean absolute error.
        l2_weight: Weight of the mean squared error.
        perceptual_weight: Weight of the perceptual distance, where there is one.
        adversarial_weight: Weight of the generator's adversarial loss (hinge), where there is a discriminator; times the
            adaptive weight.
        adversarial_start: Optimiser step from which the discriminator learns and is listened to.
        adaptive: Scale the adversarial loss so that its gradient in the last layer is as large as that of the
            reconstruction (eq. 7).
    """

    l1_weight: NonNegative = 1.0
    l2_weight: NonNegative = 0.0
    perceptual_weight: NonNegative = 1.0
    adversarial_weight: NonNegative = 0.5
    adversarial_start: WholeNumber = 0
    adaptive: bool = True

    def __post_init__(self) -> None:
        if self.l1_weight == self.l2_weight == 0:
            raise ValueError("objective.l1_weight and objective.l2_weight are both 0: nothing teaches the autoencoder.")

    def __call__(
        self,
        network: Autoencoder,
        discriminator: nn.Module | None,
        perceptual: Perceptual | None,
        image_BCHW: Tensor,
        step: int,
        randomness: Randomness,
    ) -> LossOutput:
        """Take the loss of autoencoder and discriminator.

        Args:
            discriminator: Gives logits of patches, above zero for real; or None.
            perceptual: Gives (B,) distances of two batches of images; or None.
            image_BCHW: (B, C, H, W) images in [-1, 1].
            step: Optimiser step.
            randomness: Source of the bottleneck's draws.

        Returns:
            The loss; each of its parts, unweighted, as logs.
        """
        output = network(image_BCHW, randomness)
        l1, l2 = F.l1_loss(output.image, image_BCHW), F.mse_loss(output.image, image_BCHW)
        reconstruction = self.l1_weight * l1 + self.l2_weight * l2
        logs = {"l1": l1, "l2": l2, "bottleneck": output.loss}
        if perceptual is not None and self.perceptual_weight > 0:
            distance = perceptual(output.image, image_BCHW).mean()
            reconstruction = reconstruction + self.perceptual_weight * distance
            logs["perceptual"] = distance
        loss = reconstruction + output.loss
        if discriminator is not None:
            if step >= self.adversarial_start:
                adversarial, parts = self._adversarial(network, discriminator, image_BCHW, output.image, reconstruction)
                loss = loss + adversarial
                logs |= parts
            else:  # under DDP every weight needs a gradient in every step
                loss = loss + 0.0 * sum(p.sum() for p in discriminator.parameters())
        return LossOutput(loss, {name: value.detach() for name, value in logs.items()})

    def _adversarial(
        self, network: Autoencoder, discriminator: nn.Module, image: Tensor, fake: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        game = hinge_game(discriminator, image, fake)
        generator, hinge = game.generator_B.mean(), game.discriminator_B.mean()
        weight = self._adaptive_weight(network.last_layer, reconstruction, generator) if self.adaptive else 1.0
        logs = {
            "adversarial": generator,
            "adversarial_weight": torch.as_tensor(weight),
            "discriminator": hinge,
            **{name: value.mean() for name, value in game.logits.items()},
        }
        return self.adversarial_weight * weight * generator + hinge, logs

    @staticmethod
    def _adaptive_weight(last_layer: Tensor, reconstruction: Tensor, generator: Tensor) -> Tensor:
        norms = [
            torch.autograd.grad(part, last_layer, retain_graph=True)[0].norm() for part in (reconstruction, generator)
        ]
        return (norms[0] / (norms[1] + ADAPTIVE_EPS)).clamp(max=MAX_ADAPTIVE_WEIGHT).detach()
