"""Parts of the U-Net: embedding of the time, residual blocks, and the published initialisation of DDPM's.

With ``adaptive_norm=False`` they are those of DDPM (Ho et al. 2020, arXiv 2006.11239) as its authors' code has them, in what
the paper does not say too; otherwise those of ADM (arXiv 2105.05233).

Shape legend: B batch, C channels, H/W height and width, T network times, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.networks.attention import DDPM_NORM_EPS, Attention, SpatialAttention
from generative.networks.growth import more_inputs, quiet
from generative.networks.labels import ObjectTokens
from generative.networks.matrices import stacked

TIME_SCALE = 1000.0  # the features of DDPM are those of a step in 0 .. 1000
MAX_PERIOD = 10000.0  # of the sinusoidal features, in steps (arXiv 1706.03762)
DDPM_LAST_GAIN = 1e-5  # the square root of DDPM's 1e-10, which stands for zero


class SinusoidalTimeEmbedding(nn.Module):
    """Embeds T times in [0, 1]: sinusoidal features of 1000 t, an MLP for each time, summed.

    DDPM's (``ddpm=True``) counts steps from 0, so that time t = 1/1000 is step 0, has sines first, and its last period is
    the longest, ``MAX_PERIOD``.
    """

    def __init__(self, num_times: int, num_features: int, dim: int, ddpm: bool = False) -> None:
        super().__init__()
        self.ddpm = ddpm
        self.frequencies: Tensor
        half = num_features // 2
        spacing = max(1, half - 1) if ddpm else half
        frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / spacing)
        self.register_buffer("frequencies", frequencies if ddpm else TIME_SCALE * frequencies, persistent=False)
        mlps = (
            nn.Sequential(nn.Linear(2 * half, dim), nn.SiLU(), quiet(nn.Linear(dim, dim))) for _ in range(num_times)
        )
        of_zero = self._features(torch.zeros(1))  # a time that is absent counts as 0
        self.mlps = more_inputs(nn.ModuleList(mlps), of_zero)

    def forward(self, times_BT: Tensor) -> Tensor:
        """Embed times.

        Args:
            times_BT: (B, T) times in [0, 1].

        Returns:
            (B, E) embeddings.
        """
        features_BTF = self._features(times_BT[..., None])
        embeddings = [mlp(features_BTF[:, i]) for i, mlp in enumerate(self.mlps)]
        return torch.stack(embeddings).sum(dim=0)

    def _features(self, time: Tensor) -> Tensor:
        if self.ddpm:
            angles = (TIME_SCALE * time - 1) * self.frequencies
            return torch.cat([angles.sin(), angles.cos()], dim=-1)
        angles = time * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def group_norm(channels: int, num_groups: int, adaptive_norm: bool) -> nn.GroupNorm:
    """Return a group norm with PyTorch's epsilon, 1e-5, or for DDPM with that of its code."""
    return nn.GroupNorm(num_groups, channels) if adaptive_norm else nn.GroupNorm(num_groups, channels, DDPM_NORM_EPS)


class AdaptiveNorm(nn.Module):
    """Group norm that the embedding scales and shifts, as in ADM."""

    def __init__(self, channels: int, embedding_dim: int, num_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels)
        self.embedding = stacked(nn.Linear(embedding_dim, 2 * channels), 2)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """Normalise.

        Args:
            x_BCHW: (B, C, H, W) features.
            embedding_BE: (B, E) activated embedding.

        Returns:
            (B, C, H, W) features.
        """
        scale, shift = self.embedding(embedding_BE)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, self.norm(x_BCHW), 1 + scale)


class AdditiveNorm(nn.Module):
    """Group norm of features to which the embedding has been added, as in DDPM."""

    def __init__(self, channels: int, embedding_dim: int, num_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, num_groups, adaptive_norm=False)
        self.embedding = nn.Linear(embedding_dim, channels)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        return self.norm(x_BCHW + self.embedding(embedding_BE)[:, :, None, None])


class ResidualBlock(nn.Module):
    """Two convolutions around the embedding; begins as its shortcut."""

    def __init__(
        self, in_channels: int, channels: int, embedding_dim: int, num_groups: int, dropout: float, adaptive_norm: bool
    ) -> None:
        super().__init__()
        self.in_norm = group_norm(in_channels, num_groups, adaptive_norm)
        self.in_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.out_norm = (AdaptiveNorm if adaptive_norm else AdditiveNorm)(channels, embedding_dim, num_groups)
        self.dropout = nn.Dropout(dropout)
        self.out_conv = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """Transform the features.

        Args:
            x_BCHW: (B, C, H, W) features.
            embedding_BE: (B, E) activated embedding.

        Returns:
            (B, C', H, W) features.
        """
        h = self.in_conv(F.silu(self.in_norm(x_BCHW)))
        h = self.out_norm(h, embedding_BE)
        return self.shortcut(x_BCHW) + self.out_conv(self.dropout(F.silu(h)))


class Stage(nn.Module):
    """A residual block and the attention of its resolution."""

    def __init__(self, block: ResidualBlock, attention: Sequence[SpatialAttention]) -> None:
        super().__init__()
        self.block = block
        self.attention = nn.ModuleList(attention)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor, objects: ObjectTokens | None) -> Tensor:
        """Transform the features.

        Args:
            x_BCHW: (B, C, H, W) features.
            embedding_BE: (B, E) activated embedding.
            objects: Object tokens of the batch, or None without labels.

        Returns:
            (B, C', H, W) features.
        """
        x_BCHW = self.block(x_BCHW, embedding_BE)
        for attention in self.attention:
            x_BCHW = attention(x_BCHW, objects)
        return x_BCHW


class Downsampling(nn.Sequential):
    """Halves the side; DDPM pads at the right and the bottom alone, as TensorFlow does where a stride leaves a choice."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Return the layer, set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def initialise_as_ddpm(network: nn.Module, head: nn.Conv2d) -> None:
    """Draw weights as DDPM's code does: uniform with variance 1/fan, of the mean of both fans; biases are zero.

    The last layers of the residual branches and of the network have 1e-10 times that variance.

    Args:
        head: Its last layer.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in network.modules():
        if isinstance(layer, Attention):  # three layers in one
            for weight in layer.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(weight)
    last = [head.weight]
    last += [block.out_conv.weight for block in network.modules() if isinstance(block, ResidualBlock)]
    last += [layer.attention.out.weight for layer in network.modules() if isinstance(layer, SpatialAttention)]
    for weight in last:
        nn.init.xavier_uniform_(weight, gain=DDPM_LAST_GAIN)
