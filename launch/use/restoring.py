"""Restores a folder of images with a trained module: the files are read, restored and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from files.images import DECODING_ERRORS, NOTES, Picture, named, printable, read_picture, reason, write_picture
from files.pixels import fill, from_levels, to_tensor, write_image
from generative.degradations import Degradation
from generative.randomness import IndexRandomness
from generative.types import Batch
from launch.errors import UserError
from launch.use.folders import Job, check_masks, open_mask, say_all
from launch.use.messages import SOFTWARE, say, told_when_stopped
from lightning_modules import GenerativeModule

READING_ERRORS = (*DECODING_ERRORS, MemoryError)


def at_size(picture: Picture, size: int, channels: int) -> Tensor:
    """Resize a picture to what the network takes.

    Args:
        size: Height and width in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        (C, size, size) image in [-1, 1].
    """
    image = picture.shown(channels)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return from_levels(to_tensor(image))


def hole_at_size(missing_HW: Tensor, size: int) -> Tensor:
    """Resize a hole to what the network takes.

    Args:
        missing_HW: (H, W) bool.
        size: Height and width in pixels.

    Returns:
        (1, size, size) bool, True where any pixel that goes into this one is missing.
    """
    return F.adaptive_max_pool2d(missing_HW[None].float(), (size, size)) > 0


@contextmanager
def within_memory(batch_size: int) -> Iterator[None]:
    """Turn what a too large batch raises into one sentence.

    Args:
        batch_size: Images at a time.

    Raises:
        UserError: Memory did not hold the batch.
    """
    try:
        yield
    except Exception as error:  # PyTorch raises a plain RuntimeError for the memory of the CPU
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise UserError(
                f"batch_size={batch_size} images at a time do not fit into memory: set a smaller one."
            ) from error
        raise


@dataclass
class Progress:
    """What became of the files so far.

    Attributes:
        sizes: How many images had which width and height.
        notes: The files that each of ``NOTES`` is true of.
        reduced: Files whose values are finer than those that are kept.
        left_out: Files that could not be read, and why.
        written: The results.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    notes: dict[str, list[Path]] = field(default_factory=lambda: {note: [] for note in NOTES})
    reduced: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    def count(self, file: Path, picture: Picture) -> None:
        """Count an image that was read.

        Args:
            file: Its name.
        """
        self.sizes[picture.size] += 1
        for note, holds in zip(NOTES, picture.notes, strict=True):
            self.notes[note] += [file] * holds
        self.reduced += [file] * picture.reduced


def restore_folder(restorer: Restorer, job: Job, batch_size: int) -> bool:
    """Restore every image of a folder.

    Args:
        restorer: What restores a batch.
        batch_size: Images at a time.

    Returns:
        Whether a result was written of every picture.

    Raises:
        UserError: A mask cannot be used, or no image can be read.
    """
    check_masks(job)
    progress, files = Progress(), job.files
    with told_when_stopped(progress.written, len(files), job.target):
        for begin in track(range(0, len(files), batch_size), description="restoring", console=Console(stderr=True)):
            chunk = list(enumerate(files[begin : begin + batch_size], start=begin))
            with within_memory(batch_size):
                _restore_chunk(restorer, job, chunk, progress)
    _report(progress, restorer, job)
    if not progress.written:
        raise UserError("none of the input files could be read as an image.")
    return not progress.left_out and not job.unread


def _restore_chunk(restorer: Restorer, job: Job, chunk: list[tuple[int, Path]], progress: Progress) -> None:
    indices, images, holes, files = [], [], [], []
    for index, file in chunk:
        try:
            picture = read_picture(job.source / file)
        except READING_ERRORS as error:
            progress.left_out[file] = reason(error)
            continue
        progress.count(file, picture)
        images.append(at_size(picture, restorer.image_size, restorer.channels))
        if job.masks is not None:
            holes.append(hole_at_size(torch.from_numpy(open_mask(job.masks[file]).missing), restorer.image_size))
        indices.append(index)
        files.append(file)
    if not files:
        return
    restored = restorer.restore(torch.tensor(indices), torch.stack(images), torch.stack(holes) if holes else None)
    for file, image in zip(files, restored, strict=True):
        path = job.target / job.results[file]
        if job.masks is None or not restorer.puts_back_known:
            write_image(image, path, job.overwrite, SOFTWARE)
        else:  # read again: a batch of large photographs would not fit into memory
            picture, mask = read_picture(job.source / file), open_mask(job.masks[file])
            missing = restorer.replaced(torch.from_numpy(mask.missing)).numpy()
            write_picture(fill(picture, missing, image), path, job.overwrite)
        progress.written.append(path)


