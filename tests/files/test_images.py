"""Each form in which people have a picture is the same picture, for training and in use."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import ROOT
from picture_files import EXIF_ROTATED, SIZE, grey, half_opacity, scene, write_bomb, write_png
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from datamodules.decoding import decode
from files.images import (
    DECODING_ERRORS,
    NOTES,
    Picture,
    PictureError,
    read_picture,
    reason,
    upright_size,
    write_picture,
)
from files.words import named

COLOUR, GREY = scene(), grey()
DEEP_GREY = GREY.astype(np.uint16) * 257
OVER_WHITE = np.where(half_opacity()[..., None] > 0, COLOUR, 255)
GREY_OVER_WHITE = np.where(half_opacity() > 0, GREY, 255)


def rgba(under: int | None) -> Image.Image:
    """The right half is transparent, with the picture or one colour beneath."""
    pixels = np.dstack([COLOUR, half_opacity()])
    if under is not None:
        pixels[half_opacity() == 0, :3] = under
    return Image.fromarray(pixels)


def turned(**kwargs) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[0x0112] = EXIF_ROTATED
    return lambda path: Image.fromarray(np.rot90(COLOUR)).save(path, exif=exif, **kwargs)


def as_saved(image: Image.Image, **kwargs) -> Callable[[Path], None]:
    return lambda path: image.save(path, **kwargs)


def transparent_palette(path: Path) -> None:
    """The black entry of the palette is transparent, and the right half is of it."""
    indices = Image.fromarray(COLOUR).quantize(8)
    values = np.asarray(indices).copy()
    values[half_opacity() == 0] = 8
    image = Image.fromarray(values, "P")
    image.putpalette([*indices.getpalette()[: 3 * 8], 0, 0, 0])
    image.save(path, transparency=8)


def keyed(colour_type: int, bits: int) -> Callable[[Path], None]:
    """A PNG without opacity that names a value, with which the right half is filled, as transparent."""
    values = (COLOUR if colour_type == 2 else GREY).astype(np.uint32) * (257 if bits == 16 else 1)
    key = 0x0105 if bits == 16 else 1
    values[half_opacity() == 0] = key
    channels = 3 if colour_type == 2 else 1
    from picture_files import chunk

    extra = chunk(b"tRNS", key.to_bytes(2, "big") * channels)
    return lambda path: write_png(path, values, colour_type, bits, extra)


PICTURE = Image.fromarray(COLOUR)
FORMS = {  # what is in the file: how it is written, what is seen, and by how much that may differ
    "plain.png": (as_saved(PICTURE), COLOUR, 0),
    "plain.bmp": (as_saved(PICTURE), COLOUR, 0),
    "plain.ppm": (as_saved(PICTURE), COLOUR, 0),
    "plain.tif": (as_saved(PICTURE), COLOUR, 0),
    "lossless.webp": (as_saved(PICTURE, lossless=True), COLOUR, 0),
    "plain.JPG": (as_saved(PICTURE, format="JPEG", quality=100, subsampling=0), COLOUR, 3),
    "progressive.jpeg": (as_saved(PICTURE, quality=100, subsampling=0, progressive=True), COLOUR, 3),
    "content_is_png.jpg": (as_saved(PICTURE, format="PNG"), COLOUR, 0),
    "cmyk.jpg": (as_saved(PICTURE.convert("CMYK"), quality=100, subsampling=0), COLOUR, 4),
    "cmyk.tif": (as_saved(PICTURE.convert("CMYK")), COLOUR, 1),
    "ycbcr.tif": (as_saved(PICTURE.convert("YCbCr")), COLOUR, 3),
    "lab.tif": (as_saved(ImageCms.profileToProfile(
        PICTURE, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")), COLOUR, 10),
    "palette.gif": (as_saved(PICTURE.quantize(64)), np.asarray(PICTURE.quantize(64).convert("RGB")), 0),
    "exif.jpg": (turned(quality=100, subsampling=0), COLOUR, 3),
    "exif.png": (turned(), COLOUR, 0),
    "exif.tif": (turned(), COLOUR, 0),
    "exif.webp": (turned(lossless=True), COLOUR, 0),
    "deep_colour.png": (lambda path: write_png(path, COLOUR.astype(np.uint16) * 257, 2, 16), COLOUR, 0),
    "deep_colour.tif": (lambda path: tifffile.imwrite(path, COLOUR.astype(np.uint16) * 257), COLOUR, 0),
    "grey.png": (as_saved(Image.fromarray(GREY)), GREY, 0),
    "grey.pgm": (as_saved(Image.fromarray(GREY)), GREY, 0),
    "deep.png": (as_saved(Image.fromarray(DEEP_GREY)), GREY, 0),
    "deep.tif": (as_saved(Image.fromarray(DEEP_GREY)), GREY, 0),
    "deep.pgm": (as_saved(Image.fromarray(DEEP_GREY.astype(np.int32))), GREY, 0),
    "big_endian.tif": (lambda path: tifffile.imwrite(path, DEEP_GREY, byteorder=">"), GREY, 0),
    "white_is_zero.tif": (lambda path: tifffile.imwrite(path, 65535 - DEEP_GREY, photometric="miniswhite"), GREY, 0),
    "signed.tif": (lambda path: tifffile.imwrite(path, (DEEP_GREY // 2).astype(np.int16)), GREY // 2, 1),
    "int32.tif": (lambda path: tifffile.imwrite(path, DEEP_GREY.astype(np.int32)), GREY, 0),
    "float.tif": (as_saved(Image.fromarray((GREY / 255).astype(np.float32))), GREY, 0),
    "onebit.png": (as_saved(Image.fromarray(GREY > 110)), (GREY > 110) * 255, 0),
    "onebit.pbm": (as_saved(Image.fromarray(GREY > 110)), (GREY > 110) * 255, 0),
    "animated.gif": (as_saved(PICTURE.quantize(64), save_all=True, append_images=[Image.fromarray(255 - COLOUR)]),
                     np.asarray(PICTURE.quantize(64).convert("RGB")), 0),
    "animated.webp": (as_saved(PICTURE, save_all=True, append_images=[Image.fromarray(255 - COLOUR)], lossless=True),
                      COLOUR, 0),
    "animated.apng": (as_saved(PICTURE, format="PNG", save_all=True, append_images=[Image.fromarray(255 - COLOUR)]),
                      COLOUR, 0),
    "pages.tiff": (as_saved(PICTURE, save_all=True, append_images=[Image.fromarray(255 - COLOUR)]), COLOUR, 0),
    "rgba.png": (as_saved(rgba(None)), OVER_WHITE, 0),
    "black_under.png": (as_saved(rgba(0)), OVER_WHITE, 0),
    "premultiplied.tif": (lambda path: tifffile.imwrite(
        path, np.asarray(rgba(0)), photometric="rgb", extrasamples=["assocalpha"]), OVER_WHITE, 0),
    "rgba.webp": (as_saved(rgba(0), lossless=True), OVER_WHITE, 0),
    "la.png": (as_saved(Image.fromarray(np.dstack([GREY, half_opacity()]))), GREY_OVER_WHITE, 0),
    "palette_alpha.png": (transparent_palette, OVER_WHITE, 60),
    "key_colour.png": (keyed(2, 8), OVER_WHITE, 0),
    "key_deep_colour.png": (keyed(2, 16), OVER_WHITE, 0),
    "key_grey.png": (keyed(0, 8), GREY_OVER_WHITE, 0),
    "key_deep_grey.png": (keyed(0, 16), GREY_OVER_WHITE, 0),
    "deep_alpha.png": (lambda path: write_png(
        path, np.dstack([COLOUR, half_opacity()]).astype(np.uint16) * 257, 6, 16), OVER_WHITE, 0),
    "deep_grey_alpha.png": (lambda path: write_png(
        path, np.dstack([GREY, half_opacity()]).astype(np.uint16) * 257, 4, 16), GREY_OVER_WHITE, 0),
}  # fmt: skip
TRANSPARENT_FORMS = {"rgba", "black_under", "premultiplied", "la", "palette_alpha", "deep_alpha", "deep_grey_alpha"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FORMS)
def test_a_file_is_read_as_the_picture_that_people_see(name: str, tmp_path: Path) -> None:
    write, expected, tolerance = FORMS[name]
    path = tmp_path / name
    write(path)
    wide = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    picture = read_picture(path)
    shown = np.asarray(picture.shown(3)).astype(int)
    assert abs(shown - wide).max() <= tolerance
    luma = np.asarray(Image.fromarray(wide.astype(np.uint8)).convert("L")).astype(int)
    assert abs(np.asarray(picture.shown(1)).astype(int) - luma).max() <= tolerance + 1
    assert upright_size(path) == picture.size == (SIZE, SIZE)
    stem = name.partition(".")[0]
    assert picture.notes == (stem in TRANSPARENT_FORMS or name == "rgba.webp" or stem.startswith("key"),
                             stem in ("animated", "pages"))  # fmt: skip
    assert len(NOTES) == len(picture.notes)
    # Training reads the same: from a path and from a member of a shard.
    assert np.array_equal(decode(path, 3, 1).permute(1, 2, 0).numpy(), shown)
    assert np.array_equal(decode(io.BytesIO(path.read_bytes()), 3, 1).permute(1, 2, 0).numpy(), shown)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_size_in_the_header_is_that_of_the_upright_picture(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(scene(12, 8)).save(path, exif=exif)
    assert upright_size(path) == read_picture(path).size == ((12, 8) if orientation < 5 else (8, 12))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_notes_that_cannot_be_read_do_not_cost_the_picture(suffix: str, tmp_path: Path) -> None:
    directory, path = ImageFileDirectory_v2(), tmp_path / f"a.{suffix}"
    directory.tagtype[0x011A] = 2
    directory[0x0112], directory[0x011A] = EXIF_ROTATED, "a word where a number belongs"
    odd = b"Exif\0\0II*\0\x08\0\0\0" + directory.tobytes(8)
    for exif, size in ((b"Exif\0\0no directory", (12, 8)), (odd, (8, 12))):
        Image.fromarray(scene(12, 8)).save(path, exif=exif)
        picture = read_picture(path)
        assert upright_size(path) == picture.size == size
        assert picture.exif is None


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp", ".jpg"])
def test_a_format_holds_the_picture_or_what_is_seen_of_it(suffix: str, tmp_path: Path) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    for picture in (
        *(Picture(pixels, also) for pixels in (COLOUR, GREY) for also in (None, alpha)),
        Picture(DEEP_GREY),
    ):
        path = tmp_path / f"a{suffix}"
        held = write_picture(picture, path)
        plain = picture.alpha is None and picture.pixels.dtype == np.uint8
        assert held == (plain or suffix in (".png", ".tif") or (suffix == ".webp" and picture.alpha is not None))
        read = read_picture(path)
        expected = picture if held else Picture(np.asarray(picture.shown(1 if picture.pixels.ndim == 2 else 3)))
        assert np.array_equal(read.alpha, expected.alpha) if held else read.alpha is None
        pixels = read.pixels[..., 0] if read.pixels.ndim > expected.pixels.ndim else read.pixels  # WebP knows no grey
        assert abs(pixels.astype(int) - expected.pixels).max() <= (20 if suffix == ".jpg" else 0)


def test_what_an_encoder_refuses_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"it cannot be written as WEBP \(.*\): take \.png"):
        write_picture(Picture(np.zeros((1, 17_000), np.uint8)), tmp_path / "wide.webp")
    assert not list(tmp_path.iterdir())


def test_half_opacity_is_half_white_as_in_pillow(tmp_path: Path) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    image = Image.fromarray(np.dstack([COLOUR, alpha]))
    image.save(tmp_path / "a.png")
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert np.abs(np.asarray(read_picture(tmp_path / "a.png").shown(3)).astype(int) - expected).max() <= 1


def test_16_bits_of_grey_and_the_values_under_transparency_are_kept(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(read_picture(tmp_path / "deep.png").pixels, values)
    rgba(None).save(tmp_path / "rgba.png")
    picture = read_picture(tmp_path / "rgba.png")
    assert np.array_equal(picture.pixels, COLOUR)
    assert np.array_equal(picture.alpha, half_opacity())
    for name, reduced in (("deep_colour.png", True), ("float.tif", True), ("plain.png", False), ("deep.tif", False)):
        FORMS[name][0](tmp_path / name)
        assert read_picture(tmp_path / name).reduced == reduced


@pytest.mark.filterwarnings("error")
def test_what_is_no_readable_picture_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.png"

    def why(make: Callable[[Path], object]) -> str:
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(DECODING_ERRORS) as error:
            read_picture(path)
        assert "\n" not in reason(error.value)
        assert str(tmp_path) not in reason(error.value)
        return reason(error.value)

    assert why(lambda path: path.write_bytes(b"")) == "it is in no format that is read"
    assert why(lambda path: path.write_text("<html>404</html>")) == "it is in no format that is read"
    assert why(lambda path: PICTURE.save(path, format="EPS")) == "it is in no format that is read"  # runs Ghostscript
    assert "178 million pixels" in why(lambda path: write_bomb(path, 20_000, 9_000))
    assert "no regular file" in why(os.mkfifo)
    assert "no regular file" in why(Path.mkdir)
    path.rmdir()
    assert "No such file" in why(lambda path: path.symlink_to("nowhere"))
    assert "from -1 to 3" in why(lambda path: tifffile.imwrite(path, np.array([[-1, 3]], np.int16)))
    assert "from 0 to 100000" in why(lambda path: tifffile.imwrite(path, np.array([[0, 100_000]], np.int32)))
    assert "from 0 to 1.5" in why(lambda path: tifffile.imwrite(path, np.array([[0, 1.5]], np.float32)))
    assert "nan" in why(lambda path: tifffile.imwrite(path, np.array([[0, np.nan]], np.float32)))
    assert "memory" in reason(MemoryError())


def test_a_large_photo_is_read_without_pillows_warning(tmp_path: Path) -> None:
    write_bomb(tmp_path / "large.png", 11_000, 10_000)
    code = "import sys, pathlib, files.images as images; print(images.upright_size(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-W", "default", "-c", code, str(tmp_path / "large.png")]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )  # pytest has its own filters
    assert (process.stdout.strip(), process.stderr) == ("(11000, 10000)", "")


def test_names_are_printed_on_one_line() -> None:
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(["a\nb", "\udcff.png", "żółw 猫", "d", "e"]) == r"a\nb, \udcff.png, żółw 猫 and 2 more"
