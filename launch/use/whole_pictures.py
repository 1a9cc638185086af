"""Measures a restorer on whole pictures of a folder, each at its own size, file by file, as papers on photographs do."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from callbacks.restoration import Evaluation, ImageMetrics, OfImages
from files.images import Picture, read_picture, reason
from files.pixels import as_grey, from_levels, in_own_channels, to_levels
from files.whole import whole_file
from files.words import count, named, printable
from generative.tiling import Tiling
from generative.types import Batch
from launch import build
from launch.command_line import MAX_BATCH, own_arguments, whole_number
from launch.errors import UserError
from launch.evaluation import print_result
from launch.names import checked_name, file_name
from launch.paths import typed_path
from launch.record import hardware, now
from launch.record_files import read_json
from launch.run_folder import write_json
from launch.use.exported import evaluations_of, loaded, opened
from launch.use.folders import found_pictures, say_all
from launch.use.memory import picture_in_memory, too_large
from launch.use.messages import say
from launch.use.restorer import Restorer, tiling_of
from launch.use.restoring import READING_ERRORS
from lightning_modules import GenerativeModule
from lightning_modules.contract import ANSWERING

DEFAULTS: dict[str, str | None] = {
    "pictures": None, "name": None, "weights": None, "tile": "auto", "overlap": None, "border": "0", "batch_size": "64",
}  # fmt: skip
DEGRADED = "degraded"
MAX_BORDER = 10_000  # px
CSV, JSON = "pictures.csv", "pictures.json"
METRICS = "metrics.json"  # of an evaluation on the run's own test images


def evaluate_pictures(arguments: list[str], usage: str) -> bool:
    """Degrade whole pictures as the run's evaluation does, restore them, and write what came of each.

    Returns:
        Whether every picture was measured.

    Raises:
        UserError: The run restores nothing, no picture can be measured, or a setting cannot be used.
    """
    named_run, own, overrides = own_arguments(arguments, DEFAULTS, usage)
    source, config = opened(named_run, overrides, reads_data=False)
    own["weights"] = weights = source.kind_of_weights(own["weights"])
    if not build.tasks_of(config) & ANSWERING:
        raise UserError("pictures= measures what answers to pictures, and this run draws from noise: leave it out.")
    border, batch_size = whole_number(own, "border", MAX_BORDER, 0), whole_number(own, "batch_size", MAX_BATCH)
    pictures = typed_path("pictures", str(own["pictures"]))
    folder, listing = found_pictures("pictures", pictures)
    if listing.unread:
        raise UserError(
            f"pictures={pictures}: formats that are not read ({named(listing.unread)}): convert or remove them."
        )
    if listing.closed:
        folder_name, why = next(iter(listing.closed.items()))
        raise UserError(
            f"pictures={pictures}: the folder {printable(folder_name)} cannot be opened ({why}): make it readable."
        )
    if not listing.images:
        raise UserError(f"pictures={pictures} holds no image file.")
    usual = DEFAULTS | {"weights": source.kind_of_weights()}
    chosen = [f"{key}={own[key]}" for key in ("weights", "tile", "overlap", "border") if own[key] != usual[key]]
    given = own["name"]
    name = (
        file_name([f"pictures={pictures.name}", *overrides, *chosen]) if given is None else checked_name("name", given)
    )
    target = evaluations_of(source, config) / name
    own["pictures"] = printable(str(own["pictures"]))  # as it is recorded
    settings = {"overrides": overrides, **{key: own[key] for key in DEFAULTS if key != "name"}}
    _check_target(target, settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = loaded(source, config, weights).to(device)
    assert isinstance(module, GenerativeModule)
    tiling = tiling_of(module, config.data.image_size, str(own["tile"]), own["overlap"], batch_size)
    rows, metrics, record = _measured(module, config, tiling, batch_size, folder, listing.images, border)
    with whole_file(target / CSV, "w") as file:
        file.write(_table(rows))
    record |= {"settings": settings, "run": str(source.path), "measured": now()}
    record |= {"hardware": hardware(module.device), "sampling": module.sampling_record()}
    write_json(target / JSON, {"metrics": metrics, "record": record})
    print_result(metrics, target)
    return not record["left_out"]


def _measured(
    module: GenerativeModule,
    config: DictConfig,
    tiling: Tiling | None,
    batch_size: int,
    folder: Path,
    files: Sequence[Path],
    border: int,
) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, Any]]:
    size, channels, degradation = config.data.image_size, config.data.channels, build.build_degradation(config)
    names = [name for name, output in module.outputs.items() if output.num_network_calls]
    restorers = {
        name: Restorer(module, degradation, size, channels, name, module.device, tiling, batch_size) for name in names
    }
    first, rows, left_out = next(iter(restorers.values())), list[dict[str, Any]](), dict[Path, str]()
    single, whole = _metrics(config, module), _metrics(config, module)
    for number, file in enumerate(track(files, description="measuring", console=Console(stderr=True))):
        try:
            picture = read_picture(folder / file)
            with picture_in_memory():
                request = first.request(number, picture, None)
        except READING_ERRORS as error:
            left_out[file] = reason(error)
            continue
        if 2 * border >= min(request.size):
            left_out[file] = f"border={border} leaves nothing of it"
            continue
        try:
            with picture_in_memory():
                outputs = {DEGRADED: first.degraded(request)} if degradation is not None else {}
                outputs |= {name: each.one(request) for name, each in restorers.items()}
        except MemoryError:
            left_out[file] = too_large(tiling.at_once if tiling else 1)
            continue
        seen = {name: _as_seen(picture, image, border) for name, image in outputs.items()}
        clean = _as_seen(picture, in_own_channels(picture), border)
        batch = Batch(clean, torch.tensor([number]), degraded=seen.get(DEGRADED))
        values = dict[str, float]()
        for metrics in single:
            metrics.reset()
        for metrics in (*single, *whole):
            metrics.update(seen, batch)
        for metrics in single:
            values |= {key: value for key, value in metrics.compute().items() if not key.startswith("psnr_pooled")}
        rows.append({"file": printable(file), "width": request.size[1], "height": request.size[0]} | values)
    say_all([f"{printable(file)} is left out: {why}" for file, why in left_out.items()])
    if not rows:
        raise UserError("none of the pictures could be measured.")
    means = {key: value for metrics in whole for key, value in metrics.compute().items()}
    measured = {key for row in rows for key in row}
    rows.append({"file": "mean", "width": "", "height": ""} | {key: means[key] for key in means if key in measured})
    record = {
        "pictures": len(files) - len(left_out),
        "left_out": {printable(file): why for file, why in left_out.items()},
        "border": border,
        "rounded": "restored and degraded pictures are rounded to 8 bits and cut to their range before they are measured",
        "evaluation_seed": module.evaluation_seed,
        "degradation": str(config.degradation),
        "tiles": "resized" if tiling is None else f"{tiling.size}x{tiling.size}, sharing {tiling.overlap} pixels",
        "definitions": {key: text for metrics in whole for key, text in metrics.definition().items()},
    }
    say(f"{count(len(files) - len(left_out), 'picture')}, measured over whole images")
    return rows, means, record


def _metrics(config: DictConfig, module: GenerativeModule) -> list[OfImages]:
    """PSNR and SSIM, and whatever else the run's callbacks measure of images."""
    callbacks = [each for each in build.build_callbacks(config) if isinstance(each, ImageMetrics)]
    if not any(isinstance(each, Evaluation) for each in callbacks):
        callbacks.insert(0, Evaluation())
    return [each.metrics_of(module) for each in callbacks]


def _as_seen(picture: Picture, image_RCHW: Tensor, border: int) -> Tensor:
    """(1, C, H, W) image of 8 bits in its file's channels, without its border; rows of a colour picture are its channels."""
    image_CHW = image_RCHW.cpu().float().flatten(0, 1)
    image_CHW = as_grey(image_CHW) if picture.pixels.ndim == 2 else image_CHW
    image = from_levels(to_levels(image_CHW.clamp(-1, 1)))[None]
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.7g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    return text.getvalue()


def _check_target(target: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that belongs to another measurement; one that was never ended leaves its folder free."""
    path, ended = target / JSON, any((target / name).exists() for name in (JSON, METRICS))
    if not ended or (path.exists() and read_json(path, "record").get("record", {}).get("settings") == settings):
        return
    raise UserError(f"{target} holds another evaluation: choose another name=NAME, or remove it.")
