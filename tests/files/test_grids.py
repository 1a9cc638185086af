"""Grids of pictures: rows of equal length, as many as are asked for."""

from __future__ import annotations

import torch
from PIL import Image

from files.grids import picture_grid


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
