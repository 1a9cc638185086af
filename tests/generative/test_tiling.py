"""Tiles of an image: what is put together from them is what the whole image would give."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from generative.tiling import Tiling, padded
from generative.types import Batch, Condition


@pytest.mark.parametrize(("size", "overlap"), [(16, 4), (32, 8), (28, 7), (8, 0), (10, 9)])
@pytest.mark.parametrize("more", [0, 1, 5, 30, 77])
def test_the_weights_of_all_tiles_sum_to_one_in_every_pixel(size: int, overlap: int, more: int) -> None:
    length, total = size + more, torch.zeros(size + more)
    places = Tiling(size, overlap).places(length)
    for start, weight in places:
        total[start : start + size] += weight
    torch.testing.assert_close(total, torch.ones(length))
    starts = [start for start, _ in places]
    assert (starts[0], starts[-1]) == (0, more)
    assert all(right - left <= size - overlap for left, right in pairwise(starts))


class Convolutions(nn.Module):
    """Sees two pixels to each side of its own, the times, the condition's image and labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1))
        self.rows: list[int] = []

    def forward(self, x: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        self.rows.append(len(x))
        out = self.layers(torch.cat([x, condition.image], 1)) * times[:, :1, None, None]
        return (out + condition.labels.sum(1)[:, None, None, None]).chunk(2, dim=1)


def test_tiled_equals_whole_where_a_tile_sees_as_far_as_the_network() -> None:
    network = Convolutions()
    x, image, times = torch.randn(2, 2, 45, 61), torch.randn(2, 3, 45, 61), torch.tensor([[0.3], [0.9]])
    condition = Condition(image, torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    whole = network(x, times, condition)
    for overlap, equal in ((8, True), (4, False)):  # a quarter of the overlap is what the edge may spoil
        tiled = Tiling(16, overlap, at_once=7).network(network)(x, times, condition)
        assert max(network.rows[1:]) == 7
        for a, b in zip(whole, tiled, strict=True):
            assert torch.allclose(a, b, atol=1e-5) == equal


def test_an_image_of_the_size_of_a_tile_is_one_plain_call() -> None:
    network, x = Convolutions(), torch.randn(3, 2, 16, 16)
    condition = Condition(torch.randn(3, 3, 16, 16), torch.zeros(3, 1))
    times = torch.ones(3, 1)
    for a, b in zip(network(x, times, condition), Tiling(16, 4).network(network)(x, times, condition), strict=True):
        assert torch.equal(a, b)


def batch_of(image: Tensor, validity: Tensor) -> Batch:
    return Batch(image, torch.arange(len(image)), degraded=image * validity, validity=validity)


def test_what_sees_each_pixel_by_itself_is_blended_without_a_trace() -> None:
    image = torch.randn(2, 1, 40, 27)
    seen: list[Tensor] = []

    def double(batch: Batch) -> Tensor:
        seen.append(batch.index)
        return 2 * batch.observed()[0]

    result = Tiling(16, 4).blended(double, batch_of(image, torch.ones(2, 1, 40, 27)))
    torch.testing.assert_close(result, 2 * image)
    assert torch.equal(seen[0], torch.arange(2))  # the first tile draws what the image would draw
    assert len({int(row) for index in seen for row in index}) == 2 * len(seen)


def test_holes_are_filled_from_their_rims_and_known_pixels_stay() -> None:
    image, validity = torch.randn(2, 1, 64, 48), torch.ones(2, 1, 64, 48)
    validity[..., 10:60, 5:45] = 0
    shares: list[float] = []

    def nearest(batch: Batch) -> Tensor:
        degraded, known = batch.observed()
        shares.append(float(known.mean()))
        assert torch.equal(degraded * (1 - known), torch.zeros_like(degraded))
        return degraded.sum((2, 3), keepdim=True).div(known.sum((2, 3), keepdim=True)).expand_as(degraded)

    result = Tiling(16, 8).outside_in(nearest, batch_of(image, validity))
    assert torch.equal(result[validity.expand_as(result) == 1], image[validity.expand_as(image) == 1])
    assert result.isfinite().all()
    assert min(shares) > 0.2  # no tile is asked that sees next to nothing
    assert Tiling(16, 8).outside_in(nearest, batch_of(image, torch.ones_like(validity))).equal(image)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 20), (16, 5)])
def test_small_images_go_on_as_their_mirror_images(height: int, width: int) -> None:
    image = torch.arange(float(height * width)).view(1, height, width)
    result = padded(image, 16)
    assert result.shape == (1, max(height, 16), max(width, 16))
    assert torch.equal(result[:, :height, :width], image)
    if height == 3:
        assert result[0, :8, 0].tolist() == [0, 20, 40, 40, 20, 0, 0, 20]
