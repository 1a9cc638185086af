"""Bidirectional transformer over a grid of tokens: guesses the codes of masked tokens from all the others.

MaskGIT (Chang et al. 2022, arXiv 2202.04200) with pre-norm, QK-norm (arXiv 2302.05442) and SwiGLU (arXiv 2002.05202). The
blocks' norm is layer norm, as PyTorch's RMSNorm has no fused kernel on the CPU: forward and backward take four times as
long, a tenth of a training step. Labels enter as object tokens, pooled into the embedding and by cross-attention, as in the
DiT.

The output layer shares the weights of the token embedding (arXiv 1608.05859), as in MaskGIT: through the softmax every code
gets a gradient from every masked token, so that also the embeddings of rare codes are trained in a short run. To each learnt
embedding a linear map of the tokenizer's own code is added: codes that mean nearly the same begin nearly equal and learn
together. The mask token has an embedding and no output, so it cannot be predicted.

With ``pixels`` the network sees the known pixels too, those of partly covered patches among them: every token's embedding holds
them, so that all tokens learn from them, and a power of the likelihood of its own patch's pixels is added to its logits
(``generative.patch_evidence``), which is right from the first step on; what the neighbours' pixels say has to be learnt.

Shape legend: B batch, N tokens of the grid in row-major order, D width, K codes, L labels, C image channels, H/W height and
width in pixels, P side of a token's patch in pixels, G side of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.checks import checked
from generative.networks.attention import make_attention
from generative.networks.dit import SwiGLU, sincos_positions
from generative.networks.growth import quiet
from generative.networks.labels import LabelTokens, ObjectTokens
from generative.networks.matrices import at_end
from generative.patch_evidence import code_patches, patch_evidence
from generative.ranges import BelowOne, Count, Positive
from generative.types import Condition

INIT_STD = 0.02  # of MaskGIT, as of BERT (arXiv 1810.04805)
INITIAL_POWER = 0.2  # of the likelihood of a patch's pixels


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


class KnownPixels(nn.Module):
    """What known pixels say of the tokens: features for their embeddings, and log-likelihoods of their codes.

    Args:
        num_codes: Number of codes K.
        grid_size: Side of the token grid.
        dim: Width D.
        patch_shape: Channels C, and height and width P of a token's patch.

    Attributes:
        patch: (K, C, P, P) mean patch of each code.
        std: (K,) standard deviation of the pixels of each code's patches; both are set by ``measure``.
    """

    def __init__(self, num_codes: int, grid_size: int, dim: int, patch_shape: Sequence[int]) -> None:
        super().__init__()
        self.grid_size = grid_size
        channels, size, _ = patch_shape
        self.patch: Tensor
        self.std: Tensor
        self.scale: Tensor
        self.register_buffer("patch", torch.zeros(num_codes, *patch_shape))
        self.register_buffer("std", torch.ones(num_codes))
        self.register_buffer("scale", torch.ones(()))  # of all pixels
        self.embed = at_end(quiet(nn.Conv2d(channels + 1, dim, size, stride=size, bias=False)))
        nn.init.normal_(self.embed.weight, std=2 * INIT_STD * self.embed.weight[0].numel() ** -0.5)
        self.log_power = nn.Parameter(torch.tensor([INITIAL_POWER]).log())  # fully_shard takes no scalars

    @torch.no_grad()
    def measure(self, image_BCHW: Tensor, tokens_BN: Tensor) -> None:
        """Learn from images and their tokens how the patches of each code look; before it, all look alike.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].
            tokens_BN: (B, N) int64 tokens.
        """
        patch_KCPP, std_K = code_patches(image_BCHW, tokens_BN, len(self.std))
        self.patch.copy_(patch_KCPP)
        self.std.copy_(std_K)
        self.scale.copy_(image_BCHW.std())

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Look at the known pixels.

        Args:
            image_BCHW: (B, C + 1, H, W) images in [-1, 1], and in the last channel 1 where a pixel is known exactly, else 0.
                What is not known exactly is seen as it is, such as noise, and is no evidence.

        Returns:
            (B, N, D) features and (B, N, K) log-likelihoods up to a constant of each token; both are zero for tokens without
            known pixels.
        """
        image_BCHW, validity_B1HW = image_BCHW.tensor_split([-1], dim=1)
        features_BDGG = self.embed(torch.cat([image_BCHW / self.scale, validity_B1HW], dim=1))
        evidence_BNK = patch_evidence(image_BCHW, validity_B1HW, self.patch.flatten(1), self.grid_size, self.std)
        return features_BDGG.flatten(2).mT, evidence_BNK * self.log_power.exp()


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
        pixels: Whether the network sees known pixels: the condition's image is then the degraded image and its validity.
        patch_shape: Channels, height and width of a token's patch of pixels.

    Raises:
        ValueError: If the settings do not fit each other.

    Attributes:
        num_codes: Number of codes K.
        grid_size: Side of the square token grid.
        condition_channels: Channels of the condition's image; 0 without ``pixels``.
        num_labels: Number of labels of the condition.
    """

    gains_from_compiling: ClassVar[bool] = True

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
        pixels: bool = False,
        patch_shape: Sequence[Count] = (3, 4, 4),
    ) -> None:
        super().__init__()
        if dim % num_heads or dim % 4:
            raise ValueError(f"network.dim={dim} must be a multiple of 4 and of network.num_heads={num_heads}.")
        self.num_codes = num_codes
        self.grid_size = grid_size
        self.condition_channels = patch_shape[0] + 1 if pixels else 0
        self.num_labels = math.prod(label_factors) if label_factors else 0
        labelled = bool(label_factors)
        self.embedding = nn.Embedding(num_codes + 1, dim)
        self.codebook: Tensor | None
        self.register_buffer("codebook", None if codebook_KE is None else _standardised(codebook_KE))
        self.from_code = None
        if codebook_KE is not None:
            self.from_code = at_end(quiet(nn.Linear(codebook_KE.shape[1], dim, bias=False)))
        self.positions = nn.Parameter(torch.empty(self.num_tokens, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TokenBlock(dim, num_heads, mlp_ratio, dropout, labelled) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(num_codes))
        self.labels = at_end(LabelTokens(label_factors, dim)) if labelled else None
        self.pixels = KnownPixels(num_codes, grid_size, dim, patch_shape) if pixels else None
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
            condition: Its labels are (B, L), or None for no condition. Its image is the (B, C + 1, H, W) degraded image and
                its validity, or None where no pixel is known. A network without labels, or without pixels, does not look
                at them.

        Returns:
            (B, N, K) logits.
        """
        table_KD = self._table()
        x_BND = F.embedding(tokens_BN, table_KD) + self.positions
        objects = None
        if self.labels is not None:
            objects = self.labels(condition.labels, tokens_BN.shape[0])
            x_BND = x_BND + objects.pooled[:, None]
        evidence_BNK: Tensor | float = 0.0
        if self.pixels is not None and condition.image is not None:
            features_BND, evidence_BNK = self.pixels(condition.image)
            x_BND = x_BND + features_BND
        x_BND = self.dropout(x_BND)
        for block in self.blocks:
            x_BND = block(x_BND, objects)
        return F.linear(self.norm(x_BND), table_KD[: self.num_codes], self.bias) + evidence_BNK

    def fault_of_weights(self, weights: Mapping[str, Tensor]) -> str | None:
        """Say whether weights to begin with are of another tokenizer, whose codes mean something else."""
        there = weights.get("codebook")
        if self.codebook is None or there is None or torch.equal(there.to(self.codebook), self.codebook):
            return None
        return "its codes are those of another tokenizer: set tokenizer= to the one that it was trained with"

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
