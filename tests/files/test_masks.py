"""The masks that people have: each gives the hole that was meant, or one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import EXIF_ROTATED, SIZE, hole, scene
from PIL import Image, ImageFilter

from files.masks import MaskError, hole_rule, match_masks, read_mask

HOLE = hole()
WHITE = HOLE.astype(np.uint8) * 255


def layer(colour: np.ndarray | tuple[int, int, int], opaque: np.ndarray) -> Image.Image:
    pixels = np.broadcast_to(np.asarray(colour, np.uint8), (SIZE, SIZE, 3))
    return Image.fromarray(np.dstack([pixels, opaque]).astype(np.uint8))


def palette(*colours: int) -> Image.Image:
    image = Image.fromarray(HOLE.astype(np.uint8), "P")
    image.putpalette([*colours, *[0] * (768 - len(colours))])
    return image


def save(image: Image.Image, **kwargs) -> Callable[[Path], None]:
    return lambda path: image.save(path, **kwargs)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = EXIF_ROTATED
    Image.fromarray(np.rot90(WHITE)).save(path, exif=exif)


STROKES = layer((255, 255, 255), WHITE)
SOFT_STROKES = layer((250, 252, 255), np.asarray(Image.fromarray(WHITE).filter(ImageFilter.GaussianBlur(0.3))))
READ = {
    "grey.png": save(Image.fromarray(WHITE)),
    "rgb.png": save(Image.fromarray(WHITE).convert("RGB")),
    "onebit.png": save(Image.fromarray(HOLE)),
    "zero_one.png": save(Image.fromarray(HOLE.astype(np.uint8))),
    "zero_one_16.png": save(Image.fromarray(HOLE.astype(np.uint16))),
    "eight_in_16.png": save(Image.fromarray(WHITE.astype(np.uint16))),
    "deep.png": save(Image.fromarray(HOLE.astype(np.uint16) * 65535)),
    "float.tif": save(Image.fromarray(HOLE.astype(np.float32))),
    "palette.png": save(palette(0, 0, 0, 255, 255, 255)),
    "palette_of_ones.png": save(palette(0, 0, 0, 1, 1, 1)),
    "gif.gif": save(Image.fromarray(WHITE)),
    "jpeg.jpg": save(Image.fromarray(WHITE), quality=90),
    "soft_edge.png": save(Image.fromarray(WHITE).filter(ImageFilter.GaussianBlur(0.3))),
    "exif.png": rotated,
    "erased.png": save(layer(scene(), 255 - WHITE)),
    "erased_black_under.png": save(layer(np.where(HOLE[..., None], 0, scene()), 255 - WHITE)),
    "strokes.png": save(STROKES),
    "strokes_black_under.png": save(layer(np.where(HOLE[..., None], 255, 0), WHITE)),
    "soft_strokes.png": save(SOFT_STROKES),
    "strokes.webp": save(STROKES, lossless=True, exact=True),
}
RULES = {"zero_one": "the ones are", "palette_of_ones": "the ones are", "float": "white is", "erased": "erased to transparency",
         "strokes": "painted on a transparent layer", "soft_strokes": "painted on a transparent layer"}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_mask_gives_the_hole_that_was_meant(name: str, tmp_path: Path) -> None:
    READ[name](tmp_path / name)
    mask = read_mask(tmp_path / name)
    assert np.array_equal(mask.missing, HOLE)
    assert mask.coverage == HOLE.mean()
    assert mask.doubt is None
    stem = name.partition(".")[0].removesuffix("_16").removesuffix("_black_under")
    assert RULES.get(stem, "white is missing") in mask.rule


CHOSEN = {
    "white": ("white", save(Image.fromarray(WHITE)), HOLE, "white is missing"),
    "white below opacity": (
        "white", save(layer(np.where(HOLE[..., None], 255, 0), 255 - WHITE)), HOLE, "white is missing",
    ),
    "black": ("black", save(Image.fromarray(255 - WHITE)), HOLE, "black is missing"),
    "erased": ("alpha", save(layer(scene(), 255 - WHITE)), HOLE, "what is transparent is missing"),
    "strokes": ("alpha", save(STROKES), ~HOLE, "what is transparent is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_missing_can_be_said(name: str, tmp_path: Path) -> None:
    rule, write, missing, told = CHOSEN[name]
    write(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", hole_rule(rule))
    assert np.array_equal(mask.missing, missing)
    assert mask.rule == told


def test_what_is_said_to_be_missing_must_be_there(tmp_path: Path) -> None:
    save(Image.fromarray(WHITE * 0 + 255))(tmp_path / "m.png")
    with pytest.raises(MaskError, match="hole=alpha: .* has no transparent pixel: set hole=white or hole=black"):
        read_mask(tmp_path / "m.png", "alpha")
    with pytest.raises(MaskError, match="has no hole: hole=black, and nothing of it is"):
        read_mask(tmp_path / "m.png", "black")
    with pytest.raises(MaskError, match="hole=blak must be one of auto, white, black, alpha"):
        hole_rule("blak")


REFUSED = {
    "black": (save(Image.fromarray(WHITE * 0)), "has no hole: .* largest value is 0 of 255"),
    "faint": (save(Image.fromarray(HOLE.astype(np.uint8) * 100)), "has no hole: .* largest value is 100 of 255"),
    "faint_16": (save(Image.fromarray(HOLE.astype(np.uint16) * 300)), "has no hole: .* largest value is 300 of 65535"),
    "class_map": (save(palette(0, 0, 0, 128, 0, 0)), r"has colours, such as \(128, 0, 0\): a mask is white"),
    "photo": (save(Image.fromarray(scene())), "has colours, such as"),
    "black_strokes": (save(layer((0, 0, 0), WHITE)), "dark or coloured shape on a transparent layer"),
    "red_strokes": (save(layer((255, 0, 0), WHITE)), "dark or coloured shape on a transparent layer"),
    "three_ways": (
        save(layer(np.where(HOLE[..., None], 255, 0), np.where(np.arange(SIZE) < 12, 255, 0) + 0 * WHITE)),
        "black, white and transparent",
    ),
    "invisible": (save(layer((255, 255, 255), WHITE // 4)), "shows nothing: its opacity is 63 of 255"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_that_may_mean_two_things_or_nothing_is_one_sentence(name: str, tmp_path: Path) -> None:
    write, message = REFUSED[name]
    write(tmp_path / "m.png")
    with pytest.raises(MaskError, match=message) as caught:
        read_mask(tmp_path / "m.png")
    assert str(caught.value).startswith(f"the mask {tmp_path / 'm.png'} ")
    assert "\n" not in str(caught.value)


def test_a_mask_that_looks_like_a_mistake_is_doubted(tmp_path: Path) -> None:
    def doubt(values: np.ndarray) -> str | None:
        Image.fromarray(values).save(tmp_path / "m.png")
        return read_mask(tmp_path / "m.png").doubt

    assert "swapped" in doubt(255 - WHITE)
    assert "whole image" in doubt(WHITE * 0 + 255)
    assert "between black and white" in doubt(np.asarray(Image.fromarray(scene()).convert("L")))


def test_masks_go_by_name_and_else_by_stem() -> None:
    def match(images: list[str], masks: list[str]) -> dict[str, str]:
        found, _ = match_masks([Path(name) for name in images], [Path(name) for name in masks])
        return {image.as_posix(): mask.as_posix() for image, mask in found.items()}

    assert match(["a.jpg", "sub/a.png"], ["a.png", "sub/a.gif", "b.png"]) == {
        "a.jpg": "a.png",
        "sub/a.png": "sub/a.gif",
    }
    assert match(["a.jpg", "a.png"], ["a.jpg", "a.png"]) == {"a.jpg": "a.jpg", "a.png": "a.png"}
    assert match(["a.png"], ["a.png", "a.gif"]) == {"a.png": "a.png"}
    assert match(["v1.2.jpg"], ["v1.2.png", "v1.3.png"]) == {"v1.2.jpg": "v1.2.png"}
    for images, masks, message in (
        (["a.jpg"], ["a.gif", "a.png"], r"a\.jpg has several masks \(a\.gif, a\.png\)"),
        (["a.jpg", "a.png"], ["a.png"], r"a\.jpg has no mask of its own name, and a\.png is that of a\.png"),
        (["a.jpg", "b.jpg"], ["c.png"], r"has no mask named a\.jpg, also"),
        (["sub/a.jpg"], ["a.png"], "has no mask named sub/a.jpg"),
    ):
        found, reasons = match_masks([Path(name) for name in images], [Path(name) for name in masks])
        assert found.keys() | reasons.keys() == {Path(name) for name in images}
        assert re.search(message, reasons[Path(images[0])])
