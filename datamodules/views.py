"""The ways in which training sees an image: as it is, mirrored, turned by a quarter.

Shape suffixes: B batch, C channels, H = W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.randomness import Randomness


@dataclass(frozen=True)
class Views:
    """Numbered views of square images: the mirror images of one turn follow one another.

    Attributes:
        mirrored: Whether images are mirrored left to right.
        turned: Whether they are turned by 0, 90, 180 or 270 degrees, after that.
    """

    mirrored: bool = False
    turned: bool = False

    @property
    def number(self) -> int:
        """How many there are: 1, 2, 4 or 8."""
        return (2 if self.mirrored else 1) * (4 if self.turned else 1)

    def drawn(self, randomness: Callable[[str], Randomness], image_BCHW: Tensor) -> Tensor:
        """Draw a view for each image, all alike likely.

        Args:
            randomness: Makes the draws of a purpose: ``flip`` or ``turn``.

        Returns:
            (B,) int64 numbers.
        """
        view_B = torch.zeros(len(image_BCHW), dtype=torch.int64, device=image_BCHW.device)
        if self.turned:
            view_B = (randomness("turn").uniform() * 4).long() * (2 if self.mirrored else 1)
        if self.mirrored:
            view_B = view_B + (randomness("flip").uniform() < 0.5)
        return view_B

    def seen(self, image_BCHW: Tensor, view_B: Tensor) -> Tensor:
        """Show each image in its view."""
        seen_BCHW = image_BCHW
        for view in range(1, self.number):
            seen_BCHW = torch.where((view_B == view)[:, None, None, None], self.view(image_BCHW, view), seen_BCHW)
        return seen_BCHW

    def view(self, image_BCHW: Tensor, number: int) -> Tensor:
        """Show all images in one view."""
        turns, flipped = divmod(number, 2) if self.mirrored else (number, 0)
        return torch.rot90(image_BCHW.flip(-1) if flipped else image_BCHW, turns, (-2, -1))
