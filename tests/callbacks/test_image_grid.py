"""Grids are written whole, at the right steps, with the right weights, and show the images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image

from callbacks import ImageGrid, StepsGrid
from files.grids import GAP, NOTE_SIZE, read_grid, render_grid, write_png
from generative.types import Batch, State


def _contains(grid: np.ndarray, patch: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(grid, patch.shape)
    return bool((windows == patch).all(axis=(-3, -2, -1)).any())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_appear_enlarged_by_whole_pixels(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (2, channels, 24, 24), generator=generator)
    images = levels / 127.5 - 1
    grid = np.asarray(render_grid({"clean": images, "sample": -images}, "title", ["a", "b"], {"sample": ["1", "2"]}))
    expected = levels[1].expand(3, -1, -1).permute(1, 2, 0).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert _contains(grid, expected[:8].numpy().astype(np.uint8))
    assert (grid[0] == 255).all()
    assert (grid[-1] == 255).all()


def test_notes_take_room_and_rows_must_agree() -> None:
    images = torch.zeros(2, 1, 32, 32)
    plain = render_grid({"clean": images})
    with_notes = render_grid({"clean": images}, notes={"clean": ["20 dB", "21 dB"]})
    assert with_notes.width == plain.width
    assert with_notes.height > plain.height
    with pytest.raises(ValueError, match="one shape"):
        render_grid({"clean": images, "sample": images[:1]})


def test_notes_of_several_lines_and_of_any_width_fit() -> None:
    images = torch.zeros(2, 1, 32, 32)
    one, three = (render_grid({"clean": images}, notes={"clean": ["a", text]}) for text in ("a", "a\na\na"))
    assert three.width == one.width
    assert three.height - one.height == 2 * (NOTE_SIZE + GAP)
    long = np.asarray(render_grid({"clean": images}, notes={"clean": ["a", "a note that is wider than the image"]}))
    assert long.shape[1] > one.width
    assert (long[:, :3] == 255).all()
    assert (long[:, -3:] == 255).all()
    titled = np.asarray(render_grid({"clean": images[:1]}, "a title that is wider than the one image below it"))
    assert (titled[:, -3:] == 255).all()
    assert titled.shape[1] > one.width


def test_an_interrupted_write_leaves_the_previous_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "grid.png"
    write_png(Image.new("RGB", (4, 4), (9, 9, 9)), path)
    before = path.read_bytes()

    def interrupted(image: Image.Image, file, **options) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_png(Image.new("RGB", (4, 4)), path)
    assert path.read_bytes() == before


def test_grids_of_a_fit_and_a_test(restorer, data, make_trainer, tmp_path) -> None:
    swaps = []

    class FakeEMA(Callback):
        @contextmanager
        def swapped(self, module):
            swaps.append("in")
            yield
            swaps.append("out")

    trainer = make_trainer(FakeEMA(), ImageGrid(num_images=3, every_n_steps=4, first_step=2))
    trainer.fit(restorer, data)
    in_training = restorer.training
    trainer.test(restorer, data, verbose=False)
    names = {path.name for path in (tmp_path / "images" / "restoration").iterdir()}
    assert names == {f"step={step:08d}.png" for step in (2, 4, 8, 10)}
    folder = tmp_path / "images" / "test"
    assert {path.name for path in folder.iterdir()} == {
        "step=00000010.png", "images.json", "clean", "degraded", "sample", "mean",
    }  # fmt: skip
    listed = json.loads((folder / "images.json").read_text())
    assert (listed["index"], listed["step"], listed["labels"]) == ([0, 1, 2], 10, None)
    assert listed["psnr"]["mean"] == pytest.approx([26.02] * 3, abs=0.01)
    clean = data.batch("test", [2]).image[0, 0]
    with Image.open(folder / "clean" / "000002.png") as image:
        assert np.array_equal(np.asarray(image), ((clean + 1) * 127.5).round().numpy())
    assert swaps == ["in", "out"] * 5
    assert in_training
    assert not restorer.frozen.training  # its own mode, although the module trains
    assert not any(restorer.was_training_in_sample)
    with Image.open(tmp_path / "images" / "restoration" / "step=00000002.png") as image:
        assert image.height > 4 * 96  # clean, degraded, sample, mean
        assert len(image.getcolors(maxcolors=2**16)) > 50


def test_a_split_with_fewer_images_gives_a_narrower_grid(restorer, data, make_trainer, tmp_path) -> None:
    make_trainer(ImageGrid(num_images=100)).test(restorer, data, verbose=False)
    with Image.open(tmp_path / "images" / "test" / "step=00000000.png") as image:
        assert 10 * 96 < image.width < 12 * 96


def test_grids_go_to_tensorboard(restorer, data, make_trainer, tmp_path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="")
    calls = []
    logger.experiment.add_image = lambda name, image, step, dataformats: calls.append((name, image.ndim, step))
    trainer = make_trainer(ImageGrid(num_images=2, every_n_steps=100, first_step=1), logger=logger, max_steps=1)
    trainer.fit(restorer, data)
    assert calls == [("images/restoration", 3, 1)]


def test_steps_grid_shows_states_over_estimates(
    restorer: Any, data: Any, make_trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, torch.Tensor] = {}

    def states(batch: Any, randomness: Any) -> Iterator[State]:
        for step in range(7):
            yield State(torch.full_like(batch.image, step / 8), batch.image)

    def render(rows: dict[str, torch.Tensor], title: str, captions: list[str]) -> Image.Image:
        shown.update(rows)
        assert captions == ["1 of 7", "3 of 7", "5 of 7", "7 of 7"]
        return render_grid(rows, title, captions)

    restorer.states = states
    monkeypatch.setattr("callbacks.steps_grid.render_grid", render)
    trainer = make_trainer(StepsGrid(num_images=2, num_columns=4, every_n_steps=5))
    trainer.fit(restorer, datamodule=data)
    shown.clear()
    trainer.test(restorer, data, verbose=False)
    written = sorted(str(path.relative_to(tmp_path / "images")) for path in tmp_path.rglob("step=*.png"))
    assert written == ["steps/step=00000005.png", "steps/step=00000010.png", "steps_test/step=00000010.png"]
    assert list(shown) == ["test 0", "estimate 0", "test 1", "estimate 1"]
    assert shown["test 1"][:, 0, 0, 0].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert torch.equal(shown["estimate 1"][2], data.batch("test", [1]).image[0])


@pytest.mark.parametrize("num_states", [0, 1])
def test_steps_grid_draws_nothing_where_there_is_no_way(
    num_states: int, restorer: Any, data: Any, make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    restorer.states = lambda batch, randomness: iter([State(batch.image, batch.image)] * num_states)
    make_trainer(StepsGrid()).test(restorer, data, verbose=False)
    assert not list(tmp_path.rglob("*.png"))


def test_what_diverged_is_told_and_in_no_picture(
    restorer: Any, data: Any, make_trainer: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = restorer.sample

    def sample(batch: Batch, randomness: Any) -> dict[str, torch.Tensor]:
        images = whole(batch, randomness)
        images["sample"][0, 0, 0, 0] = torch.nan
        return images

    restorer.sample = sample
    restorer.states = lambda batch, randomness: iter([State(batch.image, batch.image * n) for n in (1, torch.nan)])
    make_trainer(ImageGrid(num_images=2), StepsGrid()).test(restorer, data, verbose=False)
    folder = tmp_path / "images" / "test"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"clean", "degraded", "mean"}
    assert "sample" not in json.loads((folder / "images.json").read_text())["outputs"]
    assert list(read_grid(folder / "step=00000000.png")) == ["clean", "degraded", "mean"]
    assert not (tmp_path / "images" / "steps_test").exists()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not in")]
    assert told == ["not in images/test: sample diverged", "not in images/steps_test: step 2 of 2 diverged"]
    restorer.sample = lambda batch, randomness: {"sample": batch.image * torch.nan}
    make_trainer(ImageGrid(num_images=2, key="other")).test(restorer, data, verbose=False)
    with pytest.raises(ValueError, match="values that are no numbers"):
        render_grid({"a": torch.full((1, 1, 2, 2), torch.nan)})


def test_a_module_that_makes_no_images_has_no_grids(
    restorer: Any, data: Any, make_trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(restorer), "images_of")
    make_trainer(ImageGrid(), StepsGrid()).test(restorer, data, verbose=False)
    assert not list(tmp_path.rglob("*.png"))


def test_reconstructions_get_their_psnr_without_a_degradation(
    restorer: Any, data: Any, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def render(rows: Any, title: str, captions: Any, notes: Any) -> Image.Image:
        calls.append((list(rows), notes, title))
        return render_grid(rows, title, captions, notes)

    def plain(split: str, indices: Any, device: Any = "cpu") -> Batch:
        batch = type(data).batch(data, split, indices, device)
        return Batch(batch.image, batch.index)

    monkeypatch.setattr("callbacks.image_grid.render_grid", render)
    monkeypatch.setattr(data, "batch", plain)
    for task, output, notes in (
        ("reconstruct", "reconstruction", {"reconstruction": ["26.0 dB"] * 2}),
        ("generate", "sample", {}),
    ):
        restorer.current_tasks = frozenset({task})
        restorer.sample = lambda batch, randomness, output=output: {output: batch.image + 0.1}
        trainer = make_trainer()
        trainer.datamodule = data
        ImageGrid(num_images=2).on_test_epoch_end(trainer, restorer)
        rows, seen, title = calls.pop()
        assert rows == ["data", output]
        assert seen == notes
        assert ("PSNR" in title) == bool(notes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepsGrid(num_images=0), r"callbacks\.steps_grid\.num_images"),
        (lambda: StepsGrid(num_columns=0), r"callbacks\.steps_grid\.num_columns=0"),
        (lambda: ImageGrid(every_n_steps=0), r"callbacks\.image_grid\.every_n_steps=0"),
    ],
)
def test_bad_settings_name_their_key(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
