"""Pictures on the command line, a folder, a file or a pattern: what is read, where results go, what is never overwritten."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from files.images import DECODING_ERRORS, SUFFIXES, UNREAD_SUFFIXES, named, printable, reason, upright_size
from files.listing import Listing, list_images
from files.masks import HoleRule, Mask, MaskError, match_masks, read_mask
from files.words import count
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
        hole: What marks the missing pixels in the masks.
    """

    source: Path
    target: Path
    files: list[Path]
    results: dict[Path, Path]
    masks: dict[Path, Path] | None
    unread: list[Path]
    overwrite: bool
    hole: HoleRule = "auto"


def plan(
    source: Path, target: Path, masks: Path | None, lossless: bool, overwrite: bool, hole: HoleRule = "auto"
) -> Job:
    """Find the images, their masks and the names of their results.

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
        UserError: A folder or mask is missing, or a file would be overwritten.
    """
    _check_folders(source, target, masks)
    folder, listing = found_pictures("input", source, [target] if masks is None else [target, masks])
    if not listing.images:
        raise UserError(f"input={source} holds no image file ({', '.join(SUFFIXES)}).")
    found = None if masks is None else _masks_of(listing.images, masks, [target, source])
    results = result_names(listing.images, lossless)
    if target.suffix.lower() in SUFFIXES and not target.is_dir():
        results = {file: _named_result(listing.images, target, lossless) for file in listing.images}
        target = target.parent
    _check_results(
        target, list(results.values()), [*(folder / file for file in results), *(found or {}).values()], overwrite
    )
    return Job(folder, target, listing.images, results, found, listing.unread, overwrite, hole)


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
    folder, apart = Path(*parts[:fixed]), [Path(os.path.realpath(path)) for path in leave_out]
    files = sorted(folder.glob(str(Path(*parts[fixed:]))))
    files = [
        file for file in files if file.is_file() and not any(map(Path(os.path.realpath(file)).is_relative_to, apart))
    ]
    if not files:
        raise UserError(f"{key}={source}: no file has such a name.")
    suffixes = {suffix: [file.relative_to(folder) for file in files if file.suffix.lower() in suffix]
                for suffix in (SUFFIXES, UNREAD_SUFFIXES)}  # fmt: skip
    return folder, Listing(suffixes[SUFFIXES], suffixes[UNREAD_SUFFIXES])


def _masks_of(images: list[Path], masks: Path, leave_out: Sequence[Path]) -> dict[Path, Path]:
    if masks.is_file() and len(images) == 1:
        return {images[0]: masks}
    folder, listing = found_pictures("masks", masks, leave_out)
    with as_user_error():
        found = match_masks(images, listing.images)
    if idle := sorted(set(listing.images) - set(found.values())):
        say(f"{count(len(idle), 'mask')} without an image ({named(idle)})")
    return {file: folder / mask for file, mask in found.items()}


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
        mask = open_mask(path, job.hole)
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


def open_mask(path: Path, hole: HoleRule) -> Mask:
    """Read a mask.

    Args:
        hole: What marks the missing pixels.

    Raises:
        UserError: It cannot be used.
    """
    try:
        return read_mask(path, hole)
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
