"""Use a trained run: restore a folder of images, or draw images of given labels; ``python generate.py --help``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from files.animations import FRAME_MS
from files.masks import HoleRule, hole_rule
from files.words import printable
from generative.degradations import Degradation
from generative.judges.label_classifier import LabelClassifier, load_label_classifier
from generative.types import State
from launch import build
from launch.command_line import MAX_BATCH, is_true, overridden_run, own_arguments, tell_choices, whole_number
from launch.errors import EXIT_RUN_FAILED, UserError, as_user_error, reported
from launch.paths import typed_path
from launch.trained_parts import trained_classifier
from launch.use.drawing import (
    Drawing,
    draw_images,
    draw_steps,
    drawing_of_sets,
    earlier_drawings,
    read_animation,
    read_labels,
    way_drawing,
    write_drawings,
    write_steps,
)
from launch.use.folders import plan
from launch.use.load import MODEL, Trained
from launch.use.messages import say
from launch.use.restorer import Restorer, tiling_of
from launch.use.restoring import restore_folder, ways_of
from launch.use.steps import FOLDER, earlier_ways, read_variants, write_ways
from lightning_modules import GenerativeModule
from lightning_modules.contract import ANSWERING

USAGE = """Usage: python generate.py run=DIR input=PICTURES output=FOLDER [overrides]
       python generate.py run=DIR labels="red cube, blue sphere" num_images=16 output=FOLDER [overrides]

Restores every picture of a folder, a file or a pattern ('photos/*.jpg') under its own name and at its own size, or draws
images of the labels; with the run's averaged weights where it has some. run= may also be what python export.py wrote. A
run that was trained without labels draws without labels=. docs/images.md says how files and masks are read.

  output=FOLDER       where the image files go, or the file of a single one; overwrite=true replaces what is there
  batch_size=64       images at a time
  weights=raw         the raw instead of the averaged weights
  sampler.num_steps=4, guidance.scale=3, module.reimpose_known=true, ...  any override of the run's config

Restoring
  result=NAME         which of the run's outputs to write, by default the first that it has of: sample (a plausible image), mean
                      (least squared error), reconstruction (of a tokenizer), decoded (the known pixels, too, as the network
                      sees them)
  tile=none           resize a picture to the training size and its result back; by default (auto) it goes through the
                      network in overlapping tiles of that size, which overlap=N pixels share (a quarter at most)
  masks=FOLDER        masks of the same names (any suffix) and sizes, white where pixels are missing; the rest counts as known
                      and is kept bit for bit: results are PNG files
  hole=black          what marks the missing pixels in them: white, black, or alpha (what is transparent); by default (auto)
                      white, or the transparent parts where there are some
  steps=true          also OUTPUT/steps/: the way to the first picture, steps.png, an animation (animation=webp, frame_ms=120),
                      and of tokens what is unknown after each step in masks/; vary=sampler.schedule=linear,cosine,square has
                      one such way for each value of a setting in the figure, with how much is unknown over the steps
  degrade=true        degrade the images first, as the run's evaluation does: to try the restorer on clean images; a
                      run that fills holes and nothing else needs the one or the other

Drawing
  num_images=16       how many; each to a file of its own, the first 1000 also to grid.png
  label_sets=FILE     one image of each label set of a JSON file, such as i-CLEVR's test.json, to 00.png, 01.png, ...; with the
                      label accuracy in the title of grid.png where the run has a label classifier (classifier=FILE); and
                      grid_plain.png, the images alone, eight in a row
  steps=true          also the way to the first image, steps.png and steps.gif; with label_sets= that of the typed labels=
  animation=webp      steps.webp instead of steps.gif; frame_ms=120, milliseconds a frame
  evaluation_seed=1   another seed, other images

