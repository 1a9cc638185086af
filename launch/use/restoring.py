"""Restores a folder of images with a trained module: the files are read, restored and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.progress import Progress as Bar
from torch import Tensor

from files.images import DECODING_ERRORS, NOTES, Picture, read_picture, reason, write_picture
from files.pixels import drawn, fill
from files.words import count, named, printable
from generative.types import State
from launch.errors import UserError
from launch.use.folders import Job, open_mask, say_all
from launch.use.memory import picture_in_memory, too_large, within_memory
from launch.use.messages import SOFTWARE, say, told_when_stopped
from launch.use.restorer import Request, Restorer

READING_ERRORS = (*DECODING_ERRORS, MemoryError)


@dataclass
class Progress:
    """What became of the files so far.

    Attributes:
        sizes: How many images had which width and height.
        notes: The files that each of ``NOTES`` is true of.
        reduced: Files whose values are finer than those that are kept.
        left_out: Files of which there is no result, and why.
        flattened: Results whose formats do not hold all of their pictures.
        coloured: How many have colours that a grey network saw one by one.
        written: The results.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    notes: dict[str, list[Path]] = field(default_factory=lambda: {note: [] for note in NOTES})
    reduced: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    flattened: list[Path] = field(default_factory=list)
    coloured: int = 0
    written: list[Path] = field(default_factory=list)

    def count(self, file: Path, picture: Picture, channels: int) -> None:
        """Count an image that was read.

        Args:
            file: Its name.
            channels: Channels that the network sees.
        """
        self.coloured += channels == 1 and picture.pixels.ndim == 3
        self.sizes[picture.size] += 1
        for note, holds in zip(NOTES, picture.notes, strict=True):
            self.notes[note] += [file] * holds
        self.reduced += [file] * picture.reduced


def restore_folder(restorer: Restorer, job: Job) -> bool:
    """Restore every image of a folder.

    Args:
        restorer: What restores a picture.

    Returns:
        Whether a result was written of every picture.

    Raises:
        UserError: Of no image there is a result.
    """
    progress, waiting = Progress(left_out=dict(job.left_out)), list[tuple[Path, Request]]()
    with told_when_stopped(progress.written, len(job.files), job.target), _bar(restorer, len(job.files)) as done:
        for number, file in enumerate(job.files):
            if file in job.left_out:
                continue
            try:
                picture = read_picture(job.source / file)
                with picture_in_memory():
                    request = restorer.request(number, picture, _hole(job, file))
            except READING_ERRORS as error:
                progress.left_out[file] = reason(error)
                done(number + 1)
                continue
            progress.count(file, picture, restorer.channels)
            if restorer.is_whole(request):
                waiting.append((file, request))
                if len(waiting) == restorer.batch_size:
                    _write_waiting(restorer, job, waiting, progress)
            else:
                made = _in_tiles(restorer, file, request, progress)
                del picture, request  # of a large one each takes memory
                if made is not None:
                    _write(restorer, job, file, made, progress)
            done(number + 1)
        _write_waiting(restorer, job, waiting, progress)
    _report(progress, restorer, job)
    if not progress.written:
        raise UserError("none of the input files could be restored.")
    return not (progress.left_out or job.unread or job.closed)


def ways_of(restorers: Mapping[str, Restorer], job: Job) -> tuple[Path, dict[str, list[State]]]:
    """Go the way to the first picture of a folder that can be read, with several restorers.

    Returns:
        The picture's file, and the states.

    Raises:
        UserError: It cannot be shown: the picture goes through the network in tiles, or it is restored in one step.
    """
    for number, file in enumerate(job.files):
        if file in job.left_out:
            continue
        try:
            picture, hole = read_picture(job.source / file), _hole(job, file)
            requests = {name: restorer.request(number, picture, hole) for name, restorer in restorers.items()}
            break
        except READING_ERRORS:
            continue  # told when it is to be restored
    else:
        raise UserError("none of the input files could be restored.")
    ways = {}
    for name, restorer in restorers.items():
        if not restorer.is_whole(requests[name]):
            raise UserError(
                f"steps=true shows what the network sees at once, and {printable(file)} takes tiles: add tile=none."
            )
        with within_memory(1):
            ways[name] = restorer.states(requests[name])
    if max(map(len, ways.values())) < 2:
        raise UserError("steps=true: this run restores in one step: set sampler.num_steps, or leave it out.")
    return file, ways


