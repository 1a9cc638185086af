"""Writes a run's network as a folder to hand around: weights, config, model card, and the frozen networks that it needs."""

from __future__ import annotations

import glob
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from files.locks import locked
from files.whole import whole_file
from generative.export import PRECISIONS, Precision, network_bytes, read_network
from generative.weights import weights_hash
from launch import build
from launch.compose import parse
from launch.errors import UserError, as_user_error
from launch.paths import lies_inside, names_place, portable
from launch.run_folder import RunFolder
from launch.trained_parts import TRAINED
from launch.use.exported import DATA, OVERRIDES
from launch.use.load import CARD, CONFIG, MODEL, label_names
from launch.use.model_card import result_of, write_card
from launch.use.tensor_network import FORMATS, Format, tensor_file, tensor_network
from lightning_modules import Part, TrainingModule

GRID, IMAGES = "test.png", "images"
EARLIER = "earlier"  # the export that is being replaced
ASIDE = ".exporting"
# What only training or the run's own machine needs.
NOT_EXPORTED = (
    "paths", "logger", "resume", "init", "data_changed", "sweep", "classifier", *TRAINED, "optimized_metric", "compile",
    "hydra",
)  # fmt: skip


def export(
    run: RunFolder,
    config: DictConfig,
    weights: str | None,
    output: Path,
    precision: Precision = "float32",
    images: int = 0,
    kind: Format = "weights",
    expected: str | None = None,
) -> Path:
    """Write an export whole or not at all.

    Args:
        weights: ``ema`` or ``raw``; None: the averaged ones where the run has some.
        output: Folder to write; an earlier export there is replaced.
        precision: In which the weights are written.
        images: How many clean test images of the run go with it, to try it on.
        kind: ``torch_export`` or ``onnx`` writes the network for other programs, too.
        expected: Hash that the weights must have; None: any.

    Raises:
        UserError: The folder holds something else or cannot be written, or the run cannot be exported.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision} must be one of {', '.join(PRECISIONS)}.")
    if kind not in FORMATS:
        raise UserError(f"format={kind} must be one of {', '.join(FORMATS)}.")
    output = _free(output)
    checkpoint = run.load_checkpoint()
    weights = run.kind_of_weights(weights)
    module = build.build_module(config)
    build.load_weights(module, run, checkpoint, weights)
    _check_hash(weights_hash(module.network), expected, run.path)
    plain = export_config(build.plain_config(config), type(module))
    plain["data"]["label_names"] = label_names(run, config)
    plain["module"] |= module.found_arguments()
    data = run.record.get("data", {})
    with _aside(output) as temporary:
        folder = temporary / output.name
        for key, part in module.parts().items():
            plain["module"][key] = f"{key}/{MODEL}"
            export_part(part, folder / key, precision)
        step = int(checkpoint["global_step"])
        metadata = {
            "experiment": str(config.name),
            "step": str(step),
            "weights": weights,
            "config_hash": str(run.record.get("config_hash")),
            "git_revision": str(run.record.get("git_revision")),
            OVERRIDES: json.dumps(portable(o for o in run.overrides() if _top(o) not in NOT_EXPORTED)),
            DATA: json.dumps({key: data[key] for key in ("fingerprint", "fingerprints", "images") if key in data}),
            "parts": json.dumps({key: read_network(folder / key / MODEL)[1]["weights_hash"] for key in module.parts()}),
            "network": json.dumps(plain["module"]["network"]),
        }
        with as_user_error():
            write_file(folder / MODEL, network_bytes(module.network, metadata, precision))
        write_file(folder / CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        result = result_of(run, weights, step)
        grid = test_grid(run, step) if result else None
        if grid:
            write_file(folder / GRID, grid.read_bytes())
        for image in example_pictures(run.path)[:images]:
            write_file(folder / IMAGES / image.name, image.read_bytes())
        with as_user_error():
            card = write_card(run, plain, module, weights, step, result, GRID if grid else None, precision)
        if kind != "weights":
            file = tensor_file(tensor_network(module, plain), kind)
            write_file(folder / file.name, file.content)
            card += f"\n{file.card}"
        write_file(folder / CARD, card)
        _move(folder, output, temporary / EARLIER)
    return output


def copy_export(source: Path, output: Path, expected: str) -> None:
    """Copy an export whole or not at all; what its links lead out to stays where it is.

    Args:
        output: Folder to write; an earlier export there is replaced.
        expected: Hash that its weights must have.

    Raises:
        UserError: They have another one, or the folder cannot be written.
    """
    _check_hash(read_network(source / MODEL)[1]["weights_hash"], expected, source)
    if output.absolute().resolve() == source.resolve():
        return
    output = _free(output)

    def left_out(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name.startswith(".") or not lies_inside(Path(folder) / name, source)}

    with _aside(output) as temporary:
        folder = temporary / output.name
        shutil.copytree(source, folder, ignore=left_out)
        _move(folder, output, temporary / EARLIER)


def _free(output: Path) -> Path:
    output = output.absolute()
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / MODEL).exists())):
        raise UserError(f"output={output} exists and is no export: choose another folder.")
    return output


def _check_hash(found: str, expected: str | None, path: Path) -> None:
    if expected not in (None, found):
        raise UserError(f"the weights are not those of {path} any more: load it again, then save it.")


def _top(override: str) -> str:
    return parse(override)[0].partition(".")[0]


def test_grid(run: RunFolder, step: int) -> Path | None:
    """Find the grid of test images that the final test at a step has drawn."""
    return next(iter(_own_files(run.path, f"images/test/step={step:08d}.png")), None)


def example_pictures(folder: Path) -> list[Path]:
    """Find the single clean test images that a run keeps, or that came with an export, in order."""
    return _own_files(folder, "images/test/clean/*.png") or _own_files(folder, f"{IMAGES}/*.png")


def _own_files(folder: Path, pattern: str) -> list[Path]:
    """Find files that lie in a folder itself: what a link there points to is nobody's to hand around."""
    found = sorted(folder.glob(pattern))
    return [path for path in found if path.is_file() and lies_inside(path, folder)]


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, or say in one sentence why the disk did not take it.

    Args:
        content: Text, or bytes.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """Make a locked, hidden folder next to an export that goes at the end, and remove those of exports that were killed."""
    start = f".{output.name}."
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for left in sorted(output.parent.glob(f"{glob.escape(start)}*{ASIDE}")):
            _remove_left(left, output)
        with (
            tempfile.TemporaryDirectory(dir=output.parent, prefix=start, suffix=ASIDE) as temporary,
            locked(Path(temporary), wait=False),
        ):
            yield Path(temporary)
    except OSError as error:
        raise UserError(
            f"output={output} cannot be written ({error.strerror}): choose another folder with output=FOLDER."
        ) from error


