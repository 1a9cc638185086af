"""The embedded data set with 24 labels: scenes like those of i-CLEVR, drawn by ``raycaster`` on first use."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import track
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.embedded.combinations import MAX_OBJECTS, SHOWN, WHOLE, Group, Selection
from datamodules.embedded.raycaster import (
    CAMERA,
    CAMERA_DISTANCE,
    HALF_HEIGHTS,
    LAMPS,
    RADIUS,
    Scenes,
    project,
    render,
    shown,
)
from datamodules.labels import COLOURS, LABELS, NUM_LABELS, draw_label_sets, read_label_sets
from datamodules.splits import Split, Splits
from datamodules.store import ImageStore
from files.cache import Tensors, cached
from files.pixels import from_levels
from generative.checks import checked
from generative.randomness import generator_for
from generative.ranges import Channels, Count, Positive, WholeNumber

SIZES: dict[Split, int] = {"train": 20_000, "val": 1_000, "test": 2_000}
_CHUNK = 200  # scenes drawn from one generator: part of what they are
_BATCH = 20  # pictures rendered at a time, so that intermediate values stay in the processor's cache
_TRIES = 32  # arrangements of a scene tried at a time: part of what it is, too
_MAX_ROUNDS = 200  # of so many tries; beyond, the style leaves no room


@dataclass(frozen=True)
class SceneStyle:
    """What a scene may look like; lengths are CLEVR's units, in which a sphere has the radius 0.7.

    Attributes:
        version: Raised when the drawing changes in a way that the other values do not show.
        image_size: Side S of a picture in pixels.
        camera_distance: Distance of the camera from the middle of the scene; i-CLEVR's is 11.26.
        camera_jitter: Largest shift of the camera along each axis, at i-CLEVR's distance.
        lamp_jitter: Largest shift of each lamp along each axis.
        extent: Largest coordinate of an object's place, at i-CLEVR's distance.
        gap: Smallest distance between two objects on the ground.
        hidden: Largest share of the rectangle around an object that those around nearer objects cover.
        margin: Width of the border of the picture that objects keep free, as a share of its side.
    """

    version: int = 1
    seed: int = 0
    image_size: int = 32
    camera_distance: float = 7.0
    camera_jitter: float = 0.5
    lamp_jitter: float = 1.0
    extent: float = 3.0
    gap: float = 0.25
    hidden: float = 0.4
    margin: float = 0.02

    def key(self) -> str:
        """Return a short hash of everything that the pictures depend on, for the cache files' names."""
        return hashlib.blake2b(
            repr((asdict(self), LABELS, COLOURS, _CHUNK, _TRIES)).encode(), digest_size=6
        ).hexdigest()


def _jitter(shape: tuple[int, ...], width: float, generator: torch.Generator) -> Tensor:
    return width * (2 * torch.rand(shape, generator=generator) - 1)


def draw_scenes(style: SceneStyle, split: Split, chunk: int, selection: Selection = WHOLE) -> tuple[Scenes, Tensor]:
    """Draw one chunk of scenes of one to three objects with different labels.

    Args:
        style: What the scenes may look like.
        chunk: Number of the chunk within the split.
        selection: Which objects may stand together, and how many.

    Returns:
        ``_CHUNK`` scenes, and their (N, 24) float multi-hot labels.
    """
    generator = generator_for(style.seed, f"scenes/{split}{selection.key()}", step=chunk)
    lamps = torch.tensor(LAMPS) + _jitter((_CHUNK, len(LAMPS), 3), style.lamp_jitter, generator)
    present, label = selection.draw(_CHUNK, generator)
    angle = 2 * math.pi * torch.rand(_CHUNK, MAX_OBJECTS, generator=generator)
    scenes = Scenes(
        present=present,
        shape=label // len(COLOURS),
        albedo=torch.tensor(list(COLOURS.values()))[label % len(COLOURS)] / 255,
        place=torch.zeros(_CHUNK, MAX_OBJECTS, 2),
        angle=angle,
        camera=torch.zeros(_CHUNK, 3),
        lamps=lamps,
    )
    _arrange(scenes, style, generator)
    return scenes, torch.zeros(_CHUNK, len(LABELS)).scatter(1, label, present.float())


