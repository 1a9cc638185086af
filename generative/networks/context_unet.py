"""The context U-Net of "Conditional Diffusion MNIST" (github.com/TeaPearce/Conditional_Diffusion_MNIST) for i-CLEVR.

A U-Net with batch norm whose bottleneck is pooled to 2x2 pixels; before each step up the features are multiplied by an
embedding of the labels and an embedding of the time is added. Sizes and training (``experiment=ddpm_iclevr_context_unet``)
are those of an earlier training for i-CLEVR; the flags are its ablations.

Shape legend: B batch, C channels, H/W height and width, T network times, L labels, K condition channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from generative.checks import checked
from generative.networks.contract import ImageNetwork
from generative.networks.growth import more_inputs, more_outputs, of_labels, quiet
from generative.networks.matrices import at_end
from generative.ranges import Count, WholeNumber
from generative.types import Condition

RESIDUAL_SCALE = 1.414  # of the published code: keeps the variance of a sum of two
POOLING = 7  # side of the bottleneck's average pooling
NUM_GROUPS = 8


class DoubleConv(nn.Module):
    """Two convolutions with batch norm and GELU, residual where the channels match."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.GELU(),
        )
        self.residual = in_channels == channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Transform the features.

        Args:
            x_BCHW: (B, C, H, W) features.

        Returns:
            (B, C', H, W) features.
        """
        out = self.layers(x_BCHW)
        return (x_BCHW + out) / RESIDUAL_SCALE if self.residual else out


class Embedding(nn.Module):
    """Two-layer MLPs from one vector to per-channel numbers, one MLP for each width.

    Args:
        mark: Says how layers begin that have other inputs than those of an earlier network (``growth``).
        neutral: What changes nothing where it is combined with features: 0 where it is added, 1 where they are multiplied.
    """

    def __init__(
        self, mark: Callable[[nn.Linear], nn.Linear], num_inputs: int, widths: Sequence[int], neutral: float = 0.0
    ) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(mark(nn.Linear(num_inputs, width)), nn.GELU(), quiet(nn.Linear(width, width), neutral))
            for width in widths
        )

    def forward(self, x_BD: Tensor) -> list[Tensor]:
        """Embed vectors.

        Args:
            x_BD: (B, D) times or labels.

        Returns:
            For each width, a (B, W, 1, 1) tensor.
        """
        return [mlp(x_BD)[:, :, None, None] for mlp in self.mlps]


@checked("network")
class ContextUNet(ImageNetwork):
    """U-Net whose label embedding scales, and whose time embedding shifts, the features before each step up."""

    convolutional: ClassVar[bool] = True

    def __init__(
        self,
        image_size: Count,
        in_channels: Count,
        condition_channels: WholeNumber = 0,
        num_times: Count = 1,
        num_outputs: Count = 1,
        label_factors: Sequence[Count] = (),
        base_channels: Count = 256,
        time_embedding: bool = True,
        label_embedding: bool = True,
        add_at_every_level: bool = False,
        extra_levels: WholeNumber = 0,
    ) -> None:
        """Build the network.

        Args:
            image_size: Height and width of the images.
            in_channels: Channels C of the images.
            condition_channels: Channels K of the condition's image.
            num_times: Number T of times.
            label_factors: Factors of the labels, of which only the product L is used; none for a network without labels.
            base_channels: Channels of the first two levels; the deeper ones have twice as many.
            time_embedding: Whether the network is told the time.
            label_embedding: Whether the network is told the labels.
            add_at_every_level: Whether label and time embeddings are both added before each step down and each step up,
                in place of ``label * features + time`` before each step up.
            extra_levels: Levels beyond the two of the published network.

        Raises:
            ValueError: An image size whose bottleneck has no whole number of pixels, or channels without whole groups.
        """
        super().__init__()
        num_levels = 2 + extra_levels
        pooling, upsampling = _bottleneck(image_size, num_levels)
        if base_channels % NUM_GROUPS:
            raise ValueError(f"network.base_channels={base_channels} must be a multiple of {NUM_GROUPS}.")
        self.num_outputs = num_outputs
        self.num_times = num_times
        self.condition_channels = condition_channels
        self.add_at_every_level = add_at_every_level
        width = base_channels
        widths = [width, width, *[2 * width] * (1 + extra_levels)]
        self.stem = DoubleConv(in_channels + condition_channels, width)
        at_end(more_inputs(self.stem.layers[0]))
        self.downs = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(widths[i], widths[i + 1])) for i in range(num_levels)
        )
        self.bottleneck = nn.Sequential(
            nn.AvgPool2d(pooling),
            nn.GELU(),
            nn.ConvTranspose2d(widths[-1], widths[-1], upsampling, upsampling),
            nn.GroupNorm(NUM_GROUPS, widths[-1]),
            nn.ReLU(),
        )
        self.ups = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(2 * widths[i + 1], widths[i], 2, 2),
                DoubleConv(widths[i], widths[i]),
                DoubleConv(widths[i], widths[i]),
            )
            for i in reversed(range(num_levels))
        )
        self.head = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.GroupNorm(NUM_GROUPS, width),
            nn.ReLU(),
            at_end(more_outputs(nn.Conv2d(width, num_outputs * in_channels, 3, padding=1), num_outputs)),
        )
        embedded = widths[:0:-1]  # of the features before each step up, then before each step down
        if add_at_every_level:
            embedded = [*embedded, *widths[:-1]]
        self.num_labels = math.prod(label_factors) if label_factors else 0
        self.time_embedding = at_end(Embedding(more_inputs, num_times, embedded)) if time_embedding else None
        neutral = 0.0 if add_at_every_level else 1.0
        self.label_embedding = None
        if label_factors and label_embedding:
            self.label_embedding = at_end(Embedding(of_labels, self.num_labels, embedded, neutral))

    def forward(self, x_BCHW: Tensor, times_BT: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """Run the network.

        Args:
            x_BCHW: (B, C, H, W) noisy images of the size that the network was built for.
            times_BT: (B, T) times in [0, 1].
            condition: Condition whose image has K channels (None for K = 0); its labels are (B, L), or None for
                no condition. A network without labels does not look at them.

        Returns:
            One (B, C, H, W) tensor per output.
        """
        gates = self._gates(times_BT, condition.labels)
        before_up, before_down = gates[: len(self.ups)], gates[len(self.ups) :]
        if condition.image is not None:
            x_BCHW = torch.cat([x_BCHW, condition.image], dim=1)
        h = first = self.stem(x_BCHW)
        skips = []
        for i, down in enumerate(self.downs):
            if before_down:
                h = self._condition(h, *before_down[i])
            h = down(h)
            skips.append(h)
        h = self.bottleneck(h)
        for up, gate in zip(self.ups, before_up, strict=True):
            h = up(torch.cat([self._condition(h, *gate), skips.pop()], dim=1))
        return self.head(torch.cat([h, first], dim=1)).chunk(self.num_outputs, dim=1)

    def _gates(self, times_BT: Tensor, labels_BL: Tensor | None) -> list[tuple[Tensor | None, Tensor | None]]:
        """Return the label and time embeddings of each place; None where the network has no such embedding."""
        num_places = len(self.ups) + (len(self.downs) if self.add_at_every_level else 0)
        labels: Sequence[Tensor | None] = [None] * num_places
        times: Sequence[Tensor | None] = [None] * num_places
        if self.label_embedding is not None:
            if labels_BL is None:
                labels_BL = times_BT.new_zeros(len(times_BT), self.num_labels)
            if labels_BL.shape[1] != self.num_labels:
                raise ValueError(
                    f"network.label_factors makes {self.num_labels} labels, but the batch has {labels_BL.shape[1]}: "
                    "set network.label_factors to the factors of the data's labels."
                )
            labels = self.label_embedding(labels_BL)
        if self.time_embedding is not None:
            times = self.time_embedding(times_BT)
        return list(zip(labels, times, strict=True))

    def _condition(self, x_BCHW: Tensor, label: Tensor | None, time: Tensor | None) -> Tensor:
        """Combine features with the embeddings of one place."""
        if label is not None:
            x_BCHW = x_BCHW + label if self.add_at_every_level else x_BCHW * label
        return x_BCHW if time is None else x_BCHW + time


def _bottleneck(image_size: int, num_levels: int) -> tuple[int, int]:
    """Return the side of the pooling and the factor that undoes it: 7 and 8 where 16 pixels become 2 and 16 again."""
    side, rest = divmod(image_size, 2**num_levels)
    pooling = min(POOLING, side)
    if rest or not side or side % (side // pooling):
        raise ValueError(
            f"data.image_size={image_size} does not suit network=unet_context: after {num_levels} halvings, pooling by "
            f"{POOLING} cannot be undone by a whole factor. Set data.image_size to 32, 64 or 128."
        )
    return pooling, side // (side // pooling)
