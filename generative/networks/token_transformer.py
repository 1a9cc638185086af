"""Bidirectional transformer over a grid of tokens: guesses the codes of masked tokens from all the others.

MaskGIT (Chang et al. 2022, arXiv 2202.04200) with pre-norm, QK-norm (arXiv 2302.05442) and SwiGLU (arXiv 2002.05202). The
blocks' norm is layer norm, as PyTorch's RMSNorm has no fused kernel on the CPU: forward and backward take four times as
long, a tenth of a training step. Labels enter as object tokens, pooled into the embedding and by cross-attention, as in the
DiT.

The output layer shares the weights of the token embedding (arXiv 1608.05859), as in MaskGIT: through the softmax every code
gets a gradient from every masked token, so that also the embeddings of rare codes are trained in a short run. To each learnt
embedding a linear map of the tokenizer's own code is added: codes that mean nearly the same begin nearly equal and learn
together. The mask token has an embedding and no output, so it cannot be predicted.

Shape legend: B batch, N tokens of the grid in row-major order, D width, K codes, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.checks import checked
from generative.networks.attention import make_attention
from generative.networks.dit import SwiGLU, sincos_positions
from generative.networks.labels import LabelTokens, ObjectTokens
from generative.networks.matrices import at_end
from generative.ranges import BelowOne, Count, Positive
from generative.types import Condition

INIT_STD = 0.02  # of MaskGIT, as of BERT (arXiv 1810.04805)


class TokenNetwork(Protocol):
    """What objectives and samplers ask of a network of masked tokens."""

    @property
    def mask_token(self) -> int:
        """Input that stands for "not known"."""

    def __call__(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
        """Return the (B, N, K) logits of the codes of (B, N) tokens, the mask token among them."""


class TokenBlock(nn.Module):
    """Pre-norm transformer block: it is the identity at initialisation."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, dropout: float, cross_attention: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = make_attention("full", dim, num_heads, dim)
        if cross_attention:
            self.cross_norm = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attention = make_attention("cross", dim, num_heads, dim) if cross_attention else None
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim, mlp_ratio)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.mlp.out.weight)
        nn.init.zeros_(self.mlp.out.bias)

    def forward(self, x_BND: Tensor, objects: ObjectTokens | None) -> Tensor:
        """Transform the tokens.

        Args:
            x_BND: (B, N, D) tokens.
            objects: Object tokens of the batch; None without labels.

        Returns:
            (B, N, D) tokens.
        """
        x_BND = x_BND + self.dropout(self.attention(self.attention_norm(x_BND)))
        if self.cross_attention is not None:
            x_BND = x_BND + self.dropout(self.cross_attention(self.cross_norm(x_BND), objects))
        return x_BND + self.dropout(self.mlp(self.mlp_norm(x_BND)))


@checked("network")
class TokenTransformer(nn.Module):
    """Bidirectional transformer from tokens, some of them masked, to the logits of all tokens' codes.

    Args:
        num_codes: Number of codes K.
        grid_size: Side of the square token grid.
        dim: Width D.
        depth: Number of blocks.
        num_heads: Number of attention heads, a divisor of ``dim``.
        mlp_ratio: Parameters of the feed-forward layers, as the width ratio of a plain one.
        dropout: Share of features dropped from the embeddings and the residual branches while training, in [0, 1).
        label_factors: Number of values of each factor of the labels; empty for no labels.
        codebook_KE: (K, E) codes of the tokenizer, or None where nothing is known of them.

    Raises:
        ValueError: If the settings do not fit each other.

    Attributes:
        num_codes: Number of codes K.
        grid_size: Side of the square token grid.
    """

    def __init__(
        self,
        num_codes: Count,
        grid_size: Count,
        dim: Count = 192,
        depth: Count = 6,
        num_heads: Count = 6,
        mlp_ratio: Positive = 4.0,
        dropout: BelowOne = 0.0,
        label_factors: Sequence[Count] = (),
        codebook_KE: Tensor | None = None,
    ) -> None:
        super().__init__()
        if dim % num_heads or dim % 4:
            raise ValueError(f"network.dim={dim} must be a multiple of 4 and of network.num_heads={num_heads}.")
        self.num_codes = num_codes
        self.grid_size = grid_size
        labelled = bool(label_factors)
        self.embedding = nn.Embedding(num_codes + 1, dim)
        self.codebook: Tensor | None
        self.register_buffer("codebook", None if codebook_KE is None else _standardised(codebook_KE))
        self.from_code = None if codebook_KE is None else at_end(nn.Linear(codebook_KE.shape[1], dim, bias=False))
        self.positions = nn.Parameter(torch.empty(self.num_tokens, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TokenBlock(dim, num_heads, mlp_ratio, dropout, labelled) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(num_codes))
        self.labels = at_end(LabelTokens(label_factors, dim)) if labelled else None
        self._initialise()

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return self.grid_size**2

    @property
    def mask_token(self) -> int:
        """Input that stands for "not known": the number after the last code."""
        return self.num_codes

    def forward(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
        """Guess the codes.

        Args:
            tokens_BN: (B, N) int64 codes, or ``mask_token`` where they are not known.
            condition: Its labels are (B, L), or None for no condition. A network without labels does not look at them.

        Returns:
            (B, N, K) logits.
        """
        table_KD = self._table()
        x_BND = F.embedding(tokens_BN, table_KD) + self.positions
        objects = None
        if self.labels is not None:
            objects = self.labels(condition.labels, len(tokens_BN))
            x_BND = x_BND + objects.pooled[:, None]
        x_BND = self.dropout(x_BND)
        for block in self.blocks:
            x_BND = block(x_BND, objects)
        return F.linear(self.norm(x_BND), table_KD[: self.num_codes], self.bias)

    def _table(self) -> Tensor:
        """(K + 1, D) embeddings of the codes and of the mask token."""
        if self.from_code is None:
            return self.embedding.weight
        return self.embedding.weight + F.pad(self.from_code(self.codebook), (0, 0, 0, 1))

    def _initialise(self) -> None:
        """Small normal weights before the residual branches' last layers, which stay zero, as do the labels at first."""
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim == 2 and not name.endswith("out.weight"):
                nn.init.normal_(parameter, std=INIT_STD)
            elif name.endswith("gate_and_value.bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        with torch.no_grad():  # sines: which tokens are neighbours need not be learnt
            self.positions.copy_(
                2 * INIT_STD * sincos_positions(self.grid_size, self.grid_size, self.positions.shape[1])
            )
        if self.from_code is not None:  # twice the size of what is learnt and added to it
            nn.init.normal_(self.from_code.weight, std=2 * INIT_STD * self.from_code.in_features**-0.5)
        if self.labels is not None:  # pooled labels of unit size would drown the embeddings
            nn.init.zeros_(self.labels.pool.weight)


def _standardised(codebook_KE: Tensor) -> Tensor:
    """Codes of mean 0 and standard deviation 1 in each channel."""
    spread_E = codebook_KE.std(dim=0).clamp(min=torch.finfo(codebook_KE.dtype).eps)
    return (codebook_KE - codebook_KE.mean(dim=0)) / spread_E
