"""Images larger than a network's, in overlapping tiles of its size.

Where a network sees pixels, each of its calls is put together from tiles, and not the finished images: all tiles share one
state, so that neighbours agree in every step of a sampler (MultiDiffusion, arXiv 2302.08113). What makes images by other
means is asked tile by tile: holes are filled from their rims, each tile seeing what is filled already; all else is blended.

Shape suffixes: B batch, C channels, H height, W width, S side of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product

import torch
from torch import Tensor

from generative.degradations.resample import pad_to_multiple
from generative.denoiser import Network
from generative.types import Batch, Condition

OnTiles = Callable[[int, int], None]  # told how many tiles are done, of how many
APART = (
    10**9
)  # between the numbers of one image's tiles: their draws differ, and those of the first are the image's own
MARGIN = 0.25  # share of an overlap, at each tile's end, that has no part in the result


def nobody(done: int, tiles: int) -> None:
    """Told of tiles, does nothing."""


@dataclass(frozen=True)
class Tiling:
    """Where tiles lie, and how they go over into one another.

    Attributes:
        size: Side S of a tile in pixels; where a side of the image is shorter, tiles are as long as it.
        overlap: Pixels that neighbours share at least; below the size.
        at_once: Tiles in one network call.
        grid: Pixels that a tile's first row and column are multiples of, as a network's ``grid`` asks; it divides the size.
        margin: Pixels at a tile's end that have no part in the result, where a convolution sees that it ends; None, or where
            the overlap does not hold two of them, for a quarter of the overlap. Between them one tile goes over into the next.
    """

    size: int
    overlap: int
    at_once: int = 64
    grid: int = 1
    margin: int | None = None

    def places(self, length: int) -> list[tuple[int, Tensor]]:
        """Spread tiles evenly over one side of an image.

        Args:
            length: Pixels of the side, a multiple of the grid.

        Returns:
            The first pixel of each tile, and the (S,) weights of its pixels. The weights of all tiles sum to 1 in every pixel.
        """
        size = min(self.size, length)
        number = self._along(length)
        steps = (length - size) // self.grid
        starts = [round(i * steps / max(1, number - 1)) * self.grid for i in range(number)]
        weights = torch.ones(number, size, dtype=torch.float64)
        for i, (left, right) in enumerate(pairwise(starts)):
            shared = size - (right - left)
            margin = MARGIN * shared if self.margin is None or 2 * self.margin >= shared else self.margin
            position = torch.arange(shared, dtype=torch.float64) + 0.5
            rise = ((position - margin) / (shared - 2 * margin)).clamp(0, 1)
            rise = 0.5 - 0.5 * torch.cos(math.pi * rise)
            weights[i, size - shared :] *= 1 - rise
            weights[i + 1, :shared] *= rise
        total = torch.zeros(length, dtype=torch.float64)  # of three that overlap it is not 1
        for start, weight_S in zip(starts, weights, strict=True):
            total[start : start + size] += weight_S
        return [
            (start, (weight_S / total[start : start + size]).float())
            for start, weight_S in zip(starts, weights, strict=True)
        ]

    def number(self, height: int, width: int) -> int:
        """Number of the tiles of an image."""
        return self._along(height) * self._along(width)

    def _along(self, length: int) -> int:
        apart = (self.size - self.overlap) // self.grid * self.grid
        return max(1, 1 + math.ceil((length - self.size) / apart))

    def over(self, height: int, width: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the first row and column of each tile of an image, and the (S, S) weights of its pixels."""
        for (y, down_S), (x, across_S) in product(self.places(height), self.places(width)):
            yield y, x, down_S[:, None] * across_S

    def network(self, network: Network, on_tiles: OnTiles = nobody) -> Network:
        """Return a network of the same contract for images of any size from S on.

        Args:
            network: Network of S x S images.
            on_tiles: Told while a call goes on.
        """

        def tiled(x_BCHW: Tensor, times_BT: Tensor, condition: Condition) -> tuple[Tensor, ...]:
            height, width = x_BCHW.shape[2:]
            if max(height, width) <= self.size:
                return network(x_BCHW, times_BT, condition)
            if height % self.grid or width % self.grid:
                larger = None if condition.image is None else pad_to_multiple(condition.image, self.grid)
                whole = tiled(pad_to_multiple(x_BCHW, self.grid), times_BT, replace(condition, image=larger))
                return tuple(output[..., :height, :width] for output in whole)
            sums: list[Tensor] = []
            tiles = ((b, *tile) for b in range(len(x_BCHW)) for tile in self.over(height, width))
            while part := list(islice(tiles, self.at_once)):
                spots = [(b, slice(None), *_place(y, x, weight_SS)) for b, y, x, weight_SS in part]
                rows = torch.tensor([b for b, *_ in part], device=x_BCHW.device)
                image, others = condition.image, replace(condition, image=None).select(rows)
                if image is not None:
                    others = replace(others, image=torch.stack([image[spot] for spot in spots]))
                outputs = network(torch.stack([x_BCHW[spot] for spot in spots]), times_BT[rows], others)
                sums = sums or [output.new_zeros(len(x_BCHW), output.shape[1], height, width) for output in outputs]
                weight_B1SS = torch.stack([weight_SS for *_, weight_SS in part])[:, None].to(x_BCHW)
                for total, output in zip(sums, outputs, strict=True):
                    for spot, piece in zip(spots, output * weight_B1SS, strict=True):
                        total[spot] += piece
                on_tiles(len(part), len(x_BCHW) * self.number(height, width))
            return tuple(sums)

        return tiled

    def blended(self, make: Callable[[Batch], Tensor], batch: Batch, on_tiles: OnTiles = nobody) -> Tensor:
        """Make an image tile by tile.

        Args:
            make: Makes the (B, C, S, S) images of a batch of degraded images.
            batch: Degraded images of any size from S on.

        Returns:
            (B, C, H, W) images.
        """
        image, _ = batch.observed()
        total = torch.zeros_like(image)
        for number, (y, x, weight_SS) in enumerate(self.over(*image.shape[2:])):
            tile = self._tile(batch, y, x, number)
            total[(..., *_place(y, x, weight_SS))] += make(tile) * weight_SS.to(image)
            on_tiles(1, self.number(*image.shape[2:]))
        return total

    def outside_in(self, make: Callable[[Batch], Tensor], batch: Batch, on_tiles: OnTiles = nobody) -> Tensor:
        """Fill holes tile by tile, the best known tile first; the next ones see what is filled.

        Args:
            make: Makes the (B, C, S, S) images of a batch of degraded images.
            batch: One image as rows that share their hole, with a validity map that is 0 in it.

        Returns:
            (B, C, H, W) images, the known pixels as they are.
        """
        degraded, validity = batch.observed()
        image, known, size = degraded.clone(), validity.clone(), self.size
        numbers = {(y, x): number for number, (y, x, _) in enumerate(self.over(*image.shape[2:]))}

        def share(y: int, x: int) -> float:
            return float(known[0, 0, y : y + size, x : x + size].mean())

        shares = {spot: share(*spot) for spot in numbers}
        with_holes = sum(known_share < 1 for known_share in shares.values())
        while unfinished := {spot: known_share for spot, known_share in shares.items() if known_share < 1}:
            y, x = max(unfinished, key=unfinished.__getitem__)
            now, place = replace(batch, degraded=image, validity=known), (..., slice(y, y + size), slice(x, x + size))
            image[place] = make(self._tile(now, y, x, numbers[y, x])).lerp(image[place], known[place])
            known[place] = 1
            on_tiles(1, with_holes)
            shares = {
                (v, u): share(v, u) if abs(v - y) < size and abs(u - x) < size else unfinished[v, u]
                for v, u in unfinished
            }
        return image

    def _tile(self, batch: Batch, y: int, x: int, number: int) -> Batch:
        degraded, validity = (part[..., y : y + self.size, x : x + self.size].clone() for part in batch.observed())
        return Batch(degraded, batch.index + number * APART, degraded=degraded, validity=validity)


def _place(y: int, x: int, weight_SS: Tensor) -> tuple[slice, slice]:
    height, width = weight_SS.shape
    return slice(y, y + height), slice(x, x + width)


def padded(image: Tensor, size: int) -> Tensor:
    """Continue images that are smaller than a tile by their mirror images.

    Args:
        image: (..., H, W) images or maps.
        size: Least height and width.

    Returns:
        (..., max(H, size), max(W, size)) images, the given ones in their upper left corner.
    """
    for axis in (-2, -1):
        length = image.shape[axis]
        if length < size:
            position = torch.arange(size, device=image.device) % (2 * length)
            image = image.index_select(axis, torch.minimum(position, 2 * length - 1 - position))
    return image
