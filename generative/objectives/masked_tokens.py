"""Masked token modelling: guess the codes of randomly masked tokens from the others.

MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.2): a ratio r ~ U(0, 1) is drawn, ceil(gamma(r) N) of the N tokens are
masked, and the loss is the cross-entropy of the masked ones, with label smoothing 0.1. For inpainting the masked tokens can
be some of a hole's only, so that all that is outside of it is known, as in decoding.

Shape legend: B batch, N tokens, K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.checks import checked
from generative.inpainting import gray_patches
from generative.networks.token_transformer import TokenNetwork
from generative.randomness import Randomness
from generative.ranges import BelowOne, NonNegative, PositiveShare, Share
from generative.ranks import mean_over_ranks
from generative.schedules.masking import GradualSchedule, MaskSchedule, largest, masked_count
from generative.types import Condition, LossOutput


class MaskRatio(Protocol):
    """A distribution of the masked share."""

    def __call__(self, randomness: Randomness) -> Tensor:
        """Draw (B,) shares in [0, 1]."""


@checked("objective.ratio")
@dataclass(frozen=True)
class GammaRatio:
    """MaskGIT's distribution: gamma(r) of a uniform r.

    Attributes:
        schedule: Name of gamma; see ``MaskSchedule``. ``one_shot`` is none: of random ratios it masks one token, always.
    """

    schedule: GradualSchedule = "cosine"

    def __call__(self, randomness: Randomness) -> Tensor:
        """Draw shares.

        Returns:
            (B,) shares in [0, 1].
        """
        return MaskSchedule(self.schedule)(randomness.uniform())


@checked("objective.ratio")
@dataclass(frozen=True)
class UniformRatio:
    """Uniform shares.

    Attributes:
        low: Smallest share.
        high: Largest share.
    """

    low: PositiveShare = 0.4
    high: PositiveShare = 0.5

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"objective.ratio.low={self.low} must not exceed objective.ratio.high={self.high}.")

    def __call__(self, randomness: Randomness) -> Tensor:
        """Draw shares.

        Returns:
            (B,) shares in [low, high].
        """
        return self.low + (self.high - self.low) * randomness.uniform()


@checked("objective")
@dataclass(frozen=True)
class MaskedTokenObjective:
    """Cross-entropy of masked tokens.

    Attributes:
        ratio: Distribution of the share of the candidates that is masked.
        loss_on: ``"masked"`` tokens, or ``"all"``.
        label_smoothing: Share of the target that is spread evenly over all codes, in [0, 1).
        hole_share: Probability that the candidates of an image are the tokens of its hole and not all tokens.
        target_std: Standard deviation, in the unit of images in [-1, 1], of the Gaussian by which a target is shared among the
            codes; see ``near_codes``. 0 asks for the token's own code alone.
    """

    ratio: MaskRatio
    loss_on: Literal["masked", "all"] = "masked"
    label_smoothing: BelowOne = 0.1
    hole_share: Share = 0.0
    target_std: NonNegative = 0.0

    def __call__(
        self,
        network: TokenNetwork,
        tokens_BN: Tensor,
        hole_BN: Tensor | None,
        condition: Condition,
        randomness: Randomness,
        target_KK: Tensor | None = None,
    ) -> LossOutput:
        """Return the loss of a batch.

        Args:
            network: Network of masked tokens.
            tokens_BN: (B, N) int64 codes.
            hole_BN: (B, N) bool, true where a token of the hole is; None without holes.
            condition: What the network is told; of its image the patches of masked tokens outside of the hole are hidden.
            target_KK: (K, K) distribution of the target for each code, with ``target_std`` (see ``near_codes``); else None.

        Returns:
            The mean over the batch's masked tokens, or over all. The logs are those of the masked tokens: ``accuracy`` of
            the most likely code, ``cross_entropy`` of the codes themselves, and ``masked_share`` of all tokens. On several
            ranks sums are divided by the masked tokens of the average rank, so that the ranks' mean is that over the tokens
            of all of them; ``weight`` is that number of tokens.
        """
        if self.target_std > 0 and target_KK is None:
            raise ValueError(
                f"objective.target_std={self.target_std:g} needs the patches of the codes: none were measured."
            )
        masked_BN = self.mask(tokens_BN, hole_BN, randomness)
        shown = hidden(condition, masked_BN if hole_BN is None else masked_BN & ~hole_BN)
        logits_BNK = network(torch.where(masked_BN, network.mask_token, tokens_BN), shown)
        log_p_BNK = logits_BNK.float().log_softmax(dim=-1)
        cross_entropy_BN = -log_p_BNK.gather(-1, tokens_BN[..., None])[..., 0]
        error_BN = cross_entropy_BN
        if target_KK is not None:
            error_BN = -(F.embedding(tokens_BN, target_KK) * log_p_BNK).sum(dim=-1)
        if self.label_smoothing:
            error_BN = torch.lerp(error_BN, -log_p_BNK.mean(dim=-1), self.label_smoothing)
        count = mean_over_ranks(masked_BN.sum())

        def mean(value_BN: Tensor) -> Tensor:
            return (value_BN * masked_BN).sum() / count

        logs = {
            "accuracy": mean((logits_BNK.detach().argmax(dim=-1) == tokens_BN).float()),
            "cross_entropy": mean(cross_entropy_BN.detach()),
            "masked_share": masked_BN.float().mean(),
        }
        return LossOutput(error_BN.mean(), logs) if self.loss_on == "all" else LossOutput(mean(error_BN), logs, count)

    def mask(self, tokens_BN: Tensor, hole_BN: Tensor | None, randomness: Randomness) -> Tensor:
        """Draw which tokens are masked: of each row's C candidates max(1, ceil(ratio C)).

        Args:
            tokens_BN: (B, N) int64 codes.
            hole_BN: (B, N) bool, true where a token of the hole is; None without holes.

        Returns:
            (B, N) bool map.

        Raises:
            ValueError: If holes are asked for and there are none.
        """
        candidate_BN = torch.ones_like(tokens_BN, dtype=torch.bool)
        if self.hole_share > 0:
            if hole_BN is None:
                raise ValueError(
                    f"objective.hole_share={self.hole_share} needs images with holes: choose a degradation that makes them, "
                    "such as degradation=block_mask, or set objective.hole_share=0."
                )
            in_hole_B = (randomness.uniform() < self.hole_share) & hole_BN.any(dim=1)
            candidate_BN = hole_BN | ~in_hole_B[:, None]
        count_B = masked_count(self.ratio(randomness), candidate_BN.sum(dim=1)).clamp(min=1)
        return largest(randomness.uniform(tokens_BN.shape[1]).masked_fill(~candidate_BN, -1.0), count_B)


def hidden(condition: Condition, token_BN: Tensor) -> Condition:
    """Take the pixels of some tokens out of a condition.

    Args:
        condition: Its image is (B, C + 1, H, W), the known pixels and their validity, or None.
        token_BN: (B, N) bool, true for tokens of a square grid whose patches are to be unknown.

    Returns:
        The condition with zeros in those patches, in the validity too.
    """
    if condition.image is None:
        return condition
    return replace(condition, image=gray_patches(condition.image, token_BN, math.isqrt(token_BN.shape[1])))


def near_codes(patch_KCPP: Tensor, std: float) -> Tensor:
    """Share each code's target among the codes that paint nearly the same.

    Args:
        patch_KCPP: (K, C, P, P) patch of each code, in [-1, 1].
        std: Standard deviation s > 0.

    Returns:
        (K, K) distributions, one a row: in proportion to exp(-d^2 / (2 s^2)), where d^2 is the mean squared difference of two
        patches' pixels.
    """
    patch_KP = patch_KCPP.flatten(1).double()
    distance_KK = torch.cdist(patch_KP, patch_KP).square() / patch_KP.shape[1]
    return (-distance_KK / (2 * std**2)).softmax(dim=-1).float()


def token_accuracy(
    network: TokenNetwork,
    tokens_BN: Tensor,
    ratio: float,
    condition: Condition,
    randomness: Randomness,
    hide_pixels: bool = True,
) -> Tensor:
    """Return how many randomly masked tokens the most likely code gets right.

    Args:
        network: Network of masked tokens.
        tokens_BN: (B, N) int64 codes.
        ratio: Share of the tokens that is masked, in (0, 1]: ceil(ratio N) of them.
        condition: What the network is told.
        hide_pixels: Whether the patches of the masked tokens are hidden in its image.

    Returns:
        (B,) shares of each image's masked tokens.
    """
    masked_BN = MaskedTokenObjective(UniformRatio(ratio, ratio)).mask(tokens_BN, None, randomness)
    shown = hidden(condition, masked_BN) if hide_pixels else condition
    logits_BNK = network(torch.where(masked_BN, network.mask_token, tokens_BN), shown)
    right_BN = (logits_BNK.argmax(dim=-1) == tokens_BN) & masked_BN
    return right_BN.sum(dim=1) / masked_BN.sum(dim=1)