class Restorer:
    """Runs a trained module on images from files.

    Args:
        module: Trained module.
        degradation: Applied to the images first, or None.
        image_size: Height and width that the network was trained at.
        channels: Channels that it was trained with.
        result: Name of the output to write; None for the module's first.
        device: Where the module is.

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
    ) -> None:
        self.module = module
        self.degradation = degradation
        self.image_size = image_size
        self.channels = channels
        self.device = device
        self.result = next(iter(module.outputs)) if result is None else result
        if self.result not in module.outputs:
            raise UserError(f"result={result} is no output of this run: choose one of {', '.join(module.outputs)}.")

    @property
    def puts_back_known(self) -> bool:
        """Whether the known pixels of a file are put back into its result."""
        return self.module.outputs[self.result].puts_back_known

    @torch.inference_mode()
    def restore(self, index_B: Tensor, image_BCHW: Tensor, hole_B1HW: Tensor | None) -> Tensor:
        """Restore a batch.

        Args:
            index_B: (B,) int64 numbers of the images; a restoration depends on its number, not on its batch.
            image_BCHW: (B, C, S, S) images in [-1, 1].
            hole_B1HW: (B, 1, S, S) bool, True where pixels are missing; or None where there are no masks.

        Returns:
            (B, C, S, S) images.
        """
        batch = self._batch(image_BCHW.to(self.device), index_B, hole_B1HW)
        return self.module.images_of(batch, self.module.evaluation_randomness(batch, "generate"))[self.result]

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
        reach = [2 * round(feather * side / self.image_size) + 1 for side in missing_HW.shape]
        padding = [side // 2 for side in reach]
        return F.max_pool2d(missing_HW[None].float(), reach, stride=1, padding=padding)[0] > 0

    def _batch(self, image: Tensor, index: Tensor, hole: Tensor | None) -> Batch:
        if self.degradation is not None:
            randomness = IndexRandomness.for_images(
                self.module.evaluation_seed, "degradation/generate", index, self.device
            )
            degraded = self.degradation(image, randomness)
            return Batch(image, index, degraded=degraded.image, validity=degraded.validity)
        validity = torch.zeros_like(image[:, :1])  # nothing is known exactly of a degraded photograph
        if hole is not None:
            validity = (~hole.to(self.device)).float()
            image = image * validity  # missing pixels are mid-grey, as in training
        return Batch(image, index, degraded=image, validity=validity)


def _report(progress: Progress, restorer: Restorer, job: Job) -> None:
    size = restorer.image_size
    keeps = job.masks is not None and restorer.puts_back_known
    for note, files in progress.notes.items():
        if files:
            say(f"{len(files)} images {note} ({named(files)})")
    other = {own: count for own, count in progress.sizes.items() if own != (size, size)}
    if other:
        (width, height), _ = max(other.items(), key=lambda item: item[1])
        own_size = "; the results have the images' own size" if keeps else ""
        say(
            f"{sum(other.values())} images were resized to the training size {size}x{size} (most were {width}x{height})"
            f"{own_size}"
        )
    if keeps and progress.reduced:
        say(
            f"{len(progress.reduced)} images have values finer than 8 bits a colour or 16 bits of grey; their known pixels are "
            f"kept in these ({named(progress.reduced)})"
        )
    say_all([f"{printable(file)} is left out: {why}" for file, why in progress.left_out.items()])
    if job.unread:
        say(f"{len(job.unread)} pictures are of formats that are not read ({named(job.unread)})")
    say(f"{len(progress.written)} images written to {job.target}")
