"""The embedded data set: digits typeset from the TrueType fonts that matplotlib ships, distorted like handwriting.

Every (face, digit) pair is rendered once, large, and stored as a signed distance to its outline. An image is then one
warped look-up in its glyph's distance map, so that the stroke's thickness is a threshold and anti-aliasing is exact.

Shape suffixes: A glyphs, B batch, S side of an image, T side of a glyph's tile, XY two coordinates.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import ImageDataModule
from datamodules.splits import Split, Splits
from datamodules.store import ImageStore, content_hash, pad_to
from files.cache import Tensors, cached
from generative.checks import checked
from generative.randomness import generator_for
from generative.ranges import Channels, Count, WholeNumber

FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
NUM_DIGITS = 10
SIZES: dict[Split, int] = {"train": 60_000, "val": 2_000, "test": 2_000}
_VERSION = 2  # of the cache file
_CHUNK = 1_000  # images drawn at a time: bounds the memory, and is part of what the images are


@dataclass(frozen=True)
class DigitStyle:
    """What a digit may look like; pixels are those of the final image, intervals are uniform.

    Attributes:
        version: Raised when the drawing changes in a way that the other values do not show.
        size: Side S of an image.
        tile: Side T of a glyph's distance map, in its own pixels.
        glyph: Height of a zero within the tile, in the tile's pixels.
        height: Height of a zero.
        aspect: Factor of the width.
        rotation: Rotation in degrees.
        shear: Horizontal shift per unit of height.
        stroke: Half of the stroke's width.
        outline: Bounds of moving a face's outline outwards to reach that stroke; hairlines bear hardly any inwards.
        shift: Distance of the digit's middle from the image's, in both directions.
        elastic: Standard deviation of the elastic displacement.
        elastic_grid: Number of displacements drawn per side, interpolated between.
    """

    version: int = 1
    seed: int = 0
    size: int = 32
    tile: int = 96
    glyph: int = 60
    height: tuple[float, float] = (17.0, 22.0)
    aspect: tuple[float, float] = (0.8, 1.15)
    rotation: tuple[float, float] = (-15.0, 15.0)
    shear: tuple[float, float] = (-0.25, 0.25)
    stroke: tuple[float, float] = (1.1, 2.0)
    outline: tuple[float, float] = (-0.1, 0.9)
    shift: tuple[float, float] = (-2.0, 2.0)
    elastic: float = 0.8
    elastic_grid: int = 5

    def key(self) -> str:
        """Return a short hash of everything that the images depend on, for the cache file's name."""
        return hashlib.blake2b(repr((asdict(self), FACES, SIZES, _CHUNK)).encode(), digest_size=6).hexdigest()


