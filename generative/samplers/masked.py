"""Samplers of masked token networks: from unknown tokens to codes in T steps that accept some tokens each.

MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.3): in step i every unknown token is sampled, the most confident ones
are accepted, and ceil(gamma(i/T) M) of the M tokens that were unknown at the start stay masked. The confidence is
log p(token) + tau (1 - i/T) g with Gumbel noise g. Halton-MaskGIT (arXiv 2503.17076) accepts in the order in which the
(2, 3) Halton sequence visits the grid, and needs no confidence. What is known or accepted never changes.

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

from generative.networks.token_transformer import TokenNetwork
from generative.randomness import Randomness
from generative.schedules.masking import MaskSchedule, check_schedule, largest
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


@dataclass(frozen=True)
class MaskedTokenSampler:
    """Fills unknown tokens step by step.

    Attributes:
        num_steps: Number of steps T.
        schedule: Name of the schedule gamma of the tokens that stay masked; see ``MaskSchedule``.
        order: Which tokens are accepted first: by ``"confidence"``, along the ``"halton"`` sequence, or ``"random"``.
        token_temperature: Temperature of the softmax that tokens are sampled from; 0 takes the most likely code.
        choice_temperature: Scale tau of the Gumbel noise on the confidence in the first steps; 0 is none. 4.5 in MaskGIT.
        stop_at_step: Step after which everything still unknown takes that step's guess; None goes on to the end.
    """

    num_steps: int = 8
    schedule: str = "cosine"
    order: Literal["confidence", "halton", "random"] = "confidence"
    token_temperature: float = 1.0
    choice_temperature: float = 4.5
    stop_at_step: int | None = None

    def __post_init__(self) -> None:
        check_schedule(self.schedule, "sampler.schedule")
        if self.num_steps < 1:
            raise ValueError(f"sampler.num_steps={self.num_steps} must be at least 1.")
        if self.order not in ("confidence", "halton", "random"):
            raise ValueError(f"sampler.order={self.order} is unknown: choose confidence, halton or random.")
        for name in ("token_temperature", "choice_temperature"):
            if getattr(self, name) < 0:
                raise ValueError(f"sampler.{name}={getattr(self, name)} must be at least 0.")
        if self.stop_at_step is not None and self.stop_at_step < 1:
            raise ValueError(
                f"sampler.stop_at_step={self.stop_at_step} must be at least 1, or null to go on to the end."
            )

    @property
    def mask_schedule(self) -> MaskSchedule:
        """The schedule gamma."""
        return MaskSchedule(self.schedule)

    @property
    def num_network_calls(self) -> int:
        """Network calls per image; none where nothing is unknown."""
        if self.schedule == "one_shot":
            return 1
        return self.num_steps if self.stop_at_step is None else min(self.num_steps, self.stop_at_step)

    def __call__(
        self,
        network: TokenNetwork,
        tokens_BN: Tensor,
        unknown_BN: Tensor,
        condition: Condition,
        randomness: Randomness,
    ) -> Tensor:
        """Return the filled tokens.

        Args:
            network: Network of masked tokens.
            tokens_BN: (B, N) int64 codes; those at unknown places do not matter.
            unknown_BN: (B, N) bool, true where a token is to be sampled; rows may differ in their number, also 0.
            condition: Condition of the network.
            randomness: Source of all draws.

        Returns:
            (B, N) int64 codes, equal to ``tokens_BN`` where those are known.
        """
        for state in self.states(network, tokens_BN, unknown_BN, condition, randomness):
            tokens_BN = state.tokens
        return tokens_BN

    def states(
        self,
        network: TokenNetwork,
        tokens_BN: Tensor,
        unknown_BN: Tensor,
        condition: Condition,
        randomness: Randomness,
    ) -> Iterator[MaskedState]:
        """Yield the state after each step.

        Args:
            network: Network of masked tokens.
            tokens_BN: See ``__call__``.
            unknown_BN: See ``__call__``.
            condition: Condition of the network.
            randomness: Source of all draws; each row draws the same whatever the others hold.

        Yields:
            One state per network call; after the last one nothing is unknown.
        """
        # On the CPU: all counts follow from those at the start, whatever is sampled.
        start_B = unknown_BN.sum(dim=1).cpu()
        left_B = start_B
        rank_BN = self._rank(unknown_BN, randomness)
        tokens_BN = torch.where(unknown_BN, network.mask_token, tokens_BN)
        for step in range(1, self.num_network_calls + 1):
            if not left_B.any():
                return
            logits_BNK = network(tokens_BN, condition)
            guess_BN, score_BN = self._guess(logits_BNK, unknown_BN, step, randomness)
            predicted_BN = torch.where(unknown_BN, guess_BN, tokens_BN)
            stay_B = self.mask_schedule.masked_after(step, self.num_steps, start_B)
            if step == self.num_network_calls:
                stay_B = torch.zeros_like(stay_B)
            score_BN = (score_BN if rank_BN is None else -rank_BN).nan_to_num()  # finite: above what is known
            score_BN = score_BN.masked_fill(~unknown_BN, -math.inf)
            accepted_BN = largest(score_BN, (left_B - stay_B).to(score_BN.device))
            tokens_BN = torch.where(accepted_BN, predicted_BN, tokens_BN)
            unknown_BN = unknown_BN & ~accepted_BN
            left_B = stay_B
            yield MaskedState(tokens_BN, unknown_BN, predicted_BN)

    def _rank(self, unknown_BN: Tensor, randomness: Randomness) -> Tensor | None:
        """(B, N) float ranks, the smallest accepted first; None where the confidence decides."""
        num_tokens = unknown_BN.shape[1]
        if self.order == "random":
            return randomness.uniform(num_tokens)
        if self.order == "halton":
            rank_N = torch.empty(num_tokens)
            rank_N[list(halton_order(num_tokens))] = torch.arange(num_tokens, dtype=rank_N.dtype)
            return rank_N.to(unknown_BN.device).expand_as(unknown_BN)
        return None

    def _guess(
        self, logits_BNK: Tensor, unknown_BN: Tensor, step: int, randomness: Randomness
    ) -> tuple[Tensor, Tensor]:
        """(B, N) sampled codes and their confidence, zeros where nothing is unknown."""
        num_tokens = unknown_BN.shape[1]
        place_U = unknown_BN.flatten().nonzero()[:, 0]
        logits_UK = logits_BNK.flatten(0, 1)[place_U].float()
        uniform_U = None if self.token_temperature == 0 else randomness.uniform(num_tokens).flatten()[place_U]
        guess_U, log_p_U = self._sample(logits_UK, uniform_U)
        nothing = torch.zeros(unknown_BN.numel(), device=unknown_BN.device)
        guess_BN = nothing.long().index_copy(0, place_U, guess_U).view_as(unknown_BN)
        confidence_BN = nothing.index_copy(0, place_U, log_p_U).view_as(unknown_BN)
        if self.order != "confidence":
            return guess_BN, confidence_BN
        scale = self.choice_temperature * (1 - step / self.num_steps)
        if scale > 0:
            confidence_BN = confidence_BN + scale * _gumbel(randomness.uniform(num_tokens))
        return guess_BN, confidence_BN

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
