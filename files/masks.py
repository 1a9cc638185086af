"""Masks in image files: which pixels of a photograph are missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from files.images import DEEP, Picture, read_picture, to_8_bits
from files.words import named, printable

WHITE = 127  # of 255: what is lighter, or more opaque, is white, or visible
MOSTLY = 0.5  # share of an image above which a hole is probably the rest of one

_SAME = 16  # levels by which pixels of one colour may differ
_COLOURED = 32  # levels between the channels of a pixel that is not grey
_STRAY = 0.001  # share of pixels that may be coloured
_DARK, _LIGHT = 32, 223  # a mask has few pixels between these
_SOFT = 0.25  # share of pixels between them above which a file does not look like a mask


HoleRule = Literal["auto", "white", "black", "alpha"]


class MaskError(ValueError):
    """A mask cannot be used; the message names it and the remedy in one sentence."""


@dataclass(frozen=True)
class Mask:
    """Where pixels are missing, and how that was read from the file.

    Attributes:
        missing: (H, W) bool.
        rule: Which pixels of the file are the missing ones, in words.
        soft: Share of the file's pixels that are neither dark nor light.
    """

    missing: np.ndarray
    rule: str
    soft: float = 0.0

    @property
    def coverage(self) -> float:
        """Share of the pixels that are missing."""
        return float(self.missing.mean())

    @property
    def doubt(self) -> str | None:
        """What makes the mask look like a mistake, in words."""
        if self.coverage == 1:
            return "covers the whole image, of which nothing counts as known"
        if self.coverage > MOSTLY:
            return f"covers {self.coverage:.1%} of the image: are its black and white swapped? Then set hole=black"
        if self.soft > _SOFT:
            return f"has {self.soft:.0%} of its pixels between black and white: is it a mask?"
        return None


def hole_rule(name: str) -> HoleRule:
    """Return the rule of a name.

    Raises:
        MaskError: There is none.
    """
    for rule in get_args(HoleRule):
        if rule == name:
            return rule
    raise MaskError(f"hole={name} must be one of {', '.join(get_args(HoleRule))}.")


def read_mask(path: Path, hole: HoleRule = "auto") -> Mask:
    """Read a mask of any image format.

    By itself, white is missing and black is known. In a file whose largest value is 1 the ones are missing. In a file with
    transparent parts the opacity is the mask: where the rest shows a picture, the transparent parts were erased from it and
    are missing; where it is plain white, it was painted on an empty layer, and the painted parts are missing.

    Args:
        path: The file; a damaged one raises one of ``DECODING_ERRORS``.
        hole: What is missing: ``white``, ``black``, or with ``alpha`` what is transparent, whatever its colour; ``auto`` tells
            from the file.

    Returns:
        The mask, which has a hole.

    Raises:
        MaskError: The file can be read in two ways, in none, or nothing is missing.
    """
    return mask_of(read_picture(path), f"the mask {printable(path)}", hole)


def mask_of(picture: Picture, name: str, hole: HoleRule = "auto") -> Mask:
    """Read a mask of a picture; see ``read_mask``.

    Args:
        name: What messages call it.
    """
    if hole == "alpha":
        if picture.alpha is None:
            raise MaskError(f"hole=alpha: {name} has no transparent pixel: set hole=white or hole=black.")
        mask = Mask(picture.alpha <= WHITE, "what is transparent is missing")
    elif hole == "black":
        mask = _of_colours(picture, name)
        mask = Mask(~mask.missing, "black is missing", mask.soft)
    elif hole == "white" or picture.alpha is None:
        mask = _of_colours(picture, name)
    else:
        mask = _of_opacity(picture, picture.alpha, name)
    if not mask.missing.any():
        why = _why_none(picture) if hole in ("auto", "white") else f"hole={hole}, and nothing of it is"
        raise MaskError(f"{name} has no hole: {why}.")
    return mask


def match_masks(images: Sequence[Path], masks: Sequence[Path]) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Find the mask of each image: of the same name, or of the same name with another suffix.

    Args:
        images: Image files, relative to their folder.
        masks: Masks, relative to theirs.

    Returns:
        The mask of each image that has one, and why the others have none: no mask is theirs, or several may be.
    """
    by_stem: dict[Path, list[Path]] = defaultdict(list)
    for mask in masks:
        by_stem[mask.with_suffix("")].append(mask)
    own = set(masks) & set(images)
    matches, reasons = dict[Path, Path](), dict[Path, str]()
    for image in images:
        found = [image] if image in own else by_stem[image.with_suffix("")]
        if len(found) > 1:
            reasons[image] = f"{named([image])} has several masks ({named(found)}): leave one of them"
        elif found and found[0] != image and found[0] in own:
            reasons[image] = (
                f"{named([image])} has no mask of its own name, and {named(found)} is that of {named(found)}: give each a "
                "mask of its own name"
            )
        elif found:
            matches[image] = found[0]
        else:
            reasons[image] = f"masks= has no mask named {named([image])}, also not with another suffix"
    return matches, reasons


def _of_colours(picture: Picture, name: str) -> Mask:
    grey = picture.pixels if picture.pixels.ndim == 2 else _grey_of(picture.pixels, name)
    white = _white(grey)
    levels = to_8_bits(grey) if white == DEEP else np.minimum(grey * (255 // white), 255)
    soft = float(((levels >= _DARK) & (levels <= _LIGHT)).mean())
    rule = "the ones are missing" if white == 1 else "white is missing"
    return Mask(levels > WHITE, rule, soft)


def _of_opacity(picture: Picture, alpha: np.ndarray, name: str) -> Mask:
    visible = alpha > WHITE
    remedy = "save it without transparency, white where pixels are missing and black elsewhere"
    if not visible.any():
        raise MaskError(f"{name} shows nothing: its opacity is {alpha.max()} of 255 at most; {remedy}.")
    if visible.all():
        return _of_colours(picture, name)
    colours = to_8_bits(picture.pixels)[visible].reshape(int(visible.sum()), -1)
    lowest, highest = colours.min(axis=0), colours.max(axis=0)
    if (highest - lowest).max() <= _SAME:
        if lowest.min() > WHITE:
            return Mask(visible, "the white that is painted on a transparent layer is missing")
        raise MaskError(f"{name} is one dark or coloured shape on a transparent layer, which may mean both: {remedy}.")
    if ((colours <= _SAME) | (colours >= 255 - _SAME)).all() and (colours == colours[:, :1]).all():
        raise MaskError(f"{name} has black, white and transparent parts, which may mean both: {remedy}.")
    return Mask(~visible, "what was erased to transparency is missing")


def _grey_of(pixels: np.ndarray, name: str) -> np.ndarray:
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    if (spread > _COLOURED).mean() > _STRAY:
        colour = ", ".join(map(str, pixels[spread > _COLOURED][0]))
        raise MaskError(
            f"{name} has colours, such as ({colour}): a mask is white where pixels are missing and black elsewhere."
        )
    return pixels.max(axis=2)


def _white(grey: np.ndarray) -> int:
    """What counts as white: 1 where nothing is above it, and 255 also in files of 16 bits that hold 8."""
    highest = int(grey.max())
    if highest == 1:
        return 1
    return 255 if grey.dtype == np.uint8 or highest == 255 else DEEP


def _why_none(picture: Picture) -> str:
    white = 255 if picture.pixels.dtype == np.uint8 else DEEP
    return f"white marks the missing pixels, and its largest value is {picture.pixels.max()} of {white}"
