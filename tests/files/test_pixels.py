"""Images and the whole numbers of files: a round trip that loses nothing, and what lies outside the range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from files.pixels import from_levels, to_bytes, to_levels, to_pixels


def test_every_byte_comes_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_levels(every)), every)
    assert torch.equal(to_levels(from_levels(every)), every.float())


@pytest.mark.parametrize(("kind", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_what_lies_outside_is_black_or_white(kind: type, white: int) -> None:
    image = torch.tensor([[[-9.0, -1.0, 1.0, 1.2]]])
    assert to_pixels(image, kind).tolist() == [[0, 0, white, white]]
    assert to_pixels(image.expand(3, 1, 4), kind).shape == (1, 4, 3)
    assert to_bytes(image).flatten().tolist() == [0, 0, 255, 255]
