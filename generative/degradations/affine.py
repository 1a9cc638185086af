"""A degradation that moves pixels: rotation, scale, shift and shear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.degradations.base import Degradation, nothing_known
from generative.degradations.severity import Severity, SeveritySpec
from generative.randomness import Randomness


class Affine(Degradation):
    """Turns, enlarges, shifts and shears about the centre, in this order reversed; what comes in is the mirror image.

    Pixels are interpolated bilinearly. A restorer learns to put the image back upright.
    """

    def __init__(
        self,
        angle: SeveritySpec = 0.0,
        scale: SeveritySpec = 1.0,
        shift: SeveritySpec = 0.0,
        shear: SeveritySpec = 0.0,
    ) -> None:
        """Set the strengths.

        Args:
            angle: Rotation in degrees, counter-clockwise.
            scale: Factor of enlargement, in [0.1, 10].
            shift: Share of the image's side by which it moves, right and down, drawn for each by itself; in [-1, 1].
            shear: Slant in degrees of the vertical towards the left, in [-80, 80].
        """
        self.angle = Severity(angle, "Affine.angle")
        self.scale = Severity(scale, "Affine.scale", minimum=0.1, maximum=10)
        self.shift = Severity(shift, "Affine.shift", minimum=-1, maximum=1)
        self.shear = Severity(shear, "Affine.shear", minimum=-80, maximum=80)

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        angle_B, shear_B = (each.sample(randomness, training).deg2rad() for each in (self.angle, self.shear))
        scale_B = self.scale.sample(randomness, training)
        right_B, down_B = (self.shift.sample(randomness, training) for _ in range(2))
        return affine(image_BCHW, angle_B, scale_B, right_B, down_B, shear_B), nothing_known(image_BCHW)


def affine(
    image_BCHW: Tensor, angle_B: Tensor, scale_B: Tensor, right_B: Tensor, down_B: Tensor, shear_B: Tensor
) -> Tensor:
    """Map images: shear, then rotation, then scale about the centre, then the shift.

    Args:
        image_BCHW: (B, C, H, W) images.
        angle_B: (B,) rotations in radians, counter-clockwise.
        scale_B: (B,) factors.
        right_B: (B,) shifts to the right as shares of the width.
        down_B: (B,) shifts downwards as shares of the height.
        shear_B: (B,) slants in radians.

    Returns:
        (B, C, H, W) images.
    """
    height, width = image_BCHW.shape[-2:]
    cos_B, sin_B, slant_B = angle_B.cos(), angle_B.sin(), shear_B.tan()
    one_B, zero_B = torch.ones_like(scale_B), torch.zeros_like(scale_B)
    # x to the right, y downwards, in pixels from the centre: output = scale R S input + shift.
    rotation_B22 = torch.stack([torch.stack([cos_B, sin_B], -1), torch.stack([-sin_B, cos_B], -1)], -2)
    shear_B22 = torch.stack([torch.stack([one_B, slant_B], -1), torch.stack([zero_B, one_B], -1)], -2)
    back_B22 = torch.linalg.inv(scale_B[:, None, None] * rotation_B22 @ shear_B22)
    shift_B2 = torch.stack([right_B * width, down_B * height], -1)
    offset_B21 = -(back_B22 @ shift_B2[..., None])
    sides_2 = image_BCHW.new_tensor([width / 2, height / 2])  # grid_sample counts in halves of the sides
    theta_B23 = torch.cat(
        [back_B22 * sides_2[None, None, :] / sides_2[None, :, None], offset_B21 / sides_2[:, None]], -1
    )
    grid_BHW2 = F.affine_grid(theta_B23, list(image_BCHW.shape), align_corners=False)
    return F.grid_sample(image_BCHW, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False)
