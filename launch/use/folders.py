"""Folders of pictures on the command line: what is read, where results go, and what is never overwritten."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from files.images import DECODING_ERRORS, SUFFIXES, named, printable, reason, upright_size
from files.listing import list_images
from files.masks import Mask, MaskError, match_masks, read_mask
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
        unread: Pictures in ``source`` of formats that are not read.
        overwrite: Whether files in ``target`` may be replaced.
    """

    source: Path
    target: Path
    files: list[Path]
    results: dict[Path, Path]
    masks: dict[Path, Path] | None
    unread: list[Path]
    overwrite: bool


def plan(source: Path, target: Path, masks: Path | None, lossless: bool, overwrite: bool) -> Job:
    """Find the images, their masks and the names of their results.

    Args:
        source: Folder of the images; what lies within it in ``target`` or ``masks`` is none of them.
        target: Folder of the results.
        masks: Folder of the masks, or None.
        lossless: Whether all results are PNG files; else an image keeps its format where that holds any picture.
        overwrite: Whether files in ``target`` may be replaced.

    Returns:
        What is to be done.

    Raises:
        UserError: A folder or mask is missing, or a file would be overwritten.
    """
    _check_folders(source, target, masks)
    with as_user_error():
        listing = list_images(source, [target] if masks is None else [target, masks])
        drawn = list_images(masks, [target, source]).images if masks is not None else []
    if not listing.images:
        raise UserError(f"input={source} holds no image file ({', '.join(SUFFIXES)}).")
    found = None
    if masks is not None:
        with as_user_error():
            found = match_masks(listing.images, drawn)
        if idle := sorted(set(drawn) - set(found.values())):
            say(f"{len(idle)} masks belong to no image ({named(idle)})")
        found = {file: masks / mask for file, mask in found.items()}
    results = result_names(listing.images, lossless)
    _check_results(
        target, list(results.values()), [*(source / file for file in results), *(found or {}).values()], overwrite
    )
    return Job(source, target, listing.images, results, found, listing.unread, overwrite)


def _check_folders(source: Path, target: Path, masks: Path | None) -> None:
    for key, folder in (("input", source), ("masks", masks)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{key}={folder}: there is no such folder{' (it is a file)' if folder.is_file() else ''}.")
    if target.exists() and not target.is_dir():
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
            f"output={target} holds {len(there)} files that would be overwritten ({named(there)}): choose another folder, or "
            "replace them with overwrite=true."
        )


def check_masks(job: Job) -> None:
    """Read all masks before anything is restored, and say how they are read and how much is missing.

    Args:
        job: A job with masks.

    Raises:
        UserError: A mask cannot be read, can be read in two ways, has another size than its image, or has no hole.
    """
    covered: dict[str, list[float]] = defaultdict(list)
    doubts: list[str] = []
    for file, path in (job.masks or {}).items():
        mask = open_mask(path)
        covered[mask.rule].append(mask.coverage)
        if mask.doubt:
            doubts.append(f"the mask {printable(path)} {mask.doubt}")
        try:
            own = upright_size(job.source / file)
        except DECODING_ERRORS:
            continue  # reported at the end, with what else was unreadable
        height, width = mask.missing.shape
        if own != (width, height):
            raise UserError(
                f"the mask {printable(path)} has {width}x{height} pixels and its image {own[0]}x{own[1]}: give a mask of the "
                "image's own size."
            )
    for rule, shares in covered.items():
        spread = f"{shares[0]:.1%} of the image" if len(shares) == 1 else (
            f"{min(shares):.1%} to {max(shares):.1%} of the images, {sum(shares) / len(shares):.1%} on average"
        )  # fmt: skip
        say(f"{len(shares)} mask{'s' * (len(shares) > 1)}: {rule}, {spread}")
    say_all(doubts)


def open_mask(path: Path) -> Mask:
    """Read a mask.

    Raises:
        UserError: It cannot be used.
    """
    try:
        return read_mask(path)
    except MaskError as error:
        raise UserError(str(error)) from error
    except (*DECODING_ERRORS, MemoryError) as error:
        raise UserError(f"the mask {printable(path)} cannot be read as an image: {reason(error)}.") from error


def say_all(lines: Sequence[str]) -> None:
    """Print the first lines of many, and how many more there are."""
    for line in lines[:NUM_LINES]:
        say(line)
    if len(lines) > NUM_LINES:
        say(f"and {len(lines) - NUM_LINES} more")