def _arrange(scenes: Scenes, style: SceneStyle, generator: torch.Generator) -> None:
    """Fill in the places of camera and objects: arrangements are drawn until one of each scene fits."""
    zoom = style.camera_distance / CAMERA_DISTANCE
    waiting = torch.arange(len(scenes))
    for _ in range(_MAX_ROUNDS):
        tried = scenes.select(waiting.repeat_interleave(_TRIES))
        tried.camera.copy_(zoom * (torch.tensor(CAMERA) + _jitter((len(tried), 3), style.camera_jitter, generator)))
        tried.place.copy_(_jitter((*tried.present.shape, 2), zoom * style.extent, generator))
        good = _apart(tried, style)
        good[good.clone()] = _fits(tried.select(good), style)
        good = good.view(-1, _TRIES)
        found = good.any(1)
        first = found.nonzero()[:, 0] * _TRIES + good[found].int().argmax(1)
        scenes.camera[waiting[found]], scenes.place[waiting[found]] = tried.camera[first], tried.place[first]
        waiting = waiting[~found]
        if len(waiting) == 0:
            return
    raise ValueError(
        f"there is no room for {MAX_OBJECTS} objects at data.camera_distance={style.camera_distance:g}: raise it to 7 or more"
    )


def _pairs(present_NK: Tensor) -> Tensor:
    """Return which pairs (N, K, K) are of two different objects that are there."""
    return present_NK[:, None] & present_NK[..., None] & ~torch.eye(present_NK.shape[1], dtype=torch.bool)


def _apart(scenes: Scenes, style: SceneStyle) -> Tensor:
    """Return which scenes (N,) have all objects apart on the ground."""
    x, y = scenes.place.unbind(-1)
    squared = (x[..., None] - x[:, None]) ** 2 + (y[..., None] - y[:, None]) ** 2
    return ((squared > (2 * RADIUS + style.gap) ** 2) | ~_pairs(scenes.present)).flatten(1).all(1)


def _fits(scenes: Scenes, style: SceneStyle) -> Tensor:
    """Return which scenes (N,) have all objects in the frame and mostly visible."""
    low, high = _rectangles(scenes)
    border = 1 - 2 * style.margin
    framed = ((low > -border).all(0) & (high < border).all(0)) | ~scenes.present
    common = torch.minimum(high[..., None], high[..., None, :]) - torch.maximum(low[..., None], low[..., None, :])
    share = common.clamp(min=0).prod(0) / (high - low).prod(0)[..., None]  # of object a that object b covers
    depth = project(scenes.centres(), scenes.camera)[1]
    behind = _pairs(scenes.present) & (depth[..., None] > depth[:, None])
    return framed.all(1) & ((share * behind).sum(-1) <= style.hidden).all(1)


