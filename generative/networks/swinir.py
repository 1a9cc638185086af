"""SwinIR (Liang et al. 2021, arXiv 2108.10257) at one resolution, of torchvision's Swin blocks, for pictures of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock

from generative.checks import checked
from generative.degradations.resample import pad_to_multiple
from generative.networks.matrices import at_end, stacked
from generative.networks.restorers import ConvolutionalRestorer
from generative.ranges import Count, Positive


class _Group(nn.Module):
    """Residual Swin transformer block: blocks whose windows are shifted in every other one, and a convolution."""

    def __init__(self, dim: int, depth: int, num_heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        shifts = [[window_size // 2 * (number % 2)] * 2 for number in range(depth)]
        blocks = [SwinTransformerBlock(dim, num_heads, [window_size] * 2, shift, mlp_ratio) for shift in shifts]
        for block in blocks:
            attention: Any = block.attn
            stacked(attention.qkv, 3)
        self.blocks = nn.Sequential(*blocks)
        self.convolution = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return x_BHWD + self.convolution(self.blocks(x_BHWD).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@checked("network")
class SwinIR(ConvolutionalRestorer):
    """Self-attention within windows, which are shifted by half their side from block to block."""

    convolutional: ClassVar[bool] = False

    def __init__(
        self,
        dim: Count = 180,
        depths: Sequence[Count] = (6, 6, 6, 6, 6, 6),
        num_heads: Count = 6,
        window_size: Count = 8,
        mlp_ratio: Positive = 2.0,
        **kwargs: Any,
    ) -> None:
        """Build the network; see ``ConvolutionalRestorer``.

        Args:
            dim: Features, a multiple of the heads.
            depths: Blocks of each group.
            num_heads: Heads of the attention.
            window_size: Side of a window in pixels, even; what it does not divide is continued at the right and the bottom.
            mlp_ratio: Hidden features of each block over its features.
            **kwargs: Arguments of ``ConvolutionalRestorer``.

        Raises:
            ValueError: The numbers do not go together.
        """
        super().__init__(**kwargs)
        if dim % num_heads:
            raise ValueError(f"network.dim={dim} must be a multiple of network.num_heads={num_heads}.")
        if window_size % 2:
            raise ValueError(f"network.window_size={window_size} must be even: windows are shifted by half of it.")
        self.first = at_end(nn.Conv2d(self.condition_channels, dim, 3, padding=1))
        self.first_norm, self.last_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.groups = nn.Sequential(*(_Group(dim, depth, num_heads, window_size, mlp_ratio) for depth in depths))
        self.trunk = nn.Conv2d(dim, dim, 3, padding=1)
        self.last = at_end(nn.Conv2d(dim, self.in_channels, 3, padding=1))
        self.grid = window_size
        self.sees = window_size * sum(depths) + len(depths) + 3

    def correction(self, seen_BKHW: Tensor) -> Tensor:
        height, width = seen_BKHW.shape[-2:]
        first = self.first(pad_to_multiple(seen_BKHW, self.grid))
        x_BHWD = self.last_norm(self.groups(self.first_norm(first.permute(0, 2, 3, 1))))
        return self.last(first + self.trunk(x_BHWD.permute(0, 3, 1, 2)))[..., :height, :width]