@contextmanager
def _bar(restorer: Restorer, num_files: int) -> Iterator[Callable[[int], None]]:
    """Show how many files are done, and of a picture of many tiles, how many of these."""
    columns = (*Bar.get_default_columns(), MofNCompleteColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("restoring", total=num_files)
        calls = restorer.module.outputs[restorer.result].num_network_calls or 0
        restorer.on_tiles = lambda done, tiles: bar.advance(task, done / (tiles * max(calls, 1)))
        yield lambda completed: bar.update(task, completed=completed)


def _hole(job: Job, file: Path) -> Tensor | None:
    return None if job.masks is None else torch.from_numpy(open_mask(job.masks[file], job.hole).missing)


def _write_waiting(restorer: Restorer, job: Job, waiting: list[tuple[Path, Request]], progress: Progress) -> None:
    if not waiting:
        return
    with within_memory(restorer.batch_size):
        images = restorer.restore([request for _, request in waiting])
    for (file, _), made in zip(waiting, images, strict=True):
        _write(restorer, job, file, made, progress)
    waiting.clear()


def _in_tiles(restorer: Restorer, file: Path, request: Request, progress: Progress) -> Tensor | None:
    try:
        with picture_in_memory():
            return restorer.restore_in_tiles(request)
    except MemoryError:
        progress.left_out[file] = too_large(restorer.tiling.at_once if restorer.tiling else 1)
        return None


def _write(restorer: Restorer, job: Job, file: Path, image_RCHW: Tensor, progress: Progress) -> None:
    path = job.target / job.results[file]
    try:
        # Read again: a batch of large photographs would not fit into memory.
        picture, missing = read_picture(job.source / file), _hole(job, file)
        if missing is None or not restorer.puts_back_known:
            held = write_picture(drawn(picture, image_RCHW), path, job.overwrite, SOFTWARE)
        else:
            made = fill(picture, restorer.replaced(missing).numpy(), image_RCHW)
            held = write_picture(made, path, job.overwrite)
    except READING_ERRORS as error:
        progress.left_out[file] = reason(error)
        return
    progress.flattened += [] if held else [job.results[file]]
    progress.written.append(path)


def _report(progress: Progress, restorer: Restorer, job: Job) -> None:
    size = restorer.image_size
    for note, files in progress.notes.items():
        if files:
            say(f"{count(len(files), 'image')} {note} ({named(files)})")
    other = {own: times for own, times in progress.sizes.items() if own != (size, size)}
    if other:
        (width, height), _ = max(other.items(), key=lambda item: item[1])
        tile = restorer.tiling.size if restorer.tiling else size
        how = f"in tiles of {tile}x{tile} at most; tile=none resizes them to the training size, {size}x{size}"
        if restorer.tiling is None:
            how = f"at the training size {size}x{size} and resized to their own"
        number = sum(other.values())
        verb = "was" if number == 1 else "were"
        say(f"{count(number, 'image')} {verb} restored {how} (most have {width}x{height})")
    if progress.coloured:
        say(
            f"the network sees grey: of {count(progress.coloured, 'image')} in colour each channel was restored by itself"
        )
    if progress.reduced:
        say(
            f"the results have at most 8 bits a colour or 16 bits of grey, where {count(len(progress.reduced), 'image')} had "
            f"finer values ({named(progress.reduced)})"
        )
    if progress.flattened:
        say(
            f"{count(len(progress.flattened), 'result')} of formats that hold no transparency or no 16 bits "
            f"({named(progress.flattened)}): 8 bits over white; name the picture .png to keep all of it"
        )
    say_all([f"{printable(file)} is left out: {why}" for file, why in progress.left_out.items()])
    say_all([f"the folder {printable(folder)} is left out: {why}" for folder, why in job.closed.items()])
    if job.unread:
        say(f"{count(len(job.unread), 'picture')} of formats that are not read ({named(job.unread)})")
    say(f"{count(len(progress.written), 'image')} written to {job.target}")
