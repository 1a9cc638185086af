"""Exchangeable kinds of attention: ``layer(x_BND, objects) -> (B, N, D)``, without norm before and residual after.

- ``full``: softmax self-attention, with RMS-normalised queries and keys (arXiv 2302.05442) or, as in DDPM, plain;
- ``linear``: efficient attention (Shen et al. 2018, arXiv 1812.01243), linear in the number of tokens;
- ``cross``: softmax attention from the image's tokens to the object tokens of the labels.

Each ends in a linear layer ``out``, which ``make_attention`` sets to zero, so that a residual block begins as the identity.

Shape legend: B batch, N image tokens, M object tokens, D width, h heads, d head width; C channels, H/W height and width.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from generative.networks.growth import quiet
from generative.networks.labels import ObjectTokens
from generative.networks.layers import RMSNorm
from generative.networks.matrices import stacked

AttentionKind = Literal["full", "linear", "cross"]
DDPM_NORM_EPS = 1e-6  # that of TensorFlow's group norm; PyTorch's is 1e-5


class Attention(nn.Module):
    """Multi-head self-attention with RMS-normalised queries and keys; plain, with biases in place of these norms."""

    def __init__(self, dim: int, num_heads: int, plain: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = stacked(nn.Linear(dim, 3 * dim, bias=plain), 3)
        self.q_norm = nn.Identity() if plain else RMSNorm(dim // num_heads, eps=1e-6)
        self.k_norm = nn.Identity() if plain else RMSNorm(dim // num_heads, eps=1e-6)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, objects: ObjectTokens | None = None) -> Tensor:
        # Tokens before heads, as the linear layers have them: no copy between the layers, forward or backward.
        q, k, v = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=2)
        q, k, v = (t.transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LinearAttention(nn.Module):
    """Efficient attention: the N x N weights are softmax_d(Q) softmax_n(K)^T and never formed; their rows sum to one."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = stacked(nn.Linear(dim, 3 * dim, bias=False), 3)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, objects: ObjectTokens | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x_BND), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        context = k.softmax(dim=-2).mT @ v
        return self.out(rearrange(q.softmax(dim=-1) @ context, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention to the object tokens in each row's set, with RMS-normalised queries and keys."""

    def __init__(self, dim: int, num_heads: int, token_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = stacked(nn.Linear(token_dim, 2 * dim, bias=False), 2)
        self.q_norm = RMSNorm(dim // num_heads, eps=1e-6)
        self.k_norm = RMSNorm(dim // num_heads, eps=1e-6)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, objects: ObjectTokens | None = None) -> Tensor:
        assert objects is not None, "a network with cross-attention embeds labels"
        q = rearrange(self.q(x_BND), "b n (h d) -> b h n d", h=self.num_heads)
        k, v = rearrange(self.kv(objects.tokens), "m (two h d) -> two 1 h m d", two=2, h=self.num_heads)
        k, v = (t.expand(q.shape[0], -1, -1, -1) for t in (self.k_norm(k), v))
        x = F.scaled_dot_product_attention(self.q_norm(q), k, v, attn_mask=objects.mask[:, None, None])
        return self.out(rearrange(x, "b h n d -> b n (h d)"))


def make_attention(
    kind: AttentionKind, dim: int, num_heads: int, token_dim: int, plain: bool = False
) -> Attention | LinearAttention | CrossAttention:
    """Build a kind of attention that begins as zero.

    Args:
        kind: ``"full"``, ``"linear"`` or ``"cross"``.
        dim: Width D of the image's tokens.
        num_heads: Number of heads, a divisor of ``dim``.
        token_dim: Width of the object tokens.
        plain: Whether full attention has biases in place of the norms of queries and keys; the other kinds stay.

    Returns:
        The layer.
    """
    layer: Attention | LinearAttention | CrossAttention
    if kind == "cross":
        layer = CrossAttention(dim, num_heads, token_dim)
    else:
        layer = Attention(dim, num_heads, plain) if kind == "full" else LinearAttention(dim, num_heads)
    nn.init.zeros_(layer.out.weight)
    nn.init.zeros_(layer.out.bias)
    quiet(layer.out)  # also in a network that initialises it otherwise
    return layer


class SpatialAttention(nn.Module):
    """A kind of attention over the pixels of a feature map, behind group norm, with a residual connection."""

    def __init__(
        self, kind: AttentionKind, channels: int, num_heads: int, token_dim: int, num_groups: int, plain: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, DDPM_NORM_EPS) if plain else nn.GroupNorm(num_groups, channels)
        self.attention = make_attention(kind, channels, num_heads, token_dim, plain)

    def forward(self, x_BCHW: Tensor, objects: ObjectTokens | None) -> Tensor:
        """Mix the pixels.

        Args:
            x_BCHW: (B, C, H, W) features.
            objects: Object tokens of the batch, or None without labels.

        Returns:
            (B, C, H, W) features.
        """
        tokens = self.attention(rearrange(self.norm(x_BCHW), "b c h w -> b (h w) c"), objects)
        return x_BCHW + rearrange(tokens, "b (h w) c -> b c h w", h=x_BCHW.shape[2])
