"""U-Net with adaptive group norm and a choice of attention per resolution.

ADM (Dhariwal & Nichol 2021, arXiv 2105.05233): residual blocks whose norm is scaled and shifted by the embedding of time
and labels. The last norm is so too, as in DiT (arXiv 2212.09748). Down- and up-sampling by a convolution are DDPM's (Ho et al.
2020, arXiv 2006.11239). With ``adaptive_norm=False`` the whole network is DDPM's, as its authors' code builds and initialises
it. Labels, which DDPM does not have, enter as object tokens: pooled into the embedding, and by cross-attention.

Shape legend: B batch, C channels, H/W height and width, T network times, K condition channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.checks import checked
from generative.networks.attention import AttentionKind, SpatialAttention
from generative.networks.contract import ImageNetwork
from generative.networks.growth import more_inputs, more_outputs
from generative.networks.labels import LabelTokens
from generative.networks.matrices import at_end
from generative.networks.unet_blocks import (
    TIME_SCALE,
    AdaptiveNorm,
    Downsampling,
    ResidualBlock,
    SinusoidalTimeEmbedding,
    Stage,
    group_norm,
    initialise_as_ddpm,
    zeroed,
)
from generative.ranges import BelowOne, Count, WholeNumber
from generative.types import Condition


@checked("network")
class UNet(ImageNetwork):
    """U-Net with one or more outputs, which leave it side by side as channels.

    Resolutions are sides of the feature maps, in their own pixels: with
    ``image_size=32`` and ``patch_size=2`` the first level is 16. The middle block has full attention, and cross-attention
    where any level has it. Without labels there is nothing to attend to, and ``cross_attention`` is left out.
    """

    convolutional: ClassVar[bool] = True
    time_frequency: ClassVar[float] = TIME_SCALE

    def __init__(
        self,
        image_size: Count,
        in_channels: Count,
        condition_channels: WholeNumber = 0,
        num_times: Count = 1,
        num_outputs: Count = 1,
        label_factors: Sequence[Count] = (),
        patch_size: Count = 1,
        base_channels: Count = 128,
        channel_multipliers: Sequence[Count] = (1, 2, 2, 2),
        num_blocks: Count = 2,
        full_attention: Sequence[Count] = (),
        linear_attention: Sequence[Count] = (),
        cross_attention: Sequence[Count] = (),
        head_dim: Count = 64,
        num_groups: Count = 32,
        dropout: BelowOne = 0.0,
        adaptive_norm: bool = True,
    ) -> None:
        """Build the network.

        Args:
            image_size: Height and width of the images.
            in_channels: Channels C of the images.
            condition_channels: Channels K of the condition's image.
            num_times: Number T of times.
            label_factors: Factors of the labels (``LabelTokens``); none for a network without labels.
            patch_size: Side of the patches that become the channels of the first level's pixels.
            base_channels: Channels of the first level, before its multiplier.
            channel_multipliers: Multiple of ``base_channels`` for each level; each level has half the side of the last.
            num_blocks: Residual blocks per level on the way down; one more on the way up.
            full_attention: Resolutions with self-attention.
            linear_attention: Resolutions with linear attention.
            cross_attention: Resolutions with cross-attention to the labels' object tokens.
            head_dim: Channels of an attention head.
            num_groups: Groups of the norms.
            dropout: Share of features dropped in the residual blocks while training, in [0, 1).
            adaptive_norm: Whether the embedding scales and shifts the norms, as in ADM. Otherwise the network is DDPM's: the
                embedding is added to the blocks' features, full attention has biases and no norms of queries and keys, and
                the features of the time, the padding, the norms' epsilon and the initialisation are DDPM's.

        Raises:
            ValueError: Sizes that do not fit together, or attention at a resolution that does not exist.
        """
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        sizes = _level_sizes(image_size, patch_size, len(widths))
        kinds: dict[AttentionKind, Sequence[int]] = {
            "full": full_attention,
            "linear": linear_attention,
            "cross": cross_attention,
        }
        _check_resolutions(kinds, sizes)
        if not label_factors:
            kinds["cross"] = ()
        embedding_dim = 4 * base_channels
        at_level = [[kind for kind, resolutions in kinds.items() if size in resolutions] for size in sizes]
        in_middle: list[AttentionKind] = ["full", "cross"] if kinds["cross"] else ["full"]
        _check_widths(widths, [*at_level, in_middle], num_groups, head_dim)

        def stage(channels_in: int, channels: int, attention: Sequence[AttentionKind]) -> Stage:
            heads = channels // head_dim
            return Stage(
                ResidualBlock(channels_in, channels, embedding_dim, num_groups, dropout, adaptive_norm),
                [
                    SpatialAttention(kind, channels, heads, embedding_dim, num_groups, plain=not adaptive_norm)
                    for kind in attention
                ],
            )

        self.patch_size = patch_size
        self.num_outputs = num_outputs
        self.num_times = num_times
        self.condition_channels = condition_channels
        self.num_labels = math.prod(label_factors) if label_factors else 0
        self.time_embedding = at_end(
            SinusoidalTimeEmbedding(num_times, base_channels, embedding_dim, ddpm=not adaptive_norm)
        )
        self.labels = at_end(LabelTokens(label_factors, embedding_dim)) if label_factors else None
        self.stem = nn.Conv2d((in_channels + condition_channels) * patch_size**2, base_channels, 3, padding=1)
        at_end(more_inputs(self.stem))

        skips, width = [base_channels], base_channels
        self.encoder = nn.ModuleList()
        for level, channels in enumerate(widths):
            if level:
                self.encoder.append(
                    nn.Conv2d(width, width, 3, stride=2, padding=1) if adaptive_norm else Downsampling(width)
                )
                skips.append(width)
            for _ in range(num_blocks):
                self.encoder.append(stage(width, channels, at_level[level]))
                skips.append(width := channels)
        self.middle = nn.ModuleList([stage(width, width, in_middle), stage(width, width, [])])
        self.decoder = nn.ModuleList()
        for level, channels in reversed(list(enumerate(widths))):
            for _ in range(num_blocks + 1):
                self.decoder.append(stage(width + skips.pop(), channels, at_level[level]))
                width = channels
            if level:
                self.decoder.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)))
        # The scale of the output depends on the time: a last norm that knows it saves steps at the start of training.
        self.head_norm = at_end(
            AdaptiveNorm(width, embedding_dim, num_groups)
            if adaptive_norm
            else group_norm(width, num_groups, adaptive_norm)
        )
        self.head = zeroed(nn.Conv2d(width, num_outputs * in_channels * patch_size**2, 3, padding=1))
        at_end(more_outputs(self.head, num_outputs))
        if not adaptive_norm:
            initialise_as_ddpm(self, self.head)

    def forward(self, x_BCHW: Tensor, times_BT: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """Run the network.

        Args:
            x_BCHW: (B, C, H, W) noisy images; H and W multiples of the patch size times 2 per level below the first.
            times_BT: (B, T) times in [0, 1].
            condition: Condition whose image has K channels (None for K = 0); its labels are (B, L), or None for
                no condition. A network without labels does not look at them.

        Returns:
            One (B, C, H, W) tensor per output.
        """
        embedding_BE = self.time_embedding(times_BT)
        objects = None
        if self.labels is not None:
            objects = self.labels(condition.labels, x_BCHW.shape[0])
            embedding_BE = embedding_BE + objects.pooled
        embedding_BE = F.silu(embedding_BE)
        if condition.image is not None:
            x_BCHW = torch.cat([x_BCHW, condition.image], dim=1)

        def run(layer: nn.Module, h_BCHW: Tensor) -> Tensor:
            return layer(h_BCHW, embedding_BE, objects) if isinstance(layer, Stage) else layer(h_BCHW)

        h = self.stem(F.pixel_unshuffle(x_BCHW, self.patch_size))
        skips = [h]
        for layer in self.encoder:
            h = run(layer, h)
            skips.append(h)
        for layer in self.middle:
            h = run(layer, h)
        for layer in self.decoder:
            if isinstance(layer, Stage):
                h = torch.cat([h, skips.pop()], dim=1)
            h = run(layer, h)
        h = self.head_norm(h, embedding_BE) if isinstance(self.head_norm, AdaptiveNorm) else self.head_norm(h)
        return F.pixel_shuffle(self.head(F.silu(h)), self.patch_size).chunk(self.num_outputs, dim=1)


def nearest_levels(
    resolutions: Sequence[int], image_size: int, patch_size: int, channel_multipliers: Sequence[int]
) -> list[int]:
    """Return for resolutions that are meant for one size of images those that a network for another size has.

    Args:
        resolutions: Sides of feature maps.
        image_size: Height and width of the images; the other arguments are ``UNet``'s too.

    Returns:
        The sides of the nearest levels, by their ratio, each once; a resolution that the network has is its own nearest one.
    """
    sizes = [image_size // patch_size // 2**level for level in range(len(channel_multipliers))]
    near = [
        min(filter(None, sizes), key=lambda size: max(size / each, each / size), default=each) for each in resolutions
    ]
    return list(dict.fromkeys(near))


def _check_resolutions(kinds: Mapping[AttentionKind, Sequence[int]], sizes: list[int]) -> None:
    """ValueError where attention is to be at sides that no level has."""
    missing = {kind: sorted(set(resolutions) - set(sizes)) for kind, resolutions in kinds.items()}
    named = [f"network.{kind}_attention={wrong}" for kind, wrong in missing.items() if wrong]
    if named:
        said = "name no resolutions" if len(named) > 1 else "names no resolution"
        raise ValueError(f"{' and '.join(named)} {said} of the network: choose of {sizes}.")


def _level_sizes(image_size: int, patch_size: int, num_levels: int) -> list[int]:
    """Return the side of each level's feature map; ValueError where a side would not be whole."""
    if image_size % (patch_size * 2 ** (num_levels - 1)):
        raise ValueError(
            f"data.image_size={image_size} is no multiple of {patch_size * 2 ** (num_levels - 1)}, which is "
            f"network.patch_size={patch_size} times 2 for each of the {num_levels} levels after the first: "
            "set fewer network.channel_multipliers or a smaller network.patch_size."
        )
    return [image_size // patch_size // 2**level for level in range(num_levels)]


def _check_widths(widths: list[int], attention: list[list[AttentionKind]], num_groups: int, head_dim: int) -> None:
    """ValueError where channels do not divide into groups, or into heads at the levels and in the middle with attention."""
    for width in widths:
        if width % num_groups:
            raise ValueError(
                f"network.base_channels times network.channel_multipliers gives {width} channels, no multiple of "
                f"network.num_groups={num_groups}: set network.num_groups to a divisor."
            )
    for width, kinds in zip([*widths, widths[-1]], attention, strict=True):
        if kinds and width % head_dim:
            raise ValueError(
                f"Attention at {width} channels needs network.head_dim={head_dim} to divide them: set it to a divisor."
            )