def _render_glyphs(style: DigitStyle) -> Tensor:
    """Draw every digit in every face, centred in its tile.

    Args:
        style: Tile and glyph size.

    Returns:
        (A, T, T) bool masks of the ink, A = faces x digits.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masks = []
    for face in FACES:
        path = str(folder / f"{face}.ttf")
        probe = ImageFont.truetype(path, 1000)
        _, top, _, bottom = probe.getbbox("0")
        font = ImageFont.truetype(path, 1000 * style.glyph / (bottom - top))
        for digit in "0123456789":
            tile = Image.new("L", (style.tile, style.tile))
            box = font.getbbox(digit)
            corner = [(style.tile - low - high) / 2 for low, high in (box[::2], box[1::2])]
            ImageDraw.Draw(tile).text((corner[0], corner[1]), digit, fill=255, font=font)
            masks.append(np.asarray(tile) > 127)
    return torch.from_numpy(np.stack(masks))


def _distance_to(mask_ATT: Tensor) -> Tensor:
    """Euclidean distance of every pixel to the nearest pixel of a mask: within each row, then over the rows near enough."""
    side = mask_ATT.shape[-1]
    far, pixel = 2 * side, torch.arange(side, dtype=torch.float32)
    left = torch.where(mask_ATT, pixel, -far).cummax(-1).values
    right = torch.where(mask_ATT, pixel, 2 * far).flip(-1).cummin(-1).values.flip(-1)
    along_rows = torch.minimum(pixel - left, right - pixel).clamp(max=far).square()
    nearest = along_rows.clone()
    for rows in range(1, side):
        if rows**2 >= nearest.max():
            break
        for here, there in ((slice(rows, None), slice(-rows)), (slice(-rows), slice(rows, None))):
            nearest[:, here] = torch.minimum(nearest[:, here], along_rows[:, there] + rows**2)
    return nearest.sqrt()


def glyph_distances(style: DigitStyle) -> Tensor:
    """Return the signed distance to the outline of every digit in every face.

    Args:
        style: Tile and glyph size.

    Returns:
        (A, T, T) distances in tile pixels, positive in the ink; glyph a is digit a % 10 in face a // 10.
    """
    ink = _render_glyphs(style)
    return torch.where(ink, _distance_to(~ink) - 0.5, 0.5 - _distance_to(ink))


def _between(interval: tuple[float, float], draws: Tensor) -> Tensor:
    low, high = interval
    return low + (high - low) * draws


def draw_digits(glyph_B: Tensor, distances_ATT: Tensor, style: DigitStyle, generator: torch.Generator) -> Tensor:
    """Draw one distorted image for each glyph.

    Args:
        glyph_B: (B,) int64 glyph numbers.
        distances_ATT: (A, T, T) signed distances.
        style: What the digits may look like.

    Returns:
        (B, 1, S, S) uint8 images, ink 255 on 0.
    """
    n, size = len(glyph_B), style.size
    draws = torch.rand(7, n, 1, 1, generator=generator)
    scale = _between(style.height, draws[0]) / style.glyph  # image pixels per tile pixel
    aspect = _between(style.aspect, draws[1])
    angle = _between(style.rotation, draws[2]) * (math.pi / 180)
    shear = _between(style.shear, draws[3])
    coarse = torch.randn(n, 2, style.elastic_grid, style.elastic_grid, generator=generator)
    elastic = style.elastic * F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)

    # From a pixel of the image back to the tile: undo shift and elastic displacement, rotation, shear, size.
    pixel = torch.arange(size) - (size - 1) / 2
    x = pixel[None, None, :] - _between(style.shift, draws[4]) + elastic[:, 0]
    y = pixel[None, :, None] - _between(style.shift, draws[5]) + elastic[:, 1]
    x, y = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    x = (x + shear * y) / (scale * aspect)
    y = y / scale
    grid_BSSXY = torch.stack([x, y], dim=-1) * (2 / style.tile)

    distances = distances_ATT[glyph_B]
    # The deepest ink is half of the widest stroke; the outline moves towards the drawn half-width.
    half_stroke = distances.amax((1, 2))[:, None, None] * scale
    offset = (_between(style.stroke, draws[6]) - half_stroke).clamp(*style.outline)
    depth = F.grid_sample(distances[:, None], grid_BSSXY, padding_mode="border", align_corners=False)[:, 0] * scale
    ink = (depth + offset + 0.5).clamp(0, 1)  # a pixel is covered by how far its centre is within the outline
    return (255 * ink).round().to(torch.uint8)[:, None]


def generate_digits(style: DigitStyle, sizes: dict[Split, int] | None = None) -> Tensors:
    """Generate the data set; about ten seconds on two cores.

    Args:
        style: What the digits may look like.
        sizes: Images per split; ``SIZES`` by default.

    Returns:
        For each split ``<split>/images``, (N, 1, S, S) uint8, and ``<split>/digits``, (N,) int64; and ``glyphs``, a hash of
        the undistorted glyphs, which change with the fonts and with what draws them.
    """
    distances = glyph_distances(style)
    tensors: Tensors = {}
    for split, num_images in (sizes or SIZES).items():
        images, digits = [], []
        for chunk, start in enumerate(range(0, num_images, _CHUNK)):
            generator = generator_for(style.seed, f"digits/{split}", step=chunk)
            glyphs = torch.randint(len(distances), (min(_CHUNK, num_images - start),), generator=generator)
            images.append(draw_digits(glyphs, distances, style, generator))
            digits.append(glyphs % NUM_DIGITS)
        tensors[f"{split}/images"], tensors[f"{split}/digits"] = torch.cat(images), torch.cat(digits)
    tensors["glyphs"] = torch.tensor(content_hash((distances > 0).to(torch.uint8)))
    return tensors


@checked("data")
class DigitsDataModule(ImageDataModule):
    """Typeset digits, generated on first use and kept in the cache folder.

    Args:
        image_size: Side of the images; digits of 32 pixels are padded with black to more.
        channels: 1.
        style: What the digits look like, or None for the default.
        **settings: See ``ImageDataModule``.
    """

    def __init__(
        self,
        name: str = "digits",
        image_size: Count = 32,
        channels: Channels = 1,
        num_classes: WholeNumber = NUM_DIGITS,
        style: DigitStyle | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(name, image_size, channels, num_classes, **settings)
        self.style = style or DigitStyle()
        self.path = self.cache_dir / f"digits-{self.style.key()}-{_VERSION}.pt"

    def load_splits(self) -> Splits:
        tensors = cached(self.path, lambda: generate_digits(self.style))

        def store(split: Split) -> ImageStore:
            images = tensors[f"{split}/images"]
            labels = F.one_hot(tensors[f"{split}/digits"], NUM_DIGITS).float()
            size = max(self.image_size, self.style.size)
            recipe = f"digits {self.style.key()} {int(tensors['glyphs'])} {split} {size}"
            return ImageStore.dense(pad_to(images, size), labels, recipe)

        return Splits(
            train=store("train"),
            val=store("val"),
            test=store("test"),
            source="typeset from the fonts of matplotlib",
            drawn=f"independent draws per split, style {self.style.key()}",
        )