The exit code is 3 where a picture of the input folder was left out; its name is printed."""
DEFAULTS: dict[str, str | None] = {
    "input": None, "output": None, "masks": None, "hole": "auto", "result": None, "degrade": "false", "tile": "auto",
    "overlap": None, "labels": None, "label_sets": None, "vary": None, "num_images": None, "steps": "false", "animation": "gif",
    "frame_ms": str(FRAME_MS), "batch_size": "64",
    "weights": None, "overwrite": "false",
}  # fmt: skip
RESTORING = ("masks", "hole", "result", "degrade", "tile", "overlap", "vary")  # keys that mean nothing to what draws
DRAWING = ("label_sets", "num_images")
FOLDERS = ("input", "output", "masks")
MAX_IMAGES = 1_000_000  # more are a slip of the keyboard


def read_folders(own: dict[str, str | None]) -> dict[str, Path | None]:
    """Read the folders from the command line.

    Returns:
        The folders that were given, by key; ``~`` stands for the home folder.

    Raises:
        UserError: A value is empty, or names the home folder of nobody.
    """
    folders: dict[str, Path | None] = {}
    for key in FOLDERS:
        if (value := own[key]) == "":
            raise UserError(f"{key}= is empty: give a folder.")
        folders[key] = None if value is None else typed_path(key, value)
    return folders


def load_module(trained: Trained, weights: str | None) -> GenerativeModule:
    """Build a module that makes images with its trained weights, on a GPU if there is one.

    Args:
        weights: ``ema`` or ``raw``; None: the averaged ones where it has some.

    Returns:
        The module in evaluation mode.
    """
    module = trained.load(weights).to("cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(module, GenerativeModule), "its tasks are checked in main"
    return module


def draw(trained: Trained, own: dict[str, str | None]) -> bool:
    """Draw images of given labels.

    Returns:
        True: nothing is left out.

    Raises:
        UserError: A label or setting cannot be used.
    """
    if own["input"] is not None:
        raise UserError("this run draws images from noise and has no use for input=: leave it out.")
    config, module = trained.config, load_module(trained, own["weights"])
    names = trained.label_names if module.uses_labels else []
    batch_size = whole_number(own, "batch_size", MAX_BATCH)
    drawing = read_drawing(own, names, " ".join((own["labels"] or config.name).split()))
    target, overwrite, keeps_steps = (
        Path(str(read_folders(own)["output"])),
        is_true(own, "overwrite"),
        is_true(own, "steps"),
    )
    stale = earlier_drawings(target, {drawing.name(index) for index in range(drawing.num_images)}, overwrite)
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    judge = None if own["label_sets"] is None else read_judge(config)
    way, (animation, frame_ms) = way_drawing(own, drawing, names), read_animation(own)
    states = draw_steps(module, way, shape) if keeps_steps else []
    if keeps_steps and len(states) < 2:
        raise UserError("steps=true: this run draws in one step: set sampler.num_steps, or leave it out.")
    images = draw_images(module, drawing, shape, batch_size)
    write_drawings(images, drawing, target, stale, overwrite, judge and judge.to(module.device))
    if states:
        write_steps(states, way.first_title, target, animation, frame_ms)
    return True


def read_judge(config: DictConfig) -> LabelClassifier | None:
    """Load the label classifier of a run's data, or say that there is none.

    Args:
        config: The run's config.
    """
    data, outputs = config.data, str(OmegaConf.select(config, "paths.outputs", default=""))
    file = trained_classifier(config.get("classifier"), outputs, data.name, data.image_size)
    if file is None:
        say(f"the drawings are not judged: no label classifier of {data.name} was found; name one with classifier=FILE")
        return None
    with as_user_error():
        return load_label_classifier(file)


def read_drawing(own: dict[str, str | None], names: list[str], title: str) -> Drawing:
    """Read what is to be drawn: of the labels that were typed, or of the label sets of a file.

    Args:
        names: What the labels are called; empty for a run without labels.
        title: What is drawn, in words.

    Raises:
        UserError: A label, file or number cannot be used.
    """
    if (sets := own["label_sets"]) is not None:
        if own["num_images"] is not None:
            raise UserError("label_sets= draws one image of each set: leave out num_images=.")
        return drawing_of_sets(typed_path("label_sets", sets), names)
    number = whole_number(own | {"num_images": own["num_images"] or "16"}, "num_images", MAX_IMAGES)
    labels = read_labels(own["labels"], names)
    return Drawing(None if labels is None else labels.expand(number, -1), number, title)


def read_degradation(config: DictConfig, own: dict[str, str | None]) -> Degradation | None:
    """Read what is to be done to the images before they are restored.

    Args:
        config: The run's config.

    Returns:
        The run's degradation for ``degrade=true``, else None.

    Raises:
        UserError: ``degrade`` and ``masks`` say nothing, too much, or what the run cannot do.
    """
    answers = build.tasks_of(config) & ANSWERING
    if own["masks"] is not None and "inpaint" not in answers:
        raise UserError("this run fills no holes: leave out masks=.")
    if not is_true(own, "degrade"):
        if own["masks"] is None and answers == {"inpaint"}:
            raise UserError(
                "this run fills holes: say where they are with masks=FOLDER, or let the run's own degradation make them with "
                "degrade=true."
            )
        return None
    if own["masks"] is not None:
        raise UserError("degrade=true makes its own holes: leave out masks=, or set degrade=false.")
    degradation = build.build_degradation(config)
    if degradation is None:
        raise UserError("degrade=true: this run has no degradation: choose one, such as degradation=block_mask.")
    return degradation


def read_hole(own: dict[str, str | None]) -> HoleRule:
    """Read what marks the missing pixels in masks.

    Raises:
        UserError: It is nothing that masks are read by, or there are none.
    """
    with as_user_error():
        hole = hole_rule(str(own["hole"]))
    if own["masks"] is None and hole != "auto":
        raise UserError(f"hole={hole} is about masks: give them with masks=FOLDER.")
    return hole


def restore(trained: Trained, own: dict[str, str | None], opened: Callable[[list[str]], Trained]) -> bool:
    """Restore a folder of images.

    Args:
        opened: Opens the same with further overrides.

    Returns:
        Whether a result was written of every picture.

    Raises:
        UserError: A folder, file or setting cannot be used.
    """
    config = trained.config
    if own["labels"] is not None:
        if "generate" in build.tasks_of(config):
            raise UserError("labels= draws images, and input= restores those of a folder: give one of the two.")
        raise UserError("this run restores images and knows no labels: use input=FOLDER output=FOLDER.")
    if own["input"] is None:
        raise UserError("say where the images are and where the results go with input=FOLDER output=FOLDER.")
    degradation = read_degradation(config, own)
    batch_size = whole_number(own, "batch_size", MAX_BATCH)
    source, target, masks = read_folders(own).values()
    assert source is not None and target is not None, "checked above and in main"  # noqa: PT018
    something_known = masks is not None or degradation is not None
    hole = read_hole(own)
    job = plan(source, target, masks, something_known, is_true(own, "overwrite"), hole)

    def restorer_of(trained: Trained) -> Restorer:
        module = load_module(trained, own["weights"])
        size, channels = config.data.image_size, config.data.channels
        tiling = tiling_of(module, size, str(own["tile"]), own["overlap"], batch_size)
        return Restorer(module, degradation, size, channels, own["result"], module.device, tiling, batch_size)

    (animation, frame_ms), (key, values) = read_animation(own), read_variants(own["vary"])
    keeps_steps = is_true(own, "steps")
    stale = earlier_ways(job.target, list(job.results.values()), job.overwrite) if keeps_steps else []
    restorer = restorer_of(trained)
    ways: dict[str, list[State]] = {}
    if keeps_steps:
        restorers = {value: restorer_of(opened([f"{key}={value}"])) if key else restorer for value in values}
        first, ways = ways_of(restorers, job)
    is_whole = restore_folder(restorer, job)
    if ways:
        for path in stale:
            path.unlink(missing_ok=True)
        title = " · ".join(filter(None, [printable(first), key]))
        write_ways(ways, title, job.target / FOLDER, animation, frame_ms)
    return is_whole


def main(arguments: list[str]) -> int:
    """Restore or draw, as the run can.

    Returns:
        The exit code: 0, or 3 where a picture was left out.

    Raises:
        UserError: A folder, file or setting cannot be used.
    """
    folder, own, overrides = own_arguments(arguments, DEFAULTS, USAGE)
    place = typed_path("run", folder)
    is_export = (place / MODEL).exists()

    def opened(more: list[str]) -> Trained:
        if is_export:
            return Trained.of_export(place, [*overrides, *more])
        return Trained.of_run(*overridden_run(folder, [*overrides, *more]))

    trained = opened([])
    if not is_export:
        tell_choices(trained.config, ("module",))
    if own["output"] is None:
        raise UserError("say where the results go with output=FOLDER.")
    config = trained.config
    tasks = build.tasks_of(config)
    if not tasks & (ANSWERING | {"generate"}):
        raise UserError("this run makes no images: give one that restores, fills, reconstructs or draws them.")
    draws = "generate" in tasks and (own["input"] is None or not tasks & ANSWERING)
    for key in RESTORING if draws else DRAWING:
        if own[key] != DEFAULTS[key]:
            does, other = ("draws", "restores") if draws else ("restores", "draws")
            raise UserError(f"{key}={own[key]} is for what {other}, and this call {does}: leave it out.")
    is_whole = draw(trained, own) if draws else restore(trained, own, opened)
    return 0 if is_whole else EXIT_RUN_FAILED


def start() -> None:
    """Run the command line of this process."""
    with reported():
        code = main(sys.argv[1:])
    sys.exit(code)


if __name__ == "__main__":
    start()
