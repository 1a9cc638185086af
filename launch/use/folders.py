"""Pictures on the command line, a folder, a file or a pattern: what is read, where results go, what is never overwritten."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from files.images import DECODING_ERRORS, SUFFIXES, reason, upright_size
from files.listing import Listing, list_images
from files.masks import HoleRule, Mask, MaskError, match_masks, read_mask
from files.words import count, named, printable
from launch.errors import UserError, as_user_error
from launch.use.messages import say

# Formats that hold any picture of 8 bits, grey or RGB; a result keeps the suffix of its input in these.
RESULT_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"})
NUM_LINES = 10  # files that get a line of their own


@dataclass(frozen=True)
class Job:
    """The files of one call, checked before the first of them is restored.

    Attributes:
        source: Folder of the images.
        target: Folder of the results.
        files: The images, relative to ``source``.
        results: Name of the result of each image, relative to ``target``.
        masks: Path of the mask of each image, or None where no masks are given.
        left_out: Images whose masks cannot be used, and why.
        unread: Pictures in ``source`` of formats that are not read.
        closed: Folders in ``source`` that cannot be opened, and why.
        overwrite: Whether files in ``target`` may be replaced.
        hole: What marks the missing pixels in the masks.
    """

    source: Path
    target: Path
    files: list[Path]
    results: dict[Path, Path]
    masks: dict[Path, Path] | None
    left_out: dict[Path, str]
    unread: list[Path]
    overwrite: bool
    hole: HoleRule = "auto"
    closed: dict[Path, str] = field(default_factory=dict)


def plan(
    source: Path, target: Path, masks: Path | None, lossless: bool, overwrite: bool, hole: HoleRule = "auto"
) -> Job:
    """Find the images, their masks and the names of their results; the masks are read, and it is said how.

    Args:
        source: Folder of the images, whatever lies within it in ``target`` or ``masks`` left out; one file; or a pattern such
            as ``photos/*.jpg``.
        target: Folder of the results; of a single image also the file of its result.
        masks: Folder of the masks, one file for one image, a pattern, or None.
        lossless: Whether all results are PNG files; else an image keeps its format where that holds any picture.
        overwrite: Whether files in ``target`` may be replaced.
        hole: What marks the missing pixels in the masks.

    Returns:
        What is to be done.

    Raises:
        UserError: A folder is missing, no image has a mask that can be used, or a file would be overwritten.
    """
    _check_folders(source, target, masks)
    folder, listing = found_pictures("input", source, [target, *_places("masks", masks)])
    if not listing.images:
        raise UserError(f"input={source} holds no image file ({', '.join(SUFFIXES)}).")
    found, left_out = None, dict[Path, str]()
    if masks is not None:
        found, left_out = _masks_of(listing.images, masks, [target, *(folder / file for file in listing.images)])
    results = result_names(listing.images, lossless)
    if target.suffix.lower() in SUFFIXES and not target.is_dir():
        results = {file: _named_result(listing.images, target, lossless) for file in listing.images}
        target = target.parent
    _check_results(
        target, list(results.values()), [*(folder / file for file in results), *(found or {}).values()], overwrite
    )
    left_out |= _check_masks(folder, found or {}, hole)
    if len(left_out) == len(listing.images):
        more = " (no other image has a mask that can be used)" if len(left_out) > 1 else ""
        raise UserError(f"{left_out[listing.images[0]]}{more}.")
    return Job(
        folder, target, listing.images, results, found, left_out, listing.unread, overwrite, hole, listing.closed
    )


def found_pictures(key: str, source: Path, leave_out: Sequence[Path] = ()) -> tuple[Path, Listing]:
    """Find pictures.

    Args:
        key: What the command line calls them.
        source: A folder, a file, or a pattern.
        leave_out: Folders that are passed over.

    Returns:
        The folder that their names are relative to, and the pictures.

    Raises:
        UserError: There is no such folder or file.
    """
    if not source.exists() and not glob.has_magic(str(source)):
        raise UserError(f"{key}={source}: there is no such folder or file.")
    if source.is_dir():
        with as_user_error():
            return source, list_images(source, leave_out)
    if source.is_file():
        return source.parent, Listing([Path(source.name)], [])
    parts = source.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])
    with as_user_error():
        listing = list_images(folder, leave_out, parts[fixed:])
    if not (listing.images or listing.unread):
        raise UserError(f"{key}={source}: no picture has such a name.")
    return folder, listing


def _places(key: str, source: Path | None) -> list[Path]:
    """The files of a pattern; a folder or file itself."""
    if source is None or source.exists():
        return [] if source is None else [source]
    folder, listing = found_pictures(key, source)
    return [folder / file for file in listing.images]


def _masks_of(images: list[Path], masks: Path, leave_out: Sequence[Path]) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Find the mask of each image, and why others have none."""
    if masks.is_file() and len(images) == 1:
        return {images[0]: masks}, {}
    folder, listing = found_pictures("masks", masks, leave_out)
    found, reasons = match_masks(images, listing.images)
    if idle := sorted(set(listing.images) - set(found.values())):
        say(f"{count(len(idle), 'mask')} without an image ({named(idle)})")
    return {file: folder / mask for file, mask in found.items()}, reasons


def _named_result(images: list[Path], target: Path, lossless: bool) -> Path:
    if len(images) > 1:
        raise UserError(f"output={target} is one file, and input= are {len(images)} images: give a folder.")
    kept = {".png"} if lossless else RESULT_SUFFIXES
    if target.suffix.lower() not in kept:
        reason = "does not hold every picture" + (" to the last bit" if lossless else "")
        raise UserError(f"output={target}: a {target.suffix} file {reason}: name it .png.")
    return Path(target.name)


def _check_folders(source: Path, target: Path, masks: Path | None) -> None:
    for key, place in (("input", source), ("masks", masks)):
        if place is not None and not place.exists() and not glob.has_magic(str(place)):
            raise UserError(f"{key}={place}: there is no such folder or file.")
    if target.is_file() and target.suffix.lower() not in SUFFIXES:
        raise UserError(f"output={target} is no folder: choose another name.")
    places = {"input": os.path.realpath(source), "output": os.path.realpath(target)}
    if masks is not None:
        places["masks"] = os.path.realpath(masks)
    if places["input"] == places["output"]:
        raise UserError("output= must be another folder than input=: no input is overwritten.")
    if len(set(places.values())) < len(places):
        raise UserError("masks= must be another folder than input= and output=.")


def result_names(files: Sequence[Path], lossless: bool) -> dict[Path, Path]:
    """Name the results after their images, no two alike: ``a.jpg`` may become ``a.png``, or ``a.jpg.png`` next to ``a.png``.

    Args:
        files: The images, relative to their folder.
        lossless: Whether all results are PNG files.

    Returns:
        Names relative to the folder of the results.

    Raises:
        UserError: Names of that kind are taken, too.
    """
    kept = {".png"} if lossless else RESULT_SUFFIXES
    names = {file: file for file in files if file.suffix.lower() in kept}
    taken = {str(name).casefold() for name in names.values()}
    for file in files:
        if file in names:
            continue
        choices = (file.with_suffix(".png"), file.with_name(f"{file.name}.png"))
        free = [name for name in choices if str(name).casefold() not in taken]
        if not free:
            raise UserError(
                f"the result of {printable(file)} would be {printable(choices[1])}, which is another image's."
            )
        names[file] = free[0]
        taken.add(str(free[0]).casefold())
    return names


def _check_results(target: Path, results: Sequence[Path], sources: Sequence[Path], overwrite: bool) -> None:
    there = [result for result in results if os.path.lexists(target / result)]
    places = {os.path.realpath(file) for file in sources}
    if own := [result for result in there if os.path.realpath(target / result) in places]:
        raise UserError(f"output={target}: {named(own)} is an input or a mask of this call: choose another folder.")
    if folders := [result for result in there if (target / result).is_dir()]:
        raise UserError(f"output={target}: {named(folders)} is a folder: choose another output=.")
    if there and not overwrite:
        raise UserError(
            f"output={target} holds {count(len(there), 'file')} that would be overwritten "
            f"({named(there)}): choose another folder, or "
            "replace them with overwrite=true."
        )


def _check_masks(source: Path, masks: dict[Path, Path], hole: HoleRule) -> dict[Path, str]:
    """Read all masks, and say how they are read and how much is missing.

    Returns:
        Images whose mask cannot be used, and why: it cannot be read, can be read in two ways, has another size, or no hole.
    """
    covered: dict[str, list[float]] = defaultdict(list)
    doubts, reasons = list[str](), dict[Path, str]()
    for file, path in masks.items():
        try:
            mask = open_mask(path, hole)
        except MaskError as error:
            reasons[file] = str(error).rstrip(".")
            continue
        height, width = mask.missing.shape
        try:
            own = upright_size(source / file)
        except DECODING_ERRORS:
            own = width, height  # reported at the end, with what else was unreadable
        if own != (width, height):
            reasons[file] = (
                f"the mask {printable(path)} has {width}x{height} pixels and its image {own[0]}x{own[1]}: give a mask of the "
                "image's own size"
            )
            continue
        covered[mask.rule].append(mask.coverage)
        if mask.doubt:
            doubts.append(f"the mask {printable(path)} {mask.doubt}")
    for rule, shares in covered.items():
        spread = f"{shares[0]:.1%} of the image" if len(shares) == 1 else (
            f"{min(shares):.1%} to {max(shares):.1%} of the images, {sum(shares) / len(shares):.1%} on average"
        )  # fmt: skip
        say(f"{len(shares)} mask{'s' * (len(shares) > 1)}: {rule}, {spread}")
    say_all(doubts)
    return reasons


def open_mask(path: Path, hole: HoleRule) -> Mask:
    """Read a mask.

    Args:
        hole: What marks the missing pixels.

    Raises:
        MaskError: It cannot be used.
    """
    try:
        return read_mask(path, hole)
    except MaskError:
        raise
    except (*DECODING_ERRORS, MemoryError) as error:
        raise MaskError(f"the mask {printable(path)} cannot be read as an image: {reason(error)}") from error


def say_all(lines: Sequence[str]) -> None:
    """Print the first lines of many, and how many more there are."""
    for line in lines[:NUM_LINES]:
        say(line)
    if len(lines) > NUM_LINES:
        say(f"and {len(lines) - NUM_LINES} more")