def _rectangles(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Return the lower left and upper right corners (2, N, K) in the picture of the upright boxes around objects."""
    half = torch.tensor(HALF_HEIGHTS)[scenes.shape]
    turn = scenes.angle[..., None] + (torch.arange(4) + 0.5) * (math.pi / 2)
    reach = half[..., None] * math.sqrt(2)
    x, y = scenes.place[..., 0, None] + reach * turn.cos(), scenes.place[..., 1, None] + reach * turn.sin()
    base = torch.stack([x, y, torch.zeros_like(x)])
    top = torch.stack([x, y, (2 * half)[..., None].expand_as(x)])
    corners = torch.cat([base, top], dim=-1)
    screen, _ = project(corners.flatten(2), scenes.camera)
    screen = screen.view(2, *corners.shape[1:])
    return screen.amin(-1), screen.amax(-1)


@contextmanager
def _chunk_per_thread() -> Iterator[ThreadPoolExecutor]:
    """Run whole chunks side by side: the batches of a chunk are too small to be divided between threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(num_threads)


def generate_scenes(style: SceneStyle, split: Split, num_images: int, selection: Selection = WHOLE) -> Tensors:
    """Generate a split, whose first scenes are the same for any number of them.

    Args:
        style: What the scenes may look like.
        num_images: Number N of scenes.
        selection: Which objects may stand together, and how many.

    Returns:
        ``images``, (N, 3, S, S) uint8, and ``labels``, (N, 24) uint8 multi-hot.
    """
    images = torch.empty(num_images, 3, style.image_size, style.image_size, dtype=torch.uint8)
    labels = torch.empty(num_images, len(LABELS), dtype=torch.uint8)

    def draw(chunk: int) -> None:
        scenes, multi_hot = draw_scenes(style, split, chunk, selection)
        start = chunk * _CHUNK
        wanted = min(_CHUNK, num_images - start)
        labels[start : start + wanted] = multi_hot[:wanted]
        # Scenes of equally many objects together, as time goes with the largest number in a batch.
        for rows in scenes.present[:wanted].sum(1).argsort(stable=True).split(_BATCH):
            images[start + rows] = render(scenes.select(rows), style.image_size)

    num_chunks = -(-num_images // _CHUNK)
    with _chunk_per_thread() as pool:
        for _ in track(pool.map(draw, range(num_chunks)), f"Drawing {split} scenes", num_chunks, transient=True):
            pass
    return {"images": images, "labels": labels}


@functools.lru_cache(maxsize=SIZES["test"] // _CHUNK)
def object_masks(style: SceneStyle, split: Split, chunk: int, selection: Selection = WHOLE) -> Tensor:
    """Tell where the objects of a chunk of scenes show in their pictures.

    Args:
        style: What the scenes look like.
        chunk: Number of the chunk within the split.
        selection: Which objects stand together, and how many.

    Returns:
        (N, 24, S, S) booleans of ``_CHUNK`` scenes, true where a pixel shows the label's object.
    """
    scenes, _ = draw_scenes(style, split, chunk, selection)
    palette = torch.tensor(list(COLOURS.values())) / 255
    colour_NK = (scenes.albedo[:, :, None] == palette).all(-1).int().argmax(-1)
    masks = torch.zeros(len(scenes), len(LABELS), style.image_size, style.image_size, dtype=torch.bool)
    parts = [shown(scenes.select(rows), style.image_size) for rows in torch.arange(len(scenes)).split(_BATCH)]
    scene_O, object_O = scenes.present.nonzero(as_tuple=True)
    label_O = (scenes.shape * len(COLOURS) + colour_NK)[scene_O, object_O]
    masks[scene_O, label_O] = torch.cat(parts)[scene_O, object_O]
    return masks


@checked("data")
class ScenesDataModule(ImageDataModule):
    """Scenes of one to three of 24 objects, generated on first use and kept in the cache folder.

    Args:
        image_size: Side of the pictures.
        num_classes: 24.
        camera_distance: Distance of the camera; i-CLEVR's is 11.26, less shows larger objects.
        test_json: File of the label sets ``test``, in i-CLEVR's format, or None for drawn ones.
        new_test_json: File of the label sets ``new_test``, or None for drawn ones.
        held_out: ``combinations:SHARE``: the share of all pairs of labels that never stand together in training and
            validation images; or None. Label sets with such pairs are then the group ``held_out``.
        max_objects: Most objects of training and validation images. Label sets of more are then the group ``more_objects``,
            and sets that are as training shows them, of at least two labels, the group ``shown``.
        tested: Which images the test split has: such as training shows, or those of a group that it does not.
        **settings: See ``ImageDataModule``; the limits ``num_train``, ``num_val`` and ``num_test`` spare generation.
    """

    def __init__(
        self,
        name: str = "scenes",
        image_size: Count = 32,
        channels: Channels = 3,
        num_classes: WholeNumber = NUM_LABELS,
        camera_distance: Positive = 7.0,
        test_json: str | Path | None = None,
        new_test_json: str | Path | None = None,
        held_out: str | None = None,
        max_objects: Literal[1, 2, 3] = 3,
        tested: Group = "shown",
        **settings: Any,
    ) -> None:
        super().__init__(name, image_size, channels, num_classes, **settings)
        self.style = SceneStyle(image_size=image_size, camera_distance=camera_distance)
        self.set_files = {"test": test_json, "new_test": new_test_json}
        self.selection = Selection.read(held_out, max_objects, tested)
        self.tested: Group = tested

    @property
    def label_names(self) -> tuple[str, ...]:
        return LABELS

    @functools.cached_property
    def label_sets(self) -> dict[str, Tensor]:
        sets = {
            name: draw_label_sets(name) if path is None else read_label_sets(path, LABELS, f"check data.{name}_json")
            for name, path in self.set_files.items()
        }
        groups = (SHOWN, *self.selection.beyond) if self.selection.beyond else ()
        return sets | {group: self._selected(group).label_sets() for group in groups}

    def _selected(self, group: Group) -> Selection:
        return replace(self.selection, group=group)

    def _selection_of(self, split: Split) -> Selection:
        return self._selected(self.tested if split == "test" else "shown")

    @functools.cached_property
    def _beyond(self) -> dict[str, Tensors]:
        return {g: self._drawn("test", self._selected(g), self._size("test")) for g in self.selection.beyond}

    def real_images(self, label_sets: str, number: int) -> tuple[Tensor, Tensor] | None:
        if (tensors := self._beyond.get(label_sets)) is None:
            return None
        return from_levels(tensors["images"][:number]), tensors["labels"][:number].float()

    def object_masks(self, split: Split, index_B: Tensor) -> Tensor:
        index = index_B.cpu()
        masks = torch.empty(len(index), len(LABELS), self.image_size, self.image_size, dtype=torch.bool)
        for chunk in (index // _CHUNK).unique().tolist():
            rows = index // _CHUNK == chunk
            masks[rows] = object_masks(self.style, split, chunk, self._selection_of(split))[index[rows] % _CHUNK]
        return masks

    def _size(self, split: Split) -> int:
        limit = self.limits[split]
        return SIZES[split] if limit is None else max(0, min(limit, SIZES[split]))

    def _drawn(self, split: Split, selection: Selection, num_images: int) -> Tensors:
        path = self.cache_dir / f"scenes-{self.style.key()}{selection.key()}-{split}-{num_images}.pt"
        return cached(path, lambda: generate_scenes(self.style, split, num_images, selection))

    def _store(self, split: Split) -> ImageStore:
        selection = self._selection_of(split)
        tensors = self._drawn(split, selection, self._size(split))
        recipe = f"scenes {self.style.key()}{selection.key()} {split}"
        return ImageStore.dense(tensors["images"], tensors["labels"].float(), recipe)

    def load_splits(self) -> Splits:
        self.label_sets, self._beyond  # noqa: B018 - bad files of label sets stop before anything is drawn; all is drawn now
        files = [str(path) for path in self.set_files.values() if path is not None]
        return Splits(
            train=self._store("train"),
            val=self._store("val"),
            test=self._store("test"),
            source="ray-cast scenes of cubes, spheres and cylinders",
            drawn=f"independent draws per split, style {self.style.key()}",
            folders={"label_sets": ", ".join(files)} if files else {},
        )

    def record(self) -> dict[str, Any]:
        own = {"camera_distance": self.style.camera_distance, **self.selection.record()}
        return super().record() | own | ({"tested": self.tested} if self.tested != SHOWN else {})
