"""Samplers of masked token networks: from unknown tokens to codes in T steps that accept some tokens each.

MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.3): in step i every unknown token is sampled, the most confident ones
are accepted, and ceil(gamma(i/T) M) of the M tokens that were unknown at the start stay masked; each step accepts at least
one, so T is at most M. The confidence is log p(token) + tau (1 - i/T) g with Gumbel noise g. Halton-MaskGIT
(arXiv 2503.17076) accepts in the order in which the (2, 3) Halton sequence visits the grid, and needs no confidence. What is
known never changes.

What was accepted early was drawn from little. So further steps can revise: each masks a share of the sampled tokens again, the
least confident ones or random ones, and draws them anew, given all others. With a random single token that is Gibbs sampling,
whose limit does not depend on the order of the first draws (masked language models as such samplers: arXiv 1902.04094).

Tokens can come with evidence of their own (``generative.patch_evidence``), which is added to their logits in every step.
Until a token is accepted its evidence tells the others nothing, so that orders without a confidence begin with such tokens.

Shape legend: B batch, N tokens of a square grid in row-major order, K codes, U tokens of the batch that are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.checks import checked
from generative.guidance import ClassifierFreeGuidance
from generative.networks.token_transformer import TokenNetwork
from generative.randomness import Randomness
from generative.ranges import Count, NonNegative, PositiveShare, WholeNumber
from generative.schedules.masking import MaskSchedule, ScheduleName, largest, masked_count
from generative.types import Condition


class MaskedState(NamedTuple):
    """Where a sampler stands after a step.

    Attributes:
        tokens: (B, N) int64 codes, and the mask token where they are still unknown.
        unknown: (B, N) bool, true where a token is still unknown.
        predicted: (B, N) int64 codes, the step's whole guess: what was known before it, and a sample for all that was not.
    """

    tokens: Tensor
    unknown: Tensor
    predicted: Tensor


@checked("sampler")
@dataclass(frozen=True)
class MaskedTokenSampler:
    """Fills unknown tokens step by step.

    Attributes:
        num_steps: Number of steps T; a row of fewer unknown tokens takes one for each of them.
        schedule: Name of the schedule gamma of the tokens that stay masked; see ``MaskSchedule``.
        order: Which tokens are accepted first: by ``"confidence"``, along the ``"halton"`` sequence, or ``"random"``; the
            latter two begin with the tokens that have evidence.
        token_temperature: Temperature of the softmax that tokens are sampled from; 0 takes the most likely code.
        choice_temperature: Scale tau of the Gumbel noise on the confidence in the first steps; 0 is none. 4.5 in MaskGIT.
        stop_at_step: Step after which everything still unknown takes that step's guess; None: there is none.
        revisions: Further steps, which draw some of the sampled tokens anew.
        revised_share: Share of a row's sampled tokens that each revision draws anew, at least one: with order
            ``"confidence"`` those whose last draw was the least confident, with Gumbel noise of scale tau; else random ones.
    """

    num_steps: Count = 8
    schedule: ScheduleName = "cosine"
    order: Literal["confidence", "halton", "random"] = "confidence"
    token_temperature: NonNegative = 1.0
    choice_temperature: NonNegative = 4.5
    stop_at_step: Count | None = None
    revisions: WholeNumber = 0
    revised_share: PositiveShare = 0.25

    @property
    def mask_schedule(self) -> MaskSchedule:
        """The schedule gamma."""
        return MaskSchedule(self.schedule)

    @property
    def num_network_calls(self) -> int:
        """The most network calls that an image takes; see ``network_calls``."""
        return self.most_steps + self.revisions

    @property
    def most_steps(self) -> int:
        """The same without revisions: the steps that are taken of ``num_steps``."""
        return self._planned_steps if self.stop_at_step is None else min(self._planned_steps, self.stop_at_step)

    @property
    def _planned_steps(self) -> int:
        return 1 if self.schedule == "one_shot" else self.num_steps

    def network_calls(self, unknown_BN: Tensor) -> Tensor:
        """Return the network calls of each row: one for each unknown token up to the number of steps, and the revisions.

        A guided call counts once.

        Args:
            unknown_BN: (B, N) bool, true where a token is to be sampled.

        Returns:
            (B,) int64 numbers, 0 where nothing is unknown.
        """
        unknown_B = unknown_BN.sum(dim=1)
        return unknown_B.clamp(max=self.most_steps) + self.revisions * (unknown_B > 0)

    def __call__(
        self,
        network: TokenNetwork,
        tokens_BN: Tensor,
        unknown_BN: Tensor,
        condition: Condition,
        randomness: Randomness,
        evidence_BNK: Tensor | None = None,
        guidance: ClassifierFreeGuidance | None = None,
    ) -> Tensor:
        """Return the filled tokens.

        Args:
            network: Network of masked tokens.
            tokens_BN: (B, N) int64 codes; those at unknown places do not matter.
            unknown_BN: (B, N) bool, true where a token is to be sampled; rows may differ in their number, also 0.
            evidence_BNK: (B, N, K) log-likelihoods of the codes, zero for tokens without evidence; None without any.
            guidance: Moves the logits by the labels, where they are known; its time is the share of the row's unknown tokens
                that are masked in the call, 1 in the first one.

        Returns:
            (B, N) int64 codes, equal to ``tokens_BN`` where those are known.
        """
        for state in self.states(network, tokens_BN, unknown_BN, condition, randomness, evidence_BNK, guidance):
            tokens_BN = state.tokens
        return tokens_BN

    def states(
        self,
        network: TokenNetwork,
        tokens_BN: Tensor,
        unknown_BN: Tensor,
        condition: Condition,
        randomness: Randomness,
        evidence_BNK: Tensor | None = None,
        guidance: ClassifierFreeGuidance | None = None,
    ) -> Iterator[MaskedState]:
        """Yield the state after each step; rows in which nothing is left unknown are not shown to the network again.

        Args:
            network: Network of masked tokens.
            randomness: Source of all draws; each row draws the same whatever the others hold.

        Yields:
            One state per network call; after the last step, and in the revisions, nothing is unknown.
        """
        # On the CPU: all counts follow from those at the start, whatever is sampled.
        sampled_BN, start_B = unknown_BN, unknown_BN.sum(dim=1).cpu()
        left_B = start_B
        rank_BN = self._rank(unknown_BN, randomness, evidence_BNK)
        tokens_BN = torch.where(unknown_BN, network.mask_token, tokens_BN)
        confidence_BN = torch.zeros(unknown_BN.shape, device=tokens_BN.device)
        for stay_B, noise_B, revises in self._plan(start_B):
            count_B = stay_B if revises else left_B - stay_B
            left_B = torch.zeros_like(left_B) if revises else stay_B
            rows = count_B.nonzero()[:, 0]
            if len(rows) == 0:
                continue
            count_R, start_R, noise_R = (part[rows].to(tokens_BN.device) for part in (count_B, start_B, noise_B))
            rows = rows.to(tokens_BN.device)
            draws, tokens_RN, unknown_RN = randomness.select(rows), tokens_BN[rows], unknown_BN[rows]
            if revises:
                unknown_RN = self._again(sampled_BN[rows], confidence_BN[rows], count_R, noise_R, draws)
                tokens_RN = torch.where(unknown_RN, network.mask_token, tokens_RN)
            share_R1 = (unknown_RN.sum(dim=1) / start_R)[:, None]
            logits_RNK = _logits(network, tokens_RN, share_R1, condition.select(rows), guidance)
            if evidence_BNK is not None:
                logits_RNK = logits_RNK + evidence_BNK[rows]
            guess_RN, log_p_RN = self._guess(logits_RNK, unknown_RN, draws)
            predicted_RN = torch.where(unknown_RN, guess_RN, tokens_RN)
            accepted_RN = unknown_RN
            if not revises:
                rank_RN = None if rank_BN is None else rank_BN[rows]
                score_RN = self._score(log_p_RN, noise_R, draws) if rank_RN is None else -rank_RN
                score_RN = score_RN.nan_to_num()  # finite: above what is known
                accepted_RN = largest(score_RN.masked_fill(~unknown_RN, -math.inf), count_R)
            predicted_BN = tokens_BN.index_copy(0, rows, predicted_RN)
            tokens_BN = tokens_BN.index_copy(0, rows, torch.where(accepted_RN, predicted_RN, tokens_RN))
            unknown_BN = unknown_BN.index_copy(0, rows, unknown_RN & ~accepted_RN)
            kept_RN = torch.where(accepted_RN, log_p_RN, confidence_BN[rows])
            confidence_BN = confidence_BN.index_copy(0, rows, kept_RN)
            yield MaskedState(tokens_BN, unknown_BN, predicted_BN)

    def _plan(self, unknown_B: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield for each network call (B,) tokens, (B,) scales of the noise on the confidence, and whether it revises.

        The tokens are those that stay masked after a step, or those that a revision draws anew.
        """
        for stay_B, noise_B in zip(self._masked_after_steps(unknown_B), self._noise(unknown_B), strict=True):
            yield stay_B, noise_B, False
        again_B = masked_count(self.revised_share, unknown_B)
        for _ in range(self.revisions):
            yield again_B, torch.full(again_B.shape, self.choice_temperature), True

    def _again(
        self, sampled_BN: Tensor, confidence_BN: Tensor, count_B: Tensor, noise_B: Tensor, randomness: Randomness
    ) -> Tensor:
        """(B, N) bool map of the sampled tokens that a revision masks."""
        if self.order == "confidence":
            score_BN = -self._score(confidence_BN, noise_B, randomness).nan_to_num()
        else:
            score_BN = randomness.uniform(sampled_BN.shape[1])
        return largest(score_BN.masked_fill(~sampled_BN, -math.inf), count_B)

    def _masked_after_steps(self, unknown_B: Tensor) -> Tensor:
        """(T, B) tokens that are masked after each network call."""
        after_TB = self.mask_schedule.masked_after_steps(self._planned_steps, unknown_B)[: self.most_steps]
        after_TB[-1] = 0
        return after_TB

    def _noise(self, unknown_B: Tensor) -> Tensor:
        """(T, B) scales tau (1 - i/T) of the noise on the confidence, T being the row's own number of steps."""
        step_T1 = torch.arange(1, self.most_steps + 1)[:, None]
        share_TB = 1 - step_T1 / unknown_B.clamp(min=1, max=self._planned_steps).double()
        return (self.choice_temperature * share_TB.clamp(min=0)).float()

    def _rank(self, unknown_BN: Tensor, randomness: Randomness, evidence_BNK: Tensor | None) -> Tensor | None:
        """(B, N) float ranks, the smallest accepted first; None where the confidence decides."""
        if self.order == "confidence":
            return None
        num_tokens = unknown_BN.shape[1]
        if self.order == "random":
            rank_BN = randomness.uniform(num_tokens)
        else:
            rank_N = torch.empty(num_tokens)
            rank_N[list(halton_order(num_tokens))] = torch.arange(num_tokens) / num_tokens
            rank_BN = rank_N.to(unknown_BN.device).expand_as(unknown_BN)
        return rank_BN if evidence_BNK is None else rank_BN - evidence_BNK.any(dim=-1).float()

    def _score(self, log_p_BN: Tensor, noise_B: Tensor, randomness: Randomness) -> Tensor:
        """(B, N) log-probabilities with Gumbel noise."""
        if self.choice_temperature == 0:
            return log_p_BN
        return log_p_BN + noise_B[:, None] * _gumbel(randomness.uniform(log_p_BN.shape[1]))

    def _guess(self, logits_BNK: Tensor, unknown_BN: Tensor, randomness: Randomness) -> tuple[Tensor, Tensor]:
        """(B, N) sampled codes and the logarithms of their probabilities, zeros where nothing is unknown."""
        num_tokens = unknown_BN.shape[1]
        place_U = unknown_BN.flatten().nonzero()[:, 0]
        logits_UK = logits_BNK.flatten(0, 1)[place_U].float()
        uniform_U = None if self.token_temperature == 0 else randomness.uniform(num_tokens).flatten()[place_U]
        guess_U, log_p_U = self._sample(logits_UK, uniform_U)
        nothing = torch.zeros(unknown_BN.numel(), device=unknown_BN.device)
        guess_BN = nothing.long().index_copy(0, place_U, guess_U).view_as(unknown_BN)
        return guess_BN, nothing.index_copy(0, place_U, log_p_U).view_as(unknown_BN)

    def _sample(self, logits_UK: Tensor, uniform_U: Tensor | None) -> tuple[Tensor, Tensor]:
        """(U,) codes and the logarithms of their probabilities at temperature 1; the most likely codes without numbers."""
        if uniform_U is None:
            guess_U = logits_UK.argmax(dim=-1)
        elif self.token_temperature == 1:
            guess_U, probability_U = sample_codes(logits_UK, uniform_U)
            return guess_U, probability_U.log()  # a second softmax would cost as much as all else here
        else:
            guess_U, _ = sample_codes(logits_UK / self.token_temperature, uniform_U)
        return guess_U, -F.cross_entropy(logits_UK, guess_U, reduction="none")


