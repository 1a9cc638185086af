"""Terms on an estimate of the image beside a loss of squared error: a perceptual distance, and a discriminator's judgement.

The discriminator learns in the same backward pass: what it tells the estimate passes weights that are held constant, and what
it is told of the estimates is detached. So one optimiser step serves both players, and steps, clipping, accumulation and
resume stay those of every other training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from generative.checks import checked
from generative.ranges import NonNegative, Share, WholeNumber
from generative.ranks import means_of_rows
from generative.types import LossOutput

Perceptual = Callable[[Tensor, Tensor], Tensor]
GAME_LOGS = ("adversarial", "discriminator", "logits_real", "logits_fake")


@dataclass(frozen=True)
class Game:
    """Both sides of the hinge loss.

    Attributes:
        generator_B: (B,) losses of the images that are to pass, whose gradient does not reach the discriminator.
        discriminator_B: (B,) losses of the discriminator, whose gradient does not reach the images.
        logits: (B,) mean logits of the images and of those that are to pass, by name.
    """

    generator_B: Tensor
    discriminator_B: Tensor
    logits: dict[str, Tensor]


def hinge_game(discriminator: nn.Module, real_BCHW: Tensor, fake_BCHW: Tensor) -> Game:
    """Let a discriminator judge images.

    Args:
        discriminator: Gives logits of patches, above zero for real.
        real_BCHW: (B, C, H, W) images.
        fake_BCHW: (B, C, H, W) images that are to pass for such.
    """
    constant = {name: p.detach() for name, p in discriminator.named_parameters()}
    passed = functional_call(discriminator, constant, (fake_BCHW,))
    real, fake = discriminator(torch.cat([real_BCHW, fake_BCHW.detach()])).flatten(1).chunk(2)
    hinge = 0.5 * (F.relu(1 - real) + F.relu(1 + fake))
    logits = {"logits_real": real.mean(1), "logits_fake": fake.mean(1)}
    return Game(-passed.flatten(1).mean(1), hinge.mean(1), logits)


@checked("module.image_terms")
@dataclass(frozen=True)
class ImageTerms:
    """How much the terms count, and where: near the noise an estimate is a mean, which no image looks like.

    Attributes:
        perceptual_weight: Weight of the perceptual distance, where there is one.
        adversarial_weight: Weight of the adversarial loss (hinge), where there is a discriminator.
        adversarial_start: Optimiser step from which the discriminator learns and is listened to.
        max_time: Of a flow, the time below which an estimate is judged (pixel MeanFlow, arXiv 2601.22158).
    """

    perceptual_weight: NonNegative = 0.4
    adversarial_weight: NonNegative = 0.1
    adversarial_start: WholeNumber = 0
    max_time: Share = 0.8

    def __call__(
        self,
        estimate_BCHW: Tensor,
        image_BCHW: Tensor,
        time_B: Tensor | None,
        discriminator: nn.Module | None,
        perceptual: Perceptual | None,
        step: int,
    ) -> LossOutput:
        """Return the terms of a batch: means over all of its images, of which those count that are judged.

        Args:
            estimate_BCHW: (B, C, H, W) estimates of the images.
            image_BCHW: (B, C, H, W) clean images.
            time_B: (B,) times of the estimates; None where all are judged.
            discriminator: Gives logits of patches, or None.
            perceptual: Gives (B,) distances of two batches of images, or None.
            step: Optimiser step.

        Returns:
            The weighted sum; the unweighted terms as logs, means over the images that are judged on any rank: the same ones
            on all ranks, as not each may have such an image.
        """
        loss, rows, count = estimate_BCHW.new_zeros(()), dict[str, Tensor](), len(image_BCHW)
        if time_B is not None:
            judged = time_B < self.max_time
            estimate_BCHW, image_BCHW = estimate_BCHW[judged], image_BCHW[judged]
        nobody = estimate_BCHW.new_zeros(0)
        if perceptual is not None and self.perceptual_weight:
            rows["perceptual"] = perceptual(estimate_BCHW, image_BCHW) if len(image_BCHW) else nobody
            loss = loss + self.perceptual_weight * rows["perceptual"].sum() / count
        if discriminator is not None:
            plays = step >= self.adversarial_start
            if plays and len(image_BCHW):
                game = hinge_game(discriminator, image_BCHW, estimate_BCHW)
                loss = loss + (self.adversarial_weight * game.generator_B + game.discriminator_B).sum() / count
                rows |= {"adversarial": game.generator_B, "discriminator": game.discriminator_B, **game.logits}
            else:  # under DDP every weight needs a gradient in every step
                loss = loss + 0.0 * sum(p.sum() for p in discriminator.parameters())
                rows |= dict.fromkeys(GAME_LOGS, nobody) if plays else {}
        return LossOutput(loss, means_of_rows(rows))
