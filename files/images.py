"""Image files: which formats are read, and how a file becomes the picture that people see."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, PngImagePlugin, UnidentifiedImageError

from files.whole import whole_file

# Formats whose decoders read pixels and nothing else, and the suffixes of their files. Whatever a file is called, no other
# decoder sees it: some run programs (EPS) or open other files.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM")
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".apng", ".bmp", ".gif", ".jfif", ".jpe", ".pbm", ".pgm", ".pnm", ".ppm", ".tif",
    ".tiff",
)  # fmt: skip
# Pictures that people have next to them and that are not read.
UNREAD_SUFFIXES = (
    ".arw", ".avif", ".cr2", ".cr3", ".dds", ".dng", ".exr", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jxl", ".nef",
    ".pfm", ".psd", ".qoi", ".svg", ".tga", ".xcf",
)  # fmt: skip

# Pillow has no common error for empty, truncated, mislabelled, corrupt and absurdly large files. Too little memory is no
# property of the file and not among them.
DECODING_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError, ImageCms.PyCMSError,
)  # fmt: skip
_NOTE_ERRORS = (*DECODING_ERRORS, TypeError, AttributeError)  # of EXIF, whose values may be of any type

# From Pillow's limit of 89 million pixels on it warns, from twice the limit on it refuses: the second is the limit here.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

DEEP = 65535  # white in 16 bits
NOTES = (
    "with transparent pixels, which are seen over white",
    "with several frames or pages, of which the first is used",
)
MAX_JPEG_EXIF = 65_000  # bytes that a JPEG file holds of it

# Modes of ``Picture.image`` that a format holds; one that is not named holds all of them.
_HELD = {"JPEG": {"L", "RGB"}, "BMP": {"L", "RGB"}, "WEBP": {"L", "LA", "RGB", "RGBA"}}
# What turns a picture upright, by the orientation in its EXIF.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_SOFTWARE = "Software"  # a keyword of PNG
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF and its value


class PictureError(ValueError):
    """A file holds no picture that is understood; the message says why, without its name."""


@dataclass(frozen=True)
class Picture:
    """An image file as it is seen upright: its first frame, colours as RGB.

    Attributes:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8; grey of up to 16 bits is uint16 with white at 65535.
        alpha: (H, W) uint8 opacity, or None where every pixel is opaque. ``pixels`` are not multiplied by it.
        several: Whether the file has further frames or pages.
        reduced: Whether the file's values are finer than ``pixels``: colours of 16 bits, or floating point.
        icc_profile: The file's colour profile where it describes ``pixels``, else None.
        exif: What the camera wrote, without the orientation, which has been applied; None where there is nothing.
        exact: (1 or 3, H, W) float32 that ``pixels`` are rounded and cut from, -1 black and 1 white, of a picture that came as
            such numbers; noise may lead out of that range. None of a file.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    several: bool = False
    reduced: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    exact: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def image(self) -> Image.Image:
        """As an image of Pillow's modes L, LA, RGB, RGBA or I;16."""
        if self.alpha is None:
            return Image.fromarray(self.pixels)
        return Image.fromarray(np.dstack([to_8_bits(self.pixels), self.alpha]))

    @property
    def notes(self) -> tuple[bool, ...]:
        """Which of ``NOTES``, what a person should know of how files are read, are true of this one."""
        return (self.alpha is not None, self.several)

    def shown(self, channels: int) -> Image.Image:
        """Return the picture as networks see it: 8 bits, transparent parts over white.

        Args:
            channels: 1 for grey, 3 for RGB.

        Returns:
            An image of the mode ``L`` or ``RGB``.
        """
        image = Image.fromarray(to_8_bits(self.pixels))
        if self.alpha is not None:
            image = Image.composite(image, Image.new(image.mode, image.size, "white"), Image.fromarray(self.alpha))
        return image.convert("L" if channels == 1 else "RGB")


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Round 16-bit values to the nearest 8-bit ones.

    Args:
        pixels: uint8 or uint16 values of any shape.

    Returns:
        uint8 values.
    """
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def read_picture(file: Path | BinaryIO) -> Picture:
    """Read an image file; the only way in which the project reads one. A damaged file raises one of ``DECODING_ERRORS``.

    Args:
        file: The file, or its open content. Nothing but a regular file is opened.
    """
    with _opened(file) as opened:
        return picture_of(opened)


def picture_of(opened: Image.Image) -> Picture:
    """Read a picture that Pillow has opened, or that a person made with it.

    Args:
        opened: The image; one of floating point has 0 as black and 1 as white.
    """
    tiles = opened.tile if isinstance(opened, ImageFile.ImageFile) else []
    layout = str(tiles[:1])  # names the bits of the encoded values, which the mode does not
    deep = ";16" in layout or (opened.format == "PPM" and _maximum(tiles) > 255)
    inverted = opened.format == "TIFF" and opened.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
    profile = opened.info.get("icc_profile") if opened.mode in ("L", "LA", "P", "RGB", "RGBA", "I;16") else None
    opened.load()  # a TIFF file is turned by this
    turn = _TURNS.get(_orientation(opened))
    image = opened.copy() if turn is None else opened.transpose(turn)
    several = _has_several(opened)
    exif = _exif(image)
    if image.mode.startswith("I"):
        white = 4095 if "I;12" in layout else DEEP
        pixels = _deep_grey(np.asarray(image), white, inverted and image.mode != "I")
        key = image.info.get("transparency")
        if key is None:
            return Picture(pixels, None, several, False, profile, exif)
        return Picture(to_8_bits(pixels), _opacity(np.where(pixels == key, 0, 255)), several, True, profile, exif)
    if image.mode == "F":
        return Picture(_float_grey(np.asarray(image)), None, several, True, None, exif)
    pixels, alpha = _colours(image)
    return Picture(pixels, alpha, several, deep, profile, exif)


def upright_size(path: Path) -> tuple[int, int]:
    """Read the size of a picture from its header.

    Returns:
        Width and height as it is seen.
    """
    with _opened(path) as opened:
        width, height = opened.size
        # Pillow turns TIFF files by itself, and their size with them.
        turned = opened.format != "TIFF" and _orientation(opened) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def write_picture(picture: Picture, path: Path, replace: bool = True, software: str | None = None) -> bool:
    """Write a picture in the format of the file's suffix, whole or not at all; without loss but in JPEG files.

    Args:
        picture: The picture. PNG and TIFF files hold all of it.
        path: File to write; its folder is created.
        replace: Whether a file that is there may be replaced.
        software: Who made it, for the header of a PNG file.

    Returns:
        Whether the format holds its opacity and bits; else it was written as it is seen, 8 bits over white.

    Raises:
        PictureError: The format has no such picture, as one of too many pixels.
    """
    kind, image = Image.registered_extensions()[path.suffix.lower()], picture.image
    held = image.mode in _HELD.get(kind, {image.mode})
    if not held:
        image = picture.shown(1 if picture.pixels.ndim == 2 else 3)
    options: dict[str, Any] = {"icc_profile": picture.icc_profile} if picture.icc_profile else {}
    if picture.exif and (kind != "JPEG" or len(picture.exif) < MAX_JPEG_EXIF):
        options["exif"] = picture.exif
    if kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif kind == "WEBP":
        options |= {"lossless": True, "exact": True}  # also the values under transparency
    elif kind == "PNG" and software:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text(_SOFTWARE, software)
    content = io.BytesIO()  # an encoder's OSError is none of the disk
    try:
        image.save(content, kind, **options)
    except _NOTE_ERRORS as error:
        raise PictureError(f"it cannot be written as {kind} ({reason(error)}): take .png") from error
    with whole_file(path, replace=replace) as file:
        file.write(content.getbuffer())
    return held


def software_of(path: Path) -> str | None:
    """Read who made a PNG file.

    Returns:
        What ``write_picture`` was told, or None.
    """
    try:
        with _opened(path) as opened:
            return opened.info.get(_SOFTWARE)
    except DECODING_ERRORS:
        return None


def reason(error: BaseException) -> str:
    """Say in a few words why a file cannot be read.

    Args:
        error: One of ``DECODING_ERRORS``, or ``MemoryError``.

    Returns:
        The reason on one line, without the file's name.
    """
    if isinstance(error, UnidentifiedImageError):
        return "it is in no format that is read"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _opened(file: Path | BinaryIO) -> ImageFile.ImageFile:
    if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
        raise PictureError("it is no regular file")  # opening a pipe would wait for ever
    return Image.open(file, formats=FORMATS)


def _orientation(opened: Image.Image) -> Any:
    """Read the orientation in a picture's EXIF; None where that cannot be read: a note must not cost the picture."""
    try:
        return opened.getexif().get(ExifTags.Base.Orientation)
    except _NOTE_ERRORS:
        return None


