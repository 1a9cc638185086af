"""Convolutional networks of the restoration literature, which answer to the degraded image alone: baselines of any size.

They have neither a noisy state nor a time, so only modules that answer in one call take them (``module=regression``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from generative.checks import checked
from generative.degradations.resample import pad_to_multiple
from generative.networks.contract import ImageNetwork
from generative.networks.matrices import at_end
from generative.ranges import Count
from generative.types import Condition

SLOPE = 0.2  # of RRDB's leaky ReLUs
BRANCH = 0.2  # what RRDB's residual branches count


class ConvolutionalRestorer(ImageNetwork):
    """A network that adds a correction to the degraded image.

    Args:
        in_channels: Channels C of the image.
        condition_channels: Those of the degraded image and its validity map, C + 1.
        num_times: Times of the module, which it does not look at: they are the same in every call.
        num_outputs: 1.
        label_factors: Empty.

    Raises:
        ValueError: The module asks for what it has not.
    """

    convolutional: ClassVar[bool] = True
    any_size: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: Count,
        condition_channels: int,
        num_times: Count = 1,
        num_outputs: Count = 1,
        label_factors: Sequence[Count] = (),
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        if condition_channels != in_channels + 1 or num_outputs != 1 or label_factors:
            raise ValueError(
                f"network={kind.lower()} answers to the degraded image alone, without noise, times and labels: set "
                "module=regression module.labels=false, or choose another network."
            )
        self.in_channels = in_channels
        self.condition_channels = condition_channels
        self.num_times = num_times
        self.num_labels = 0

    def correction(self, seen_BKHW: Tensor) -> Tensor:
        """Return what is added to the degraded image.

        Args:
            seen_BKHW: (B, C + 1, H, W) degraded image and validity map.

        Returns:
            (B, C, H, W) correction.
        """
        raise NotImplementedError

    def forward(self, x_BCHW: Tensor, times_BT: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """See the network contract; the state and the times are not looked at.

        Args:
            condition: Its image is the (B, C + 1, H, W) degraded image and its validity.
        """
        assert condition.image is not None
        return (condition.image[:, : self.in_channels] + self.correction(condition.image),)


@checked("network")
class DnCNN(ConvolutionalRestorer):
    """Convolutions of one width with batch norms, which estimate the noise (Zhang et al. 2017, arXiv 1608.03981)."""

    def __init__(self, width: Count = 64, depth: Annotated[int, Ge(3)] = 17, **kwargs: Any) -> None:
        """Build the network; see ``ConvolutionalRestorer``.

        Args:
            width: Features of each layer.
            depth: Number of convolutions, at least 3; each sees a pixel further.
            **kwargs: Arguments of ``ConvolutionalRestorer``.
        """
        super().__init__(**kwargs)
        layers: list[nn.Module] = [nn.Conv2d(self.condition_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, self.in_channels, 3, padding=1, bias=False))
        self.sees = depth

    def correction(self, seen_BKHW: Tensor) -> Tensor:
        return -self.layers(seen_BKHW)


class _ResidualBlock(nn.Module):
    """Two convolutions without biases, added to what they see."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.second(F.relu(self.first(x_BCHW), inplace=True))


@checked("network")
class DRUNet(ConvolutionalRestorer):
    """A U-Net of residual blocks without biases (Zhang et al. 2021, arXiv 2008.13751), which is told no noise level.

    Without biases an input of twice the contrast has an answer of twice the contrast, so that what it learnt of one strength of
    noise holds at others (Mohan et al. 2020, arXiv 1906.05478).
    """

    def __init__(self, widths: Sequence[Count] = (64, 128, 256, 512), num_blocks: Count = 4, **kwargs: Any) -> None:
        """Build the network; see ``ConvolutionalRestorer``.

        Args:
            widths: Features at each resolution, the finest first; each further one halves it.
            num_blocks: Residual blocks on the way down at each resolution, and on the way up.
            **kwargs: Arguments of ``ConvolutionalRestorer``.
        """
        super().__init__(**kwargs)

        def blocks(width: int) -> list[nn.Module]:
            return [_ResidualBlock(width) for _ in range(num_blocks)]

        self.first = at_end(nn.Conv2d(self.condition_channels, widths[0], 3, padding=1, bias=False))
        self.down = nn.ModuleList(
            nn.Sequential(*blocks(fine), nn.Conv2d(fine, coarse, 2, stride=2, bias=False))
            for fine, coarse in pairwise(widths)
        )
        self.body = nn.Sequential(*blocks(widths[-1]))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False), *blocks(fine))
            for fine, coarse in pairwise(widths)
        )
        self.last = at_end(nn.Conv2d(widths[0], self.in_channels, 3, padding=1, bias=False))
        self.grid = 2 ** (len(widths) - 1)
        at_each = [2 * num_blocks * 2**level for level in range(len(widths))]
        self.sees = 2 + 2 * sum(at_each[:-1]) + at_each[-1] + self.grid

    def correction(self, seen_BKHW: Tensor) -> Tensor:
        height, width = seen_BKHW.shape[-2:]
        features = self.first(pad_to_multiple(seen_BKHW, self.grid))
        skipped = [features]
        for down in self.down:
            features = down(features)
            skipped += [features]
        features = self.body(features)
        for up in reversed(self.up):
            features = up(features + skipped.pop())
        return self.last(features + skipped.pop())[..., :height, :width]


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees all features before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        inputs = [width + i * growth for i in range(5)]
        outputs = [growth] * 4 + [width]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, outputs, strict=True))
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)
        for layer in self.modules():  # as published: deep sums begin small
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0)
                layer.weight.data.mul_(0.1)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features = [x_BCHW]
        for layer in self.layers[:-1]:
            features.append(self.activation(layer(torch.cat(features, 1))))
        return torch.add(x_BCHW, self.layers[-1](torch.cat(features, 1)), alpha=BRANCH)


@checked("network")
class RRDB(ConvolutionalRestorer):
    """Residual-in-residual dense blocks, the generator of ESRGAN (Wang et al. 2018, arXiv 1809.00219) at one resolution."""

    def __init__(self, width: Count = 64, growth: Count = 32, depth: Count = 23, **kwargs: Any) -> None:
        """Build the network; see ``ConvolutionalRestorer``.

        Args:
            width: Features between the blocks.
            growth: Features that each convolution of a dense block adds.
            depth: Number of blocks, each of three dense ones.
            **kwargs: Arguments of ``ConvolutionalRestorer``.
        """
        super().__init__(**kwargs)
        self.first = nn.Conv2d(self.condition_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_DenseBlock(width, growth) for _ in range(3))) for _ in range(depth)
        )
        self.trunk = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(width, self.in_channels, 3, padding=1),
        )
        self.sees = 15 * depth + 4

    def correction(self, seen_BKHW: Tensor) -> Tensor:
        first = features = self.first(seen_BKHW)
        for block in self.blocks:
            features = torch.add(features, block(features), alpha=BRANCH)
        return self.head(first + self.trunk(features))
