"""Images and the whole numbers of files: a round trip that loses nothing, and what lies outside the range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from files.images import Picture
from files.pixels import drawn, fill, from_levels, seen, to_bytes, to_levels, to_pixels


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


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_seen_over_white_goes_back_under_the_opacity(shape: tuple[int, ...], channels: int) -> None:
    random = np.random.default_rng(0)
    pixels, alpha = (random.integers(0, 256, size, dtype=np.uint8) for size in (shape, (32, 32)))
    alpha[:, :2] = 0, 255
    picture = Picture(pixels, alpha)
    image = seen(picture, channels)
    assert np.array_equal(
        drawn(picture, image).pixels, pixels
    )  # nothing changed: the file's own, also what nobody sees
    darker = from_levels(to_levels(image) * 0.9)
    shown = np.asarray(drawn(picture, darker).shown(1 if pixels.ndim == 2 else 3)).astype(float)
    wanted = to_levels(darker).flatten(0, 1)[: 1 if pixels.ndim == 2 else 3].permute(1, 2, 0).numpy().reshape(shape)
    possible = wanted >= 255 - (
        alpha if pixels.ndim == 2 else alpha[..., None]
    )  # a faint pixel is never dark over white
    assert abs(shown - wanted)[possible].max() <= 1
    filled = fill(picture, np.ones((32, 32), bool), darker)
    assert np.array_equal(filled.pixels, wanted)  # it is opaque
