"""Grids of pictures: rows of equal length, as many as are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from files.grids import picture_grid, read_grid, render_grid, write_png


def test_pictures_stand_in_four_rows_of_eight() -> None:
    images = torch.zeros(40, 3, 16, 16)
    notes = ["red cube\nblue sphere"] * 40
    full, fewer, few = (picture_grid(images[:n], "title", notes[:n], max_rows=4) for n in (32, 20, 3))
    assert isinstance(full, Image.Image)
    assert picture_grid(images, "title", notes, max_rows=4).size == full.size
    assert fewer.width == full.width
    assert fewer.height < full.height
    assert few.width < fewer.width
    assert picture_grid(images, "title", notes).height > full.height  # without a limit all are there
    assert picture_grid(images, "title").height < picture_grid(images, "title", notes).height


@pytest.mark.parametrize("side", [8, 200])
def test_a_grid_is_read_back(side: int, tmp_path: Path) -> None:
    values = torch.randint(0, 256, (2, 3, 3, side, side), generator=torch.Generator().manual_seed(0))
    rows = dict(zip(("clean", "mean"), values / 127.5 - 1, strict=True))
    write_png(render_grid(rows, "title", ["a", "b", "c"], {"mean": ["1 dB", "2 dB\n✗ red"]}), tmp_path / "grid.png")
    found = read_grid(tmp_path / "grid.png")
    assert list(found) == ["clean", "mean"]
    assert [note for _, note in found["mean"]] == ["1 dB", "2 dB\n✗ red", ""]
    for number, caption in enumerate(found):
        for image, (picture, _) in zip(values[number], found[caption], strict=True):
            assert (np.array(picture) == image.permute(1, 2, 0).numpy()).all()
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="draw it again"):
        read_grid(tmp_path / "other.png")