def _exif(image: Image.Image) -> bytes | None:
    try:
        exif = image.getexif()
        exif.pop(ExifTags.Base.Orientation, None)
        return exif.tobytes() if len(exif) else None
    except _NOTE_ERRORS:
        return None


def _has_several(image: Image.Image) -> bool:
    if image.format == "MPO":  # a photo with a preview or a depth map behind it
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except DECODING_ERRORS:  # the frames behind the first one are damaged
        return True


def _maximum(tiles: list[Any]) -> int:
    """Largest value that a PPM file declares."""
    arguments: Any = tiles[0][3]
    return max((value for value in arguments if isinstance(value, int)), default=0)


def _deep_grey(values: np.ndarray, white: int, inverted: bool) -> np.ndarray:
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > white:
        raise PictureError(f"it holds values from {lowest} to {highest}: whole numbers of 0 to {white} are read")
    values = values.astype(np.uint16)
    if white != DEEP:
        values = (values.astype(np.uint32) * DEEP // white).astype(np.uint16)
    return DEEP - values if inverted else values


def _float_grey(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise PictureError(
            f"it holds floating-point values from {values.min():g} to {values.max():g}: those of 0 (black) to 1 (white) are "
            "read"
        )
    return (values * np.float32(DEEP)).round().astype(np.uint16)


def _colours(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if grey else "RGB")), None
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of a PNG of 16 bits, whose colours Pillow has cut to 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    values = np.asarray(image.convert("LA" if grey else "RGBA"))
    pixels = values[..., 0] if grey else values[..., :3]
    return np.ascontiguousarray(pixels), _opacity(values[..., -1])


def _opacity(alpha: np.ndarray) -> np.ndarray | None:
    return None if (alpha == 255).all() else np.ascontiguousarray(alpha, dtype=np.uint8)
