"""Restores a folder of images with a trained module: the files are read, restored and written under the same names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from generative.degradations import Degradation
from generative.randomness import IndexRandomness
from generative.types import Batch
from launch.errors import UserError, one_line
from launch.image_files import write_image
from lightning_modules import GenerativeModule

WHITE = 127  # a mask's pixel above this value is missing
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def find_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sub-folders included, in order of their names.

    Args:
        folder: Folder to search.

    Returns:
        Paths relative to the folder.

    Raises:
        UserError: The folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"input={folder}: there is no such folder.")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"input={folder} holds no image file ({', '.join(sorted(SUFFIXES))}).")
    return files


def read_image(path: Path, size: int, channels: int) -> tuple[Tensor, tuple[int, int]]:
    """Read an image at the network's size.

    Args:
        path: Image file.
        size: Height and width in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        (C, size, size) image in [-1, 1], and the file's own width and height.
    """
    with Image.open(path) as image:
        own = image.size
        converted = image.convert("L" if channels == 1 else "RGB")
        if own != (size, size):
            converted = converted.resize((size, size), Image.Resampling.LANCZOS)
    return pil_to_tensor(converted).float() / 127.5 - 1, own


def read_hole(path: Path, size: int) -> Tensor:
    """Read a mask at the network's size.

    Args:
        path: Mask file, white where pixels are missing.
        size: Height and width in pixels.

    Returns:
        (1, size, size) bool, True where any pixel that goes into this one is missing.
    """
    with Image.open(path) as image:
        hole = pil_to_tensor(image.convert("L")) > WHITE
    return F.adaptive_max_pool2d(hole.float(), (size, size)) > 0


def check_masks(source: Path, masks: Path, files: list[Path]) -> None:
    """Check all masks before anything is restored.

    Args:
        source: Folder of the images.
        masks: Folder of the masks.
        files: The images' names, which are the masks'.

    Raises:
        UserError: A mask is missing, cannot be read, has another size than its image, or has no hole.
    """
    absent = [file for file in files if not (masks / file).is_file()]
    if absent:
        raise UserError(f"masks={masks} has no mask named {absent[0]} ({len(absent)} missing in all).")
    for file in files:
        try:
            with Image.open(masks / file) as mask:
                size, has_hole = mask.size, bool((pil_to_tensor(mask.convert("L")) > WHITE).any())
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"the mask {masks / file} cannot be read as an image: {one_line(error)}.") from error
        if not has_hole:
            raise UserError(f"the mask {masks / file} has no hole: white marks the missing pixels.")
        try:
            with Image.open(source / file) as image:
                own = image.size
        except (OSError, UnidentifiedImageError):
            continue  # reported at the end, with what else was unreadable
        if own != size:
            raise UserError(
                f"the mask {masks / file} has {size[0]}x{size[1]} pixels and its image {own[0]}x{own[1]}: give a mask of "
                "the image's own size."
            )


def restore_folder(restorer: Restorer, source: Path, masks: Path | None, target: Path, batch_size: int) -> None:
    """Restore every image of a folder.

    Args:
        restorer: What restores a batch.
        source: Folder of the images.
        masks: Folder of masks of the same file names and sizes, white where pixels are missing, or None.
        target: Folder to write to.
        batch_size: Images at a time.

    Raises:
        UserError: A folder, file or mask cannot be used.
    """
    if source.resolve() == target.resolve():
        raise UserError("output= must be another folder than input=: nothing is overwritten.")
    files = find_images(source)
    if masks is not None:
        check_masks(source, masks, files)
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable: list[Path] = []
    console = Console(stderr=True)
    for begin in track(range(0, len(files), batch_size), description="restoring", console=console):
        readable: list[tuple[int, Path, Tensor]] = []
        for index, file in enumerate(files[begin : begin + batch_size], start=begin):
            try:
                image, size = read_image(source / file, restorer.image_size, restorer.channels)
            except (OSError, UnidentifiedImageError):
                unreadable.append(file)
                continue
            sizes[size] += 1
            readable.append((index, file, image))
        if readable:
            restorer.restore(readable, masks, target)
    _report(console, sizes, unreadable, restorer.image_size, target)


class Restorer:
    """Runs a trained module on images from files.

    Args:
        module: Trained module with ``sample``.
        degradation: Applied to the images first, or None.
        image_size: Height and width that the network was trained at.
        channels: Channels that it was trained with.
        result: Name of the output to write.
        device: Where the module is.
    """

    def __init__(
        self,
        module: GenerativeModule,
        degradation: Degradation | None,
        image_size: int,
        channels: int,
        result: str,
        device: torch.device,
    ) -> None:
        self.module = module
        self.degradation = degradation
        self.image_size = image_size
        self.channels = channels
        self.result = result
        self.device = device

    @torch.inference_mode()
    def restore(self, images: list[tuple[int, Path, Tensor]], masks: Path | None, target: Path) -> None:
        """Restore a batch and write it.

        Args:
            images: Index, file name and (C, H, W) image of each.
            masks: Folder of the masks, or None.
            target: Folder to write to.

        Raises:
            UserError: The module has no output of the wanted name.
        """
        indices, files, tensors = zip(*images, strict=True)
        batch = self._batch(torch.stack(tensors).to(self.device), torch.tensor(indices), files, masks)
        outputs = self.module.sample(batch, self.module.evaluation_randomness(batch, "generate"))
        if self.result not in outputs:
            raise UserError(f"result={self.result} is no output of this run: choose one of {', '.join(outputs)}.")
        for file, image in zip(files, outputs[self.result], strict=True):
            write_image(image, target / file)

    def _batch(self, image: Tensor, index: Tensor, files: tuple[Path, ...], masks: Path | None) -> Batch:
        if self.degradation is not None:
            randomness = IndexRandomness.for_images(
                self.module.evaluation_seed, "degradation/generate", index, self.device
            )
            degraded = self.degradation(image, randomness)
            return Batch(image, index, degraded=degraded.image, validity=degraded.validity)
        validity = torch.zeros_like(image[:, :1])  # nothing is known exactly of a degraded photograph
        if masks is not None:
            hole = torch.stack([read_hole(masks / f, self.image_size) for f in files]).to(self.device)
            validity = (~hole).float()
            image = image * validity  # missing pixels are mid-grey, as in training
        return Batch(image, index, degraded=image, validity=validity)


def _report(
    console: Console, sizes: Counter[tuple[int, int]], unreadable: list[Path], image_size: int, target: Path
) -> None:
    other = {size: count for size, count in sizes.items() if size != (image_size, image_size)}
    if other:
        (width, height), _ = max(other.items(), key=lambda item: item[1])
        console.print(
            f"{sum(other.values())} images were resized to the training size {image_size}x{image_size} "
            f"(most were {width}x{height})."
        )
    if unreadable:
        console.print(f"{len(unreadable)} files could not be read: {', '.join(map(str, unreadable[:3]))}")
    if not sizes:
        raise UserError("none of the input files could be read as an image.")
    console.print(f"{sum(sizes.values())} images written to {target}", soft_wrap=True)
