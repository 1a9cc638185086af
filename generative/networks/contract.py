"""What networks of flows and diffusions have in common."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class ImageNetwork(nn.Module):
    """A network of this contract: ``network(x_BCHW, times_BT, condition) -> tuple`` of one (B, C, H, W) image per output.

    Times are in [0, 1]. What an output means (noise, image, velocity) is the objective's business.

    Attributes:
        num_times: Number T of times.
        condition_channels: Channels of the condition's image; 0 where the network takes none.
        num_labels: Number of labels of the condition; 0 where it takes none.
        convolutional: Whether most of the computation is convolutions; any network may say so of itself.
        any_size: Whether it takes images of every size, and not of the trained one alone.
        sees: How many pixels around its own one a pixel of the output depends on, of a network of any size.
        grid: Pixels by which an image may be moved and its answer is the same, moved, of a network of any size: above 1 where
            features have fewer pixels than images.
        time_frequency: Highest angular frequency, in radians over times from 0 to 1, of what it makes of a time.
        gains_from_compiling: Whether ``torch.compile`` makes its training faster on a processor; any network may say so too.
    """

    convolutional: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    gains_from_compiling: ClassVar[bool] = False
    time_frequency: ClassVar[float] = 1.0
    num_times: int
    condition_channels: int
    num_labels: int
    sees: int
    grid: int = 1