def _logits(
    network: TokenNetwork,
    tokens_BN: Tensor,
    share_B1: Tensor,
    condition: Condition,
    guidance: ClassifierFreeGuidance | None,
) -> Tensor:
    """(B, N, K) logits, guided at the times ``share_B1``."""
    if guidance is None:
        return network(tokens_BN, condition)

    def plain(tokens_BN: Tensor, times_BT: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        return (network(tokens_BN, condition),)

    return guidance.wrap(plain)(tokens_BN, share_B1, condition)[0]


def sample_codes(logits_UK: Tensor, uniform_U: Tensor) -> tuple[Tensor, Tensor]:
    """Sample codes by the inverse of their cumulative distribution.

    Args:
        logits_UK: (U, K) float32 logits.
        uniform_U: (U,) float32 numbers in [0, 1).

    Returns:
        (U,) int64 codes, each the first whose cumulative probability is above the uniform number, never one of probability
        0; and (U,) their probabilities.
    """
    probability_UK = logits_UK.softmax(dim=-1)
    cumulative_UK = probability_UK.cumsum(dim=-1)
    total_U1 = cumulative_UK[:, -1:]
    below_U1 = torch.nextafter(total_U1, torch.zeros_like(total_U1))  # rounding must not lift a product to the total
    code_U1 = torch.searchsorted(cumulative_UK, torch.minimum(uniform_U[:, None] * total_U1, below_U1), right=True)
    return code_U1[:, 0], probability_UK.gather(1, code_U1)[:, 0]


@lru_cache
def halton_order(num_tokens: int) -> tuple[int, ...]:
    """Return the cells of a square grid in the order in which the (2, 3) Halton sequence first visits them.

    Point k = 1, 2, ... has the row of its radical inverse in base 2 and the column of that in base 3.

    Args:
        num_tokens: Number of cells N, a square.

    Returns:
        A permutation of the N row-major positions.

    Raises:
        ValueError: N is no square.
    """
    size = math.isqrt(num_tokens)
    if size**2 != num_tokens:
        raise ValueError(
            f"sampler.order=halton needs a square grid of tokens, not {num_tokens}: choose sampler.order=random."
        )
    visited: dict[int, None] = {}  # keeps the order
    k = 0
    while len(visited) < num_tokens:
        k += 1
        visited.setdefault(_scaled_radical_inverse(k, 2, size) * size + _scaled_radical_inverse(k, 3, size))
    return tuple(visited)


def _scaled_radical_inverse(index: int, base: int, size: int) -> int:
    """Floor of ``size`` times the index' digits mirrored at the point, in whole numbers: floats round 2/3 of 3 down."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return size * numerator // denominator


def _gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise; finite also for a 0."""
    return -(-uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log()).log()
