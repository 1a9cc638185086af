"""Diffusion transformer in pixel space.

DiT (Peebles & Xie 2023, arXiv 2212.09748) with adaLN-Zero gates; RMSNorm, QK-norm, SwiGLU and image patches as in JiT
(arXiv 2511.13720); low-frequency time features, so that derivatives with respect to time stay tame under MeanFlow.
Labels enter as object tokens: pooled into the embedding, and by cross-attention as in PixArt-alpha (arXiv 2310.00426).
Gates and output begin at zero as in facebookresearch/DiT. The other weights begin as PyTorch's linear layers do (uniform,
standard deviation 1/sqrt(3 fan_in)), not as there (Xavier; 0.02 in the embeddings of time and class).

Shape legend: B batch, C channels, H/W height and width, N tokens, D width, T network times, K condition channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from generative.checks import checked
from generative.networks.attention import Attention, make_attention
from generative.networks.contract import ImageNetwork
from generative.networks.growth import more_inputs, more_outputs
from generative.networks.labels import LabelTokens, ObjectTokens
from generative.networks.layers import RMSNorm, gated
from generative.networks.matrices import at_end, stacked
from generative.ranges import Count, Positive, WholeNumber
from generative.types import Condition

MAX_TIME_FREQUENCY = 10.0  # radians per unit of time; 1000 as in DiT makes |du/dt| about 20 times larger


def sincos_positions(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Return fixed two-dimensional sine-cosine position embeddings (MAE, arXiv 2111.06377).

    Args:
        height: Rows of the token grid.
        width: Columns of the token grid.
        dim: Embedding size, a multiple of 4.
        device: Device of the result.

    Returns:
        (height * width, dim) embeddings.
    """
    frequency = 1.0 / 10000 ** (torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4))
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None] * frequency
    columns = torch.arange(width, device=device, dtype=torch.float32)[:, None] * frequency
    rows = torch.cat([rows.sin(), rows.cos()], dim=-1)[:, None].expand(-1, width, -1)
    columns = torch.cat([columns.sin(), columns.cos()], dim=-1)[None].expand(height, -1, -1)
    return rearrange([rows, columns], "two h w d -> (h w) (two d)")


@functools.lru_cache(maxsize=16)
def _kept_positions(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Return the position embeddings, computed once for each grid and device; no part of a network's state."""
    with torch.inference_mode(False):  # what is kept may meet training later
        return sincos_positions(height, width, dim, device)


class TimeEmbedding(nn.Module):
    """Embeds T times in [0, 1] jointly, from sine and cosine features of low frequency."""

    def __init__(self, num_times: int, dim: int, num_frequencies: int = 16) -> None:
        super().__init__()
        self.frequencies: Tensor
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(MAX_TIME_FREQUENCY), num_frequencies))
        self.register_buffer("frequencies", frequencies, persistent=False)
        of_zero = self._features(torch.zeros(1))  # a time that is absent counts as 0
        self.mlp = nn.Sequential(
            more_inputs(nn.Linear(num_times * len(of_zero), dim), of_zero), nn.SiLU(), nn.Linear(dim, dim)
        )

    def forward(self, times_BT: Tensor) -> Tensor:
        """Embed times.

        Args:
            times_BT: (B, T) times in [0, 1].

        Returns:
            (B, D) embeddings.
        """
        return self.mlp(self._features(times_BT[..., None]).flatten(1))

    def _features(self, time: Tensor) -> Tensor:
        angles = time * self.frequencies
        return torch.cat([time, angles.sin(), angles.cos()], dim=-1)


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv 2002.05202) with the parameter count of a plain one of ``ratio``."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = 8 * round(dim * ratio * 2 / 3 / 8)
        self.gate_and_value = stacked(nn.Linear(dim, 2 * hidden), 2)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Transform each token.

        Args:
            x_BND: (B, N, D) tokens.

        Returns:
            (B, N, D) tokens.
        """
        return self.out(gated(self.gate_and_value(x_BND)))


def modulate(x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Apply adaptive shift and scale.

    Args:
        x_BND: (B, N, D) normalised tokens.
        shift_BD: (B, D) shift.
        scale_BD: (B, D) scale around one.

    Returns:
        (B, N, D) tokens.
    """
    return torch.addcmul(shift_BD[:, None], x_BND, 1 + scale_BD[:, None])


class DiTBlock(nn.Module):
    """Transformer block with adaLN-Zero: it is the identity at initialisation."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, cross_attention: bool = False) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(dim, num_heads)
        self.mlp_norm = RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = SwiGLU(dim, mlp_ratio)
        self.modulation = stacked(nn.Linear(dim, 6 * dim), 6)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        if cross_attention:
            self.cross_norm = RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.cross_attention = make_attention("cross", dim, num_heads, dim) if cross_attention else None

    def forward(self, x_BND: Tensor, embedding_BD: Tensor, objects: ObjectTokens | None = None) -> Tensor:
        """Transform the tokens.

        Args:
            x_BND: (B, N, D) tokens.
            embedding_BD: (B, D) activated condition embedding.
            objects: Object tokens of the batch; None without cross-attention.

        Returns:
            (B, N, D) tokens.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(embedding_BD).chunk(6, dim=-1)
        attended = self.attention(modulate(self.attention_norm(x_BND), shift_a, scale_a))
        x_BND = torch.addcmul(x_BND, gate_a[:, None], attended)
        if self.cross_attention is not None:
            x_BND = x_BND + self.cross_attention(self.cross_norm(x_BND), objects)
        return torch.addcmul(x_BND, gate_m[:, None], self.mlp(modulate(self.mlp_norm(x_BND), shift_m, scale_m)))


