"""Patch discriminator (pix2pix, arXiv 1611.07004, section 3.2.2): one judgement per patch instead of one per image.

Shape legend: B batch, C channels, H/W height and width, h/w grid of patches.
"""

from __future__ import annotations

from torch import Tensor, nn

from generative.checks import checked
from generative.networks.matrices import at_end
from generative.ranges import Count, WholeNumber

NUM_GROUPS = 8  # group norm: batch norm would tie the judgements of a batch's images to each other


@checked("discriminator")
class PatchDiscriminator(nn.Module):
    """Convolutions of kernel 4; the first ``num_layers`` halve the resolution.

    Args:
        in_channels: Channels C of the images.
        channels: Width of the first layer, a multiple of 8; each further one doubles it, up to eight times.
        num_layers: Layers that halve the resolution; 3 gives the 70x70 patches of the paper.

    Raises:
        ValueError: If the width is no multiple of 8.
    """

    def __init__(self, in_channels: Count, channels: Count = 64, num_layers: WholeNumber = 3) -> None:
        super().__init__()
        if channels % NUM_GROUPS:
            raise ValueError(f"discriminator.channels={channels} must be a multiple of {NUM_GROUPS}.")
        layers: list[nn.Module] = [at_end(nn.Conv2d(in_channels, channels, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, num_layers + 1):
            wider = channels * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(NUM_GROUPS, wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        layers.append(at_end(nn.Conv2d(width, 1, 4, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Judge the patches.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].

        Returns:
            (B, 1, h, w) logits, above zero for real.
        """
        return self.layers(image_BCHW)
