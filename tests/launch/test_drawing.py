"""``generate.py`` draws what a person types, and says what it cannot draw."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import resume_here, train_here
from PIL import Image

from datamodules.labels import LABELS, read_label_sets
from files.pixels import to_tensor
from generative.judges.label_classifier import load_label_classifier
from generative.metrics.label_accuracy import recognised_labels
from launch.commands import evaluate, generate
from launch.errors import UserError
from launch.run_folder import RunFolder
from launch.use.drawing import earlier_drawings
from lightning_modules import DDPM


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_here(
        tmp_path_factory.mktemp("ddpm") / "run", "experiment=ddpm_scenes", "callbacks.steps_grid.animation=webp"
    )


def test_drawings_are_written_and_the_same_in_any_batch(run: RunFolder, tmp_path: Path) -> None:
    common = [f"run={run.path}", "labels=red cube, Blue  sphere", "num_images=10"]
    generate.main([*common, f"output={tmp_path / 'a'}"])
    generate.main([*common, f"output={tmp_path / 'b'}", "batch_size=3"])
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == [*(f"{i:04d}.png" for i in range(10)), "grid.png"]
    for name in files:
        a, b = (np.asarray(Image.open(tmp_path / folder / name)).astype(int) for folder in "ab")
        assert abs(a - b).max() <= 1
    assert Image.open(tmp_path / "a" / "0000.png").size == (32, 32)
    generate.main([*common, f"output={tmp_path / 'c'}", "evaluation_seed=1"])
    a, c = (np.asarray(Image.open(tmp_path / folder / "0000.png")).astype(int) for folder in "ac")
    assert abs(a - c).max() > 1


def test_a_diverged_drawing_is_told_and_not_written(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"sample": torch.full((1, 3, 32, 32), torch.nan)}
    monkeypatch.setattr("lightning_modules.DDPM.images_of", lambda *_: broken)
    with pytest.raises(UserError, match="values that are no numbers"):
        generate.main([f"run={run.path}", "labels=red cube", "num_images=1", f"output={tmp_path / 'a'}"])
    assert not list(tmp_path.glob("a/*.png"))


def test_a_test_in_which_sampling_diverged_says_so(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DDPM, "sample", lambda self, batch, randomness: {"sample": torch.nan * batch.image})
    evaluate.main([f"run={run.path}", "name=diverged", "sampler.num_steps=3"])
    printed = capfd.readouterr()
    assert re.search(
        r"test: sample diverged: (\d+) of \1 images \(made with sampler=.*, num_steps=3, .*calls? each", printed.out
    )
    assert not list((run.path / "evaluations" / "diverged" / "images" / "test").glob("*"))


def test_label_sets_of_a_file_are_drawn_one_image_each_and_judged(
    run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sets = tmp_path / "test.json"
    sets.write_text(json.dumps([["red cube"], ["blue sphere", "red cube"], ["gray cylinder"]] * 4))
    judge = train_here(tmp_path / "judge", "experiment=label_classifier")
    common = [f"run={run.path}", f"label_sets={sets}", f"output={tmp_path / 'out'}"]
    generate.main([*common, f"classifier={judge.path}", "steps=true"])
    names = [*(f"{i:02d}.png" for i in range(12)), "grid.png", "grid_plain.png", "steps.gif", "steps.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    printed = capfd.readouterr().err
    images = torch.stack([to_tensor(Image.open(tmp_path / "out" / f"{i:02d}.png")) for i in range(12)]) / 127.5 - 1
    labels = read_label_sets(sets, LABELS)
    seen = recognised_labels(load_label_classifier(judge.checkpoint)(images), labels)
    assert f"label accuracy {float(seen.sum() / labels.sum()):.3f} of 12 images" in printed
    with Image.open(tmp_path / "out" / "steps.gif") as film:
        assert film.n_frames == run.config().sampler.num_steps
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB").resize((32, 32), Image.Resampling.NEAREST)).astype(int)
    assert abs(last - np.asarray(Image.open(tmp_path / "out" / "00.png"))).max() < 40  # of 256 colours
    with Image.open(tmp_path / "out" / "grid_plain.png") as plain:
        assert plain.size == (8 * 34 + 2, 2 * 34 + 2)
        first = np.asarray(plain)[2:34, 2:34]
    assert (first == np.asarray(Image.open(tmp_path / "out" / "00.png"))).all()
    way = ["labels=blue sphere", "steps=true", "animation=webp", "frame_ms=50", "overwrite=true", "classifier=null"]
    generate.main([*common, *way])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names[:-2], "steps.png", "steps.webp"]
    with Image.open(tmp_path / "out" / "steps.webp") as film:
        film.load()
        assert film.info["duration"] == 50
    typed = [*common[::2], "labels=red cube", "num_images=1", "overwrite=true"]
    generate.main(typed)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.png", "grid.png"]
    sets.write_text(json.dumps([["red cone"]]))
    for more, message in (
        ([], "red cone"),
        (["num_images=2"], "num_images="),
    ):
        with pytest.raises(UserError, match=message):
            generate.main([*common, "overwrite=true", *more])


def test_drawings_are_never_mixed_with_earlier_ones(run: RunFolder, tmp_path: Path) -> None:
    common = [f"run={run.path}", f"output={tmp_path / 'out'}", "labels=red cube\n"]  # a line end is no part of a label

    def names() -> list[str]:
        return sorted(p.name for p in (tmp_path / "out").iterdir())

    assert generate.main([*common, "num_images=4", "batch_size=3"]) == 0
    with pytest.raises(
        UserError, match=r"drawings already \(0000\.png, 0001\.png, 0002\.png and 2 more\).*overwrite=true"
    ):
        earlier_drawings(tmp_path / "out", {"0000.png", "0001.png"}, overwrite=False)
    assert names() == ["0000.png", "0001.png", "0002.png", "0003.png", "grid.png"]
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    generate.main([*common, "num_images=2", "overwrite=true"])
    assert names() == ["0000.png", "0001.png", "grid.png", "notes.txt"]
    Image.new("RGB", (4, 4)).save(tmp_path / "out" / "2024.png")
    with pytest.raises(UserError, match=r"no drawings of this script \(2024\.png\)"):
        earlier_drawings(tmp_path / "out", {"0000.png"}, overwrite=True)
    assert names() == ["0000.png", "0001.png", "2024.png", "grid.png", "notes.txt"]


def test_an_unknown_label_lists_all(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="red cone") as caught:
        generate.main([f"run={run.path}", "labels=red cone", f"output={tmp_path}"])
    for name in ("gray cube", "cyan sphere", "yellow cylinder"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=x"], "labels="),
        (["labels=red cube"], "output=FOLDER"),
        (["labels=red cube", "output=x", "num_images=none"], "num_images=none must be a whole number"),
        (["labels=red cube", "output=x", "input=y"], "leave it out"),
        (["labels=red cube", "output=x", "tile=none"], "tile=none is for what restores, and this call draws"),
        (["labels=red cube", "output=x", "masks=y"], "masks=y is for what restores"),
        (
            ["labels=red cube", "output=x", "animation=gif", "steps=true", "frame_ms=1"],
            "frame_ms=1 must be a whole number",
        ),
        (
            ["labels=red cube", "output=x", "animation=mp4", "steps=true"],
            "animation=mp4 is unknown: choose gif or webp",
        ),
        (
            ["labels=red cube", "output=x", "animation=webp"],
            "animation=webp is about the way to the image: add steps=true",
        ),
        (["labels=red cube", "output=x", "num_images=1000000000"], "num_images=1000000000 must be .* at most 1000000"),
    ],
)
def test_what_cannot_be_drawn_is_said(run: RunFolder, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate.main([f"run={run.path}", *arguments])


def test_labels_without_names_are_drawn_by_number(tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", "experiment=ddpm_scenes", "data=digits")
    generate.main([f"run={run.path}", "labels=7", "num_images=2", f"output={tmp_path / 'out'}"])
    assert Image.open(tmp_path / "out" / "0001.png").mode == "L"
    with pytest.raises(UserError, match="'10'"):
        generate.main([f"run={run.path}", "labels=10", f"output={tmp_path / 'out'}"])


def test_a_run_with_a_former_grid_of_steps_goes_on_with_the_one_of_now(run: RunFolder, tmp_path: Path) -> None:
    """Config and overrides as they were recorded when diffusions and tokens had a grid each."""
    old = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    for path in (old.config_path, old.overrides_path):
        text = path.read_text()
        assert "steps_grid" in text
        path.write_text(
            text.replace("steps_grid", "denoising_grid").replace("callbacks.StepsGrid", "callbacks.DenoisingGrid")
        )
    (old.path / "images" / "steps").rename(old.path / "images" / "denoising")
    resume_here(old, "trainer.max_steps=4")
    assert sorted(path.name for path in (old.path / "images" / "steps").iterdir()) == [
        "step=00000004.png",
        "step=00000004.webp",
    ]


def test_a_run_that_makes_no_images_says_so(run: RunFolder, tmp_path: Path) -> None:
    judge = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    text = judge.config_path.read_text()
    judge.config_path.write_text(text.replace("lightning_modules.DDPM", "lightning_modules.LabelClassifierModule"))
    with pytest.raises(UserError, match="this run makes no images: give one that restores, fills"):
        generate.main([f"run={judge.path}", f"output={tmp_path / 'out'}"])
