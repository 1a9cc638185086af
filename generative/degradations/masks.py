"""Degradations that remove regions: rectangular blocks and free-form brush strokes.

The pixels outside of the hole are untouched and known, so the validity map is 1 there and 0 inside. Free-form masks
are in the manner of DeepFill v2 (arXiv 1806.03589) and LaMa (arXiv 2109.07161).

Shape suffixes: N blocks or strokes, P vertices of a stroke.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from generative.checks import checked
from generative.degradations.base import Degradation
from generative.degradations.observation import Observation
from generative.degradations.severity import Severity, SeveritySpec
from generative.randomness import Randomness
from generative.ranges import Count

STROKE_SEGMENTS = 4
MAX_TURN = math.pi / 2  # between consecutive segments of a stroke


class _Mask(Degradation):
    """A hole of some shape, filled with one grey level per image; its sizes may be those of images of another size."""

    def __init__(self, fill: SeveritySpec, image_size: int | None) -> None:
        self.image_size = image_size
        self.fill = Severity(fill, f"{type(self).__name__}.fill", minimum=-1, maximum=1)

    @abstractmethod
    def hole(self, height: int, width: int, randomness: Randomness, training: bool) -> Tensor:
        """Draw the missing regions.

        Args:
            height: Height H of the images in pixels.
            width: Width W of the images in pixels.
            randomness: Source of every draw, with B rows.
            training: Whether severities are drawn from their training range or take their evaluation value.

        Returns:
            (B, H, W) bool map, true where pixels are missing.
        """

    def scale(self, height: int, width: int) -> float:
        """Return by what the sizes are multiplied for images of H x W pixels.

        Args:
            height: Height H.
            width: Width W.

        Returns:
            The shorter side over ``image_size``; 1 where that is None.
        """
        return 1.0 if self.image_size is None else min(height, width) / self.image_size

    @property
    def told_by_validity(self) -> bool:
        return True

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        return Observation.of_known_pixels(validity_B1HW)

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        height, width = image_BCHW.shape[-2:]
        fill_B111 = self.fill.sample(randomness, training)[:, None, None, None]
        hole_B1HW = self.hole(height, width, randomness, training)[:, None]
        return torch.where(hole_B1HW, fill_B111, image_BCHW), (~hole_B1HW).to(image_BCHW.dtype)


@checked("BlockMask")
class BlockMask(_Mask):
    """Removes square blocks at uniform positions wholly inside the image."""

    def __init__(
        self, size: SeveritySpec, num_blocks: Count = 1, fill: SeveritySpec = 0.0, image_size: Count | None = None
    ) -> None:
        """Set the shape of the hole.

        Args:
            size: Side of the blocks in whole pixels, >= 1; the blocks of one image share it.
            num_blocks: Number of blocks per image; they may overlap.
            fill: Grey level in [-1, 1] of the missing pixels.
            image_size: Shorter side in pixels of the images that ``size`` is meant for: in others it is larger or smaller in
                proportion, rounded to whole pixels. None: pixels of any image.
        """
        super().__init__(fill, image_size)
        self.size = Severity(size, "BlockMask.size", minimum=1, integer=True)
        self.num_blocks = num_blocks

    def hole(self, height: int, width: int, randomness: Randomness, training: bool) -> Tensor:
        """A block larger than the image is a ``ValueError``."""
        self._check_fit(height, width, self._pixels(self.size.highest(training), height, width), "BlockMask")
        size_B1 = self.size.sample(randomness, training)[:, None]
        if self.image_size is not None:
            size_B1 = (size_B1 * self.scale(height, width)).round().clamp(min=1)
        corner_BN2 = randomness.uniform(self.num_blocks, 2)

        def covered(corner_BN: Tensor, extent: int) -> Tensor:
            start_BN1 = (corner_BN * (extent - size_B1 + 1)).floor()[:, :, None]
            position_E = torch.arange(extent, device=corner_BN.device)
            return (position_E >= start_BN1) & (position_E < start_BN1 + size_B1[:, :, None])

        rows_BNH, columns_BNW = covered(corner_BN2[..., 0], height), covered(corner_BN2[..., 1], width)
        return (rows_BNH[:, :, :, None] & columns_BNW[:, :, None, :]).any(dim=1)

    def check_images(self, image_size: int, channels: int, key: str = "degradation") -> None:
        largest = max(self.size.highest(training) for training in (True, False))
        self._check_fit(image_size, image_size, self._pixels(largest, image_size, image_size), key)

    def _pixels(self, size: float, height: int, width: int) -> int:
        return max(1, round(size * self.scale(height, width)))

    @staticmethod
    def _check_fit(height: int, width: int, pixels: int, name: str) -> None:
        if pixels > min(height, width):
            raise ValueError(
                f"{name}.size: blocks of up to {pixels} pixels do not fit into images of {height}x{width}: choose a smaller "
                "size."
            )


@checked("BrushMask")
class BrushMask(_Mask):
    """Removes what a round brush covers on random walks of four straight segments each."""

    def __init__(
        self,
        num_strokes: SeveritySpec,
        width: SeveritySpec,
        length: SeveritySpec,
        fill: SeveritySpec = 0.0,
        image_size: Count | None = None,
    ) -> None:
        """Set the shape of the hole.

        Args:
            num_strokes: Number of strokes, a whole number >= 1.
            width: Diameter of the brush in pixels, >= 1.
            length: Length of each of a stroke's segments in pixels, >= 0; strokes stay inside the image.
            fill: Grey level in [-1, 1] of the missing pixels.
            image_size: Shorter side in pixels of the images that ``width`` and ``length`` are meant for: in others they are
                larger or smaller in proportion. None: pixels of any image.
        """
        super().__init__(fill, image_size)
        self.num_strokes = Severity(num_strokes, "BrushMask.num_strokes", minimum=1, integer=True)
        self.width = Severity(width, "BrushMask.width", minimum=1)
        self.length = Severity(length, "BrushMask.length", minimum=0)

    def hole(self, height: int, width: int, randomness: Randomness, training: bool) -> Tensor:
        max_strokes = int(self.num_strokes.highest(training))
        num_strokes_B1 = self.num_strokes.sample(randomness, training)[:, None]
        radius_B1 = self.width.sample(randomness, training)[:, None] * (self.scale(height, width) / 2)
        vertices_BNP2 = self._walk(height, width, max_strokes, randomness, training)

        stroke_N = torch.arange(max_strokes, device=randomness.device)
        # No squared distance is below a negative number: strokes beyond an image's own count leave no trace.
        reach_BN = torch.where(stroke_N < num_strokes_B1, radius_B1**2, -1.0)
        hole_BHW = torch.zeros(randomness.batch_size, height, width, dtype=torch.bool, device=randomness.device)
        for stroke in range(max_strokes):  # one segment at a time bounds the memory to a few maps of (B, H, W)
            for segment in range(STROKE_SEGMENTS):
                start_B2, end_B2 = vertices_BNP2[:, stroke, segment], vertices_BNP2[:, stroke, segment + 1]
                distance_BHW = _squared_distance_to_segment(start_B2, end_B2, height, width)
                hole_BHW |= distance_BHW <= reach_BN[:, stroke, None, None]
        return hole_BHW

    def _walk(self, height: int, width: int, max_strokes: int, randomness: Randomness, training: bool) -> Tensor:
        """Return the (B, N, P, 2) vertices (row, column) of random walks that start at the centre of a pixel."""
        length_B11 = self.length.sample(randomness, training)[:, None, None] * self.scale(height, width)
        uniform_BNK = randomness.uniform(max_strokes, 2 + STROKE_SEGMENTS)
        extent_2 = torch.tensor([height, width], device=uniform_BNK.device)
        vertices = [(uniform_BNK[..., :2] * extent_2).floor()]
        angle_BN = uniform_BNK[..., 2] * (2 * math.pi)
        for segment in range(STROKE_SEGMENTS):
            if segment > 0:
                angle_BN = angle_BN + (2 * uniform_BNK[..., 2 + segment] - 1) * MAX_TURN
            step_BN2 = length_B11 * torch.stack([angle_BN.sin(), angle_BN.cos()], dim=-1)
            vertices.append((vertices[-1] + step_BN2).clamp(min=0).minimum(extent_2 - 1))
        return torch.stack(vertices, dim=2)


def _squared_distance_to_segment(start_B2: Tensor, end_B2: Tensor, height: int, width: int) -> Tensor:
    """Return the (B, H, W) squared distances of the pixels' centres to one segment (row, column) per image."""
    row_BH1 = torch.arange(height, device=start_B2.device)[:, None] - start_B2[:, 0, None, None]
    column_B1W = torch.arange(width, device=start_B2.device) - start_B2[:, 1, None, None]
    along_row_B11, along_column_B11 = (end_B2 - start_B2)[:, :, None, None].unbind(dim=1)
    length_B11 = (along_row_B11**2 + along_column_B11**2).clamp(min=1e-6)  # a segment may be a point
    nearest_BHW = row_BH1 * (along_row_B11 / length_B11) + column_B1W * (along_column_B11 / length_B11)
    nearest_BHW = nearest_BHW.clamp(0, 1)
    return (row_BH1 - nearest_BHW * along_row_B11) ** 2 + (column_B1W - nearest_BHW * along_column_B11) ** 2