def _remove_left(left: Path, output: Path) -> None:
    if left.is_symlink() or not left.is_dir():
        return
    with locked(left, wait=False) as is_free:
        if not is_free:
            return  # another process exports to the same place
        if (left / EARLIER).is_dir() and not output.exists():  # killed while the new export took the place of this one
            (left / EARLIER).rename(output)
        shutil.rmtree(left)


def _move(folder: Path, output: Path, aside: Path) -> None:
    if output.exists():
        output.rename(aside)
    try:
        folder.rename(output)
    except OSError:
        if aside.exists():
            aside.rename(output)
        raise


def export_part(part: Part, folder: Path, precision: Precision = "float32") -> None:
    """Write a frozen network that the exported one needs.

    Args:
        part: The network.
        folder: Folder to write.
        precision: In which its weights are written.
    """
    with as_user_error():
        told = {"network": json.dumps(part.settings)}
        write_file(folder / MODEL, network_bytes(part.network, told, precision, part.beside))
    write_file(folder / CARD, part.card)


def export_config(config: dict[str, Any], kind: type[TrainingModule]) -> dict[str, Any]:
    """Return what of a run's config describes its network and training anywhere.

    Args:
        config: The resolved config.
        kind: The module's class.

    Returns:
        The config without what belongs to the machine: its paths are null.

    Raises:
        UserError: The module samples with something that an export does not hold.
    """
    with as_user_error():
        kind.check_exported(config["module"])
    kept = {key: _without_paths(value) for key, value in config.items() if key not in NOT_EXPORTED}
    kept["module"] |= {key: value for key, value in kind.training_only.items() if key in kept["module"]}
    return kept


def _without_paths(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_paths(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_paths(value) for value in node]
    return None if isinstance(node, str) and names_place(node) else node
