"""Quantisers: bottlenecks that make tokens.

- ``VectorQuantizer``: VQ-VAE (arXiv 1711.00937) with codes as moving averages (its appendix A.1) and restarts of unused ones
  (Jukebox, arXiv 2005.00341, section 3.2);
- ``SimVQ``: frozen codes under a learnt linear map, which moves all of them at once (arXiv 2411.02038);
- ``FSQ``: finite scalar quantisation, a fixed grid of codes (arXiv 2309.15505).

Own code: the draws of a restart must be a function of the step, so that a resumed run is exact, and the statistics those of all
ranks.

Shape legend: B batch, D latent channels, H/W height and width of the token grid, N = H W tokens, M = B N vectors, K codes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from annotated_types import Ge
from einops import rearrange
from torch import Tensor, nn

from generative.checks import checked
from generative.float32 import whole_float32
from generative.networks.bottlenecks import Bottleneck, Latent
from generative.randomness import Randomness
from generative.ranges import AtLeastTwo, BelowOne, Count, NonNegative

BOUND_MARGIN = 1e-3  # of FSQ's range beyond its outermost levels, so that these are reached
Gradient = Literal["straight_through", "rotation"]


class _NearestCode(Bottleneck):
    """Replaces each vector by the nearest code."""

    num_codes: int

    def __init__(self, num_codes: int, dim: int, commitment_weight: float, gradient: Gradient) -> None:
        super().__init__()
        self.in_channels = self.dim = dim
        self.num_codes = num_codes
        self.commitment_weight = commitment_weight
        self.gradient = gradient

    @abstractmethod
    def codebook(self) -> Tensor:
        """Return the (K, D) codes."""

    def codes(self, tokens_BN: Tensor) -> Tensor:
        return F.embedding(tokens_BN, self.codebook())

    def nearest(self, vector_MD: Tensor, code_KD: Tensor) -> Tensor:
        """Find the nearest codes.

        Args:
            vector_MD: (M, D) vectors.
            code_KD: (K, D) codes.

        Returns:
            (M,) int64 indices; the first of equally near ones.
        """
        # |v - c|^2 without |v|^2, which is the same for all codes.
        with whole_float32(vector_MD.device):  # of two codes that are nearly as near the nearer one on any device
            return (code_KD.square().sum(1) - 2 * vector_MD @ code_KD.T).argmin(1)

    def forward(self, z_BDHW: Tensor, randomness: Randomness | None = None) -> Latent:
        batch, _, height, _ = z_BDHW.shape
        vector_MD = rearrange(z_BDHW, "b d h w -> (b h w) d").float()
        code_KD = self.codebook()
        with torch.no_grad():
            if self.training:
                code_KD = self.prepare(vector_MD, code_KD, randomness)
            token_M = self.nearest(vector_MD, code_KD.detach())
        quantized_MD = F.embedding(token_M, code_KD)
        loss = self.commitment_weight * F.mse_loss(vector_MD, quantized_MD.detach()) + self.code_loss(
            vector_MD, quantized_MD
        )
        if self.training:
            self.learn(vector_MD.detach(), token_M, randomness)
        through_MD = self._through(vector_MD, quantized_MD.detach())
        z = rearrange(through_MD, "(b h w) d -> b d h w", b=batch, h=height).to(z_BDHW.dtype)
        return Latent(z, loss, token_M.view(batch, -1))

    def _through(self, vector_MD: Tensor, quantized_MD: Tensor) -> Tensor:
        """Return the codes with a gradient to the vectors."""
        if self.gradient == "straight_through":
            return vector_MD + (quantized_MD - vector_MD).detach()
        return rotated(vector_MD, quantized_MD)

    def prepare(self, vector_MD: Tensor, code_KD: Tensor, randomness: Randomness | None) -> Tensor:
        """Return the codes to use in a training step; a quantiser may place them on the first vectors it sees."""
        return code_KD

    def code_loss(self, vector_MD: Tensor, quantized_MD: Tensor) -> Tensor:
        """Return the loss by which codes learn, if they do by gradient."""
        return vector_MD.new_zeros(())

    def learn(self, vector_MD: Tensor, token_M: Tensor, randomness: Randomness | None) -> None:
        """Move the codes after a training step, if they do not learn by gradient."""


def rotated(vector_MD: Tensor, quantized_MD: Tensor) -> Tensor:
    """Turn and stretch each vector into its code, with rotation and stretch as constants (arXiv 2410.06424, section 4).

    The gradient is turned back with the vector, so it keeps its angle to it, which the straight-through estimator does not.

    Args:
        vector_MD: (M, D) vectors.
        quantized_MD: (M, D) codes.

    Returns:
        (M, D) values of the codes, gradients to the vectors.
    """
    vector, code = vector_MD.detach(), quantized_MD.detach()
    from_MD, to_MD = F.normalize(vector, dim=1), F.normalize(code, dim=1)
    middle_MD = F.normalize(from_MD + to_MD, dim=1)
    stretch_M1 = code.norm(dim=1, keepdim=True) / vector.norm(dim=1, keepdim=True).clamp(min=1e-6)

    def along(direction_MD: Tensor) -> Tensor:
        return (vector_MD * direction_MD).sum(1, keepdim=True)

    return stretch_M1 * (vector_MD - 2 * along(middle_MD) * middle_MD + 2 * along(from_MD) * to_MD)


@checked("bottleneck")
class VectorQuantizer(_NearestCode):
    """Codes that are moving averages of the vectors nearest to them; unused ones are put on vectors of the batch.

    Averages, counts and restarts are taken over all ranks, and the restarts' draws are a function of the step, so that ranks
    stay equal and a resumed run is exact.

    Args:
        num_codes: Number of codes K.
        dim: Channels D.
        decay: Decay of the moving averages.
        commitment_weight: Weight of the encoder's distance to its codes (beta in arXiv 1711.00937, eq. 3).
        restart_below: A code whose moving count of vectors a step, relative to an even share of them, falls below this is
            put on a random vector of the batch; 0 never does.
        gradient: How the gradient passes the quantiser: ``straight_through``, or ``rotation`` (arXiv 2410.06424).
    """

    def __init__(
        self,
        num_codes: AtLeastTwo,
        dim: Count,
        decay: BelowOne = 0.98,
        commitment_weight: NonNegative = 0.25,
        restart_below: NonNegative = 0.05,
        gradient: Gradient = "straight_through",
    ) -> None:
        super().__init__(num_codes, dim, commitment_weight, gradient)
        self.decay = decay
        self.restart_below = restart_below
        self.code: Tensor
        self.count: Tensor
        self.total: Tensor
        self.register_buffer("code", torch.zeros(num_codes, dim))
        self.register_buffer("count", torch.zeros(num_codes))  # moving count of vectors; all zero before the first step
        self.register_buffer("total", torch.zeros(num_codes, dim))  # moving sum of them

    def codebook(self) -> Tensor:
        return self.code

    def prepare(self, vector_MD: Tensor, code_KD: Tensor, randomness: Randomness | None) -> Tensor:
        """Begin on vectors of the first batch."""
        if not self.count.any():
            self._put(torch.ones_like(self.count, dtype=torch.bool), vector_MD, randomness)
        return self.code

    @torch.no_grad()
    def learn(self, vector_MD: Tensor, token_M: Tensor, randomness: Randomness | None) -> None:
        """Update the averages and restart unused codes."""
        count = torch.bincount(token_M, minlength=self.num_codes).to(self.count)
        total = torch.zeros_like(self.total).index_add_(0, token_M, vector_MD)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            dist.all_reduce(total)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        self.code.copy_(self.total / self.count.clamp(min=1e-6)[:, None])
        if self.restart_below > 0:
            even_share = self.count.sum() / self.num_codes
            self._put(self.count < self.restart_below * even_share, vector_MD, randomness)

    def _put(self, which_K: Tensor, vector_MD: Tensor, randomness: Randomness | None) -> None:
        """Put some codes on random vectors, with the count of an even share."""
        if not which_K.any():
            return
        if randomness is None:
            raise ValueError("VectorQuantizer draws in training and needs a randomness.")
        draws_a_row = math.ceil(self.num_codes / randomness.batch_size)
        choice_K = (randomness.uniform(draws_a_row).flatten()[: self.num_codes] * len(vector_MD)).long()
        place_KD = vector_MD[choice_K]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(place_KD, src=0)
        share = self.count.sum() / self.num_codes if self.count.any() else self.count.new_tensor(1.0)
        self.code.copy_(torch.where(which_K[:, None], place_KD, self.code))
        self.count.copy_(torch.where(which_K, share, self.count))
        self.total.copy_(torch.where(which_K[:, None], place_KD * share, self.total))


@checked("bottleneck")
class SimVQ(_NearestCode):
    """Frozen random codes under one learnt linear map: a gradient on any code moves all of them, so none is left behind.

    Args:
        num_codes: Number of codes K.
        dim: Channels D.
        commitment_weight: Weight of the encoder's distance to its codes; the codes' distance to the encodings has weight 1.
        gradient: As for ``VectorQuantizer``.
    """

    def __init__(
        self, num_codes: AtLeastTwo, dim: Count, commitment_weight: NonNegative = 0.25, gradient: Gradient = "rotation"
    ) -> None:
        super().__init__(num_codes, dim, commitment_weight, gradient)
        self.base: Tensor
        self.register_buffer("base", torch.randn(num_codes, dim) * dim**-0.5)
        self.map = nn.Linear(dim, dim, bias=False)

    def codebook(self) -> Tensor:
        return self.map(self.base).float()

    def code_loss(self, vector_MD: Tensor, quantized_MD: Tensor) -> Tensor:
        """Pull the codes to the encodings."""
        return F.mse_loss(quantized_MD, vector_MD.detach())


@checked("bottleneck")
class FSQ(Bottleneck):
    """Rounds each channel to one of a few levels; the codes are all combinations, so none has to be learnt.

    Args:
        levels: Levels of each channel; the number of codes is their product. The paper's choices for about 1,000 codes:
            8, 5, 5, 5.

    Raises:
        ValueError: If there are none.
    """

    def __init__(self, levels: Sequence[Annotated[int, Ge(3)]] = (8, 5, 5, 5)) -> None:
        super().__init__()
        if not levels:
            raise ValueError("bottleneck.levels=[] must be one number or more.")
        self.in_channels = self.dim = len(levels)
        self.num_codes = math.prod(levels)
        self.levels: Tensor
        self.strides: Tensor
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer(
            "strides", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]), persistent=False
        )

    def forward(self, z_BDHW: Tensor, randomness: Randomness | None = None) -> Latent:
        """The loss is zero."""
        level_D = self.levels.view(-1, 1, 1)
        # An even number of levels lies half a step off the middle: the bound is shifted so that all levels are reached.
        half_D, offset_D = (level_D - 1) * (1 + BOUND_MARGIN) / 2, torch.where(level_D % 2 == 0, 0.5, 0.0)
        shift_D = (offset_D / half_D).atanh()
        bounded = (z_BDHW.float() + shift_D).tanh() * half_D - offset_D
        rounded = bounded + (bounded.round() - bounded).detach()
        digits_BDHW = (rounded.detach() + level_D // 2).long()
        tokens = (digits_BDHW * self.strides.view(-1, 1, 1)).sum(1).flatten(1)
        return Latent((rounded / (level_D // 2)).to(z_BDHW.dtype), z_BDHW.new_zeros(()), tokens)

    def codes(self, tokens_BN: Tensor) -> Tensor:
        """In [-1, 1]."""
        digits_BND = tokens_BN[..., None] // self.strides % self.levels
        half_D = self.levels // 2
        return (digits_BND - half_D) / half_D
