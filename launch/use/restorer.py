"""Runs a trained module on pictures of any size: whole at its training size, in tiles of it, or resized to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from files.images import Picture
from files.pixels import as_rows, in_own_channels
from generative.degradations import Degradation
from generative.networks import ImageNetwork
from generative.tiling import OnTiles, Tiling, nobody, padded
from generative.types import Batch, State
from launch.errors import UserError
from launch.use.degrading import degrade_one
from lightning_modules import GenerativeModule


def at_size(image_RCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images.

    Args:
        image_RCHW: (R, C, H, W) images in [-1, 1].
        size: Height and width wanted.

    Returns:
        (R, C, *size) images in [-1, 1].
    """
    if image_RCHW.shape[2:] == size:
        return image_RCHW
    return F.interpolate(image_RCHW.float(), size, mode="bicubic", antialias=True).clamp(-1, 1)


def hole_at_size(missing_HW: Tensor, size: int) -> Tensor:
    """Resize a (H, W) bool hole to what the network takes.

    Returns:
        (1, size, size) bool, True where any pixel that goes into this one is missing.
    """
    return F.adaptive_max_pool2d(missing_HW[None].float(), (size, size)) > 0


def tiling_of(
    module: GenerativeModule, image_size: int, tile: str = "auto", overlap: str | None = None, batch_size: int = 64
) -> Tiling | None:
    """Read how pictures larger than a network's go through it.

    Args:
        image_size: Side of the images that it was trained at.
        tile: ``auto``, ``none``, or the side of a tile.
        overlap: Pixels that neighbouring tiles share; None for a quarter of their side, or less where a network of any size
            does not see that far, so that the result is the same as without tiles.
        batch_size: Tiles of ``image_size`` at a time, or as many pixels in larger ones.

    Returns:
        The tiling; None to resize the pictures.

    Raises:
        UserError: A value says nothing, or tiles cannot have that size or overlap.
    """
    network = getattr(module, "network", None)
    any_size = isinstance(network, ImageNetwork) and network.any_size
    if tile == "none":
        if overlap is not None:
            raise UserError("overlap= is that of tiles, and tile=none makes none: leave out one of the two.")
        return None
    side = max(LARGE_TILE, image_size) if any_size else image_size
    if tile != "auto":
        if not (tile == str(image_size) or (any_size and tile.isdecimal() and int(tile) >= LEAST_TILE)):
            kind = f"at least {LEAST_TILE} pixels" if any_size else f"{image_size}, which this network sees"
            raise UserError(f"tile={tile} must be {kind}, or auto, or none.")
        side = int(tile)
    shared, grid, margin = side // 4, 1, None
    if any_size:
        assert isinstance(network, ImageNetwork)
        grid, margin = network.grid, network.sees
        side = math.ceil(side / grid) * grid
        shared = min(2 * margin + 1, side // 4)
    if overlap is not None:
        if not overlap.isdecimal() or int(overlap) >= side:
            raise UserError(f"overlap={overlap} must be a whole number of pixels below the tile's side, {side}.")
        shared = int(overlap)
        shared = min(shared, side - grid)
    return Tiling(side, shared, max(1, batch_size * image_size**2 // side**2), grid, margin)


LARGE_TILE, LEAST_TILE = 256, 16  # px, of networks that take any size


def finite(module: GenerativeModule, name: str, images: Tensor) -> Tensor:
    """Return images as they are.

    Args:
        module: What made them.
        name: What they are, such as the output.

    Raises:
        UserError: Some values are no numbers, which a file would hold as black.
    """
    for said in module.diverged({name: images}).values():
        raise UserError(said)
    return images


def finite_states(module: GenerativeModule, batch: Batch) -> list[State]:
    """Go the way to an output of ``generate``.

    Returns:
        The sampler's states, on the CPU; none of what takes a single step.

    Raises:
        UserError: Some values are no numbers.
    """
    states = [
        State(s.z.cpu(), s.image.cpu(), None if s.unknown is None else s.unknown.cpu())
        for s in module.states(batch, module.evaluation_randomness(batch, "generate"))
    ]
    for number, state in enumerate(states, 1):
        finite(module, f"step {number} of {len(states)}", torch.cat([state.z, state.image]))
    return states


@dataclass(frozen=True)
class Request:
    """A picture that is to be restored.

    Attributes:
        number: Its number: a restoration depends on it, and not on what is restored with it.
        image: (R, C, H, W) image in [-1, 1]: the channels of a colour picture are rows of their own for a grey network.
        missing: (H, W) bool, True where pixels are missing; None where there is no mask.
        size: Height and width of the picture.
        degraded: What a degradation has made of it, (R, C, H, W), with its (R, 1, H, W) validity map; None without one.
    """

    number: int
    image: Tensor
    missing: Tensor | None
    size: tuple[int, int]
    degraded: tuple[Tensor, Tensor] | None = None


class Restorer:
    """Runs a trained module on pictures from files.

    Args:
        module: Trained module.
        degradation: Applied to the images first, or None.
        image_size: Height and width that the network was trained at.
        channels: Channels that it was trained with.
        result: Name of the output to write; None for the module's first.
        device: Where the module is.
        tiling: How larger pictures go through the network; None resizes them to the training size.
        batch_size: Images at a time.
        on_tiles: Told after each call how many tiles of how many are done, of a picture that takes several.

    Raises:
        UserError: The module has no output of the wanted name.
    """

    def __init__(
        self,
        module: GenerativeModule,
        degradation: Degradation | None,
        image_size: int,
        channels: int,
        result: str | None,
        device: torch.device,
        tiling: Tiling | None = None,
        batch_size: int = 64,
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> None:
        self.module = module
        self.degradation = degradation
        self.image_size = image_size
        self.channels = channels
        self.device = device
        self.batch_size = batch_size
        self.on_tiles = on_tiles
        self.result = next(iter(module.outputs)) if result is None else result
        if self.result not in module.outputs:
            raise UserError(f"result={result} is no output of this run: choose one of {', '.join(module.outputs)}.")
        self.tiling = tiling
        self._networks = module.pixel_networks()

    @property
    def puts_back_known(self) -> bool:
        """Whether the known pixels of a file are put back into its result."""
        return self.module.outputs[self.result].puts_back_known

    def request(self, number: int, picture: Picture, missing: Tensor | None) -> Request:
        """Prepare a picture.

        Args:
            missing: (H, W) bool, its hole; None without a mask.

        Raises:
            ValueError: The degradation does not fit it.
        """
        own, side = in_own_channels(picture), self.image_size
        size = own.shape[2], own.shape[3]
        if self.tiling is None:  # at once, so that many large photographs can wait for their batch
            missing = None if missing is None else hole_at_size(missing, side)[0]
            own = at_size(own, (side, side))
        image = as_rows(own, self.channels)
        if self.degradation is None:
            return Request(number, image, missing, size)
        degraded = degrade_one(self.degradation, own.to(self.device), self.module.evaluation_seed, number)
        validity = degraded.validity.expand(len(image), -1, -1, -1)
        return Request(number, image, missing, size, (as_rows(degraded.image, self.channels), validity))

    def is_whole(self, request: Request) -> bool:
        """Whether the network takes the picture at once, alone or with others."""
        return request.image.shape[2:] == (self.image_size, self.image_size)

    @torch.inference_mode()
    def restore(self, requests: list[Request]) -> list[Tensor]:
        """Restore pictures that the network takes whole.

        Returns:
            The (R, C, H, W) images of each, of the picture's own size.
        """
        made = self._make(self._batch(requests))
        rows = [len(request.image) for request in requests]
        return [at_size(part, request.size) for part, request in zip(made.split(rows), requests, strict=True)]

    @torch.inference_mode()
    def restore_in_tiles(self, request: Request) -> Tensor:
        """Restore a picture of any size.

        Returns:
            Its (R, C, H, W) images.
        """
        assert self.tiling is not None
        height, width = request.size
        size = 1 if self._networks and all(network.any_size for network in self._networks) else self.image_size
        batch = self._batch([request], size)
        if self._networks:
            with ExitStack() as tiled:
                for number, network in enumerate(self._networks):
                    tiled.enter_context(self._tiled(network, nobody if number else self._count))
                made = self._make(batch)
        elif self.puts_back_known and (request.missing is not None or self.module.current_tasks == {"inpaint"}):
            made = self.tiling.outside_in(self._make, batch, self._count)
        else:
            made = self.tiling.blended(self._make, batch, self._count)
        return made[..., :height, :width]

    @torch.inference_mode()
    def one(self, request: Request) -> Tensor:
        """Restore one picture, whole or in tiles.

        Returns:
            Its (R, C, H, W) images.
        """
        return self.restore([request])[0] if self.is_whole(request) else self.restore_in_tiles(request)

    @torch.inference_mode()
    def states(self, request: Request) -> list[State]:
        """Go the way to a restored picture that the network takes whole.

        Returns:
            The sampler's states, on the CPU; none of what restores in one step.
        """
        return finite_states(self.module, self._batch([request]))

    def degraded(self, request: Request) -> Tensor:
        """Return what is restored of a picture: it as the degradation leaves it, (R, C, H, W)."""
        return at_size(self.observed(request)[0], request.size)

    def observed(self, request: Request) -> tuple[Tensor, Tensor]:
        """Return what is restored of a picture, (R, C, H, W), and its (R, 1, H, W) validity map."""
        if request.degraded is not None:
            return request.degraded
        image = request.image.to(self.device)
        if request.missing is None:
            return image, torch.zeros_like(image[:, :1])  # nothing is known exactly of a degraded photograph
        validity = (~request.missing.to(self.device)).float().expand(len(image), 1, -1, -1)
        return image * validity, validity  # missing pixels are mid-grey, as in training

    @contextmanager
    def _tiled(self, network: ImageNetwork, on_tiles: OnTiles) -> Iterator[None]:
        """Let the network go over its images in tiles: samplers, guidance and flow maps of the module all hold it."""
        assert self.tiling is not None
        network.forward = self.tiling.network(network.forward, on_tiles)
        try:
            yield
        finally:
            del network.forward  # of the instance; that of its class is there again

    def replaced(self, missing_HW: Tensor) -> Tensor:
        """Find the pixels of a file that its result takes from the module.

        Args:
            missing_HW: (H, W) bool, the hole at the file's own size.

        Returns:
            (H, W) bool: the hole, and around it the ramp of ``module.feather`` where there is one.
        """
        feather = self.module.feather
        if not feather:
            return missing_HW
        scale = [1.0, 1.0] if self.tiling is not None else [side / self.image_size for side in missing_HW.shape]
        reach = [2 * round(feather * factor) + 1 for factor in scale]
        padding = [side // 2 for side in reach]
        return F.max_pool2d(missing_HW[None].float(), reach, stride=1, padding=padding)[0] > 0

    def _make(self, batch: Batch) -> Tensor:
        randomness = self.module.evaluation_randomness(batch, "generate")
        made = self.module.images_of(batch, randomness, {self.result})[self.result]
        return finite(self.module, self.result, made)

    def _count(self, done: int, tiles: int) -> None:
        if self.on_tiles is not None:
            self.on_tiles(done, tiles)

    def _batch(self, requests: list[Request], size: int = 1) -> Batch:
        """Put pictures of one size into a batch, each continued to a least side."""
        parts = zip(*map(self.observed, requests), strict=True)
        degraded, validity = (padded(_joined(part), size) for part in parts)
        image = degraded
        if self.degradation is not None:
            image = padded(_joined([request.image for request in requests]).to(self.device), size)
        rows = torch.tensor([len(request.image) for request in requests])
        index = torch.tensor([request.number for request in requests]).repeat_interleave(rows)
        return Batch(image, index, degraded=degraded, validity=validity)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate; a large photograph, which comes alone, is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