class Head(nn.Module):
    """An output of its own: some blocks on the shared trunk, then a modulated projection to pixels."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, mlp_ratio: float, patch_dim: int, cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DiTBlock(dim, num_heads, mlp_ratio, cross_attention) for _ in range(depth))
        self.norm = RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = at_end(nn.Linear(dim, 2 * dim))
        self.projection = at_end(nn.Linear(dim, patch_dim))
        for layer in (self.modulation, self.projection):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_BND: Tensor, embedding_BD: Tensor, objects: ObjectTokens | None = None) -> Tensor:
        """Project tokens to patches.

        Args:
            x_BND: (B, N, D) trunk tokens.
            embedding_BD: (B, D) activated condition embedding.
            objects: Object tokens of the batch; None without cross-attention.

        Returns:
            (B, N, P) patches.
        """
        for block in self.blocks:
            x_BND = block(x_BND, embedding_BD, objects)
        shift, scale = self.modulation(embedding_BD).chunk(2, dim=-1)
        return self.projection(modulate(self.norm(x_BND), shift, scale))


@checked("network")
class DiT(ImageNetwork):
    """Pixel-space diffusion transformer with one or more output heads."""

    gains_from_compiling: ClassVar[bool] = True
    time_frequency: ClassVar[float] = MAX_TIME_FREQUENCY

    def __init__(
        self,
        image_size: Count,
        in_channels: Count,
        condition_channels: WholeNumber = 0,
        num_times: Count = 1,
        num_outputs: Count = 1,
        patch_size: Count = 4,
        dim: Count = 128,
        depth: Count = 4,
        head_depth: WholeNumber = 0,
        num_heads: Count = 4,
        mlp_ratio: Positive = 4.0,
        label_factors: Sequence[Count] = (),
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"network.patch_size={patch_size} does not divide data.image_size={image_size}: "
                "set network.patch_size to a divisor of the image size."
            )
        if dim % (4 * num_heads):
            raise ValueError(f"network.dim={dim} must be a multiple of 4 * network.num_heads={4 * num_heads}.")
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.condition_channels = condition_channels
        self.num_times = num_times
        self.num_outputs = num_outputs
        self.num_labels = math.prod(label_factors) if label_factors else 0
        self.dim = dim
        self.patchify = at_end(more_inputs(nn.Linear((in_channels + condition_channels) * patch_size**2, dim)))
        self.time_embedding = at_end(TimeEmbedding(num_times, dim))
        labelled = bool(label_factors)
        self.blocks = nn.ModuleList(DiTBlock(dim, num_heads, mlp_ratio, labelled) for _ in range(depth))
        heads = (
            Head(dim, head_depth, num_heads, mlp_ratio, in_channels * patch_size**2, labelled)
            for _ in range(num_outputs)
        )
        self.heads = more_outputs(nn.ModuleList(heads), num_outputs)
        self.labels = at_end(LabelTokens(label_factors, dim)) if labelled else None

    def forward(self, x_BCHW: Tensor, times_BT: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """Run the network.

        Args:
            x_BCHW: (B, C, H, W) noisy images; H and W multiples of the patch size.
            times_BT: (B, T) times in [0, 1].
            condition: Condition whose image has K channels (None for K = 0); its labels are (B, L), or None for
                no condition. A network without labels does not look at them.

        Returns:
            One (B, C, H, W) tensor per head.
        """
        if condition.image is not None:
            x_BCHW = torch.cat([x_BCHW, condition.image], dim=1)
        height, width = x_BCHW.shape[-2] // self.patch_size, x_BCHW.shape[-1] // self.patch_size
        patches = rearrange(x_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_size, q=self.patch_size)
        positions = sincos_positions if torch.compiler.is_compiling() else _kept_positions
        x_BND = self.patchify(patches) + positions(height, width, self.dim, x_BCHW.device)
        embedding_BD = self.time_embedding(times_BT)
        objects = None
        if self.labels is not None:
            objects = self.labels(condition.labels, x_BCHW.shape[0])
            embedding_BD = embedding_BD + objects.pooled
        embedding_BD = F.silu(embedding_BD)
        for block in self.blocks:
            x_BND = block(x_BND, embedding_BD, objects)
        return tuple(
            rearrange(
                head(x_BND, embedding_BD, objects),
                "b (h w) (c p q) -> b c (h p) (w q)",
                h=height,
                w=width,
                p=self.patch_size,
                q=self.patch_size,
            )
            for head in self.heads
        )
