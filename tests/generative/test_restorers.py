"""Convolutional baselines: as large as published, answering to the degraded image alone, at any size and in tiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from generative.networks import RRDB, DnCNN, DRUNet, SwinIR
from generative.tiling import Tiling
from generative.types import Condition

GREY = {"in_channels": 1, "condition_channels": 2}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_are_the_published_ones_but_for_the_validity_map() -> None:
    more = 64 * 9  # weights of the first convolution for the map
    with torch.device("meta"):
        _assert_sizes(more)


def _assert_sizes(more: int) -> None:
    assert parameters(DnCNN(in_channels=1, condition_channels=2)) == 556_096 + more
    assert parameters(DRUNet(in_channels=1, condition_channels=2)) == 32_638_656  # which has a map of the noise level
    light = SwinIR(in_channels=3, condition_channels=4, dim=60, depths=[6] * 4)
    doubling = 60 * 9 * (4 * 3 - 3) + (4 * 3 - 3)  # of the authors' network for x2, which writes four pixels for one
    assert parameters(light) + doubling == 910_152 + 60 * 9  # as their code counts it
    up_convolutions = 2 * (64 * 64 * 9 + 64)
    assert parameters(RRDB(in_channels=3, condition_channels=4)) == 16_697_987 - up_convolutions + more


@pytest.mark.parametrize(
    "network",
    [
        DnCNN(width=8, depth=4, **GREY),
        RRDB(width=8, growth=4, depth=1, **GREY),
        DRUNet(widths=[4, 6], num_blocks=1, **GREY),
        SwinIR(dim=8, depths=[1], num_heads=2, window_size=4, **GREY),
    ],
)
def test_any_size_in_tiles_as_whole(network: nn.Module) -> None:
    network = network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        image = torch.randn(2, 2, 70, 121, dtype=torch.float64)
        times = torch.ones(2, 1)
        (whole,) = network(torch.zeros(2, 1, 70, 121), times, Condition(image))
        assert not torch.equal(whole, image[:, :1])
        (again,) = network(torch.randn(2, 1, 70, 121), times * 0.3, Condition(image))
        assert torch.equal(whole, again)
        side, sees = 4 * network.sees + 24, network.sees
        for tiling in (
            Tiling(side, 2 * sees + 1, 3, network.grid, sees),
            Tiling(side, 4 * sees, 3, network.grid),
        ):
            (tiled,) = tiling.network(network)(torch.zeros(2, 1, 70, 121, dtype=torch.float64), times, Condition(image))
            torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("settings"), [{"condition_channels": 0}, {"num_outputs": 2}, {"label_factors": [3]}])
def test_what_it_has_not_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="network=dncnn answers to the degraded image alone.*module=regression"):
        DnCNN(**GREY | settings)


def test_twice_the_contrast_has_twice_the_answer() -> None:
    network, image = DRUNet(widths=[4, 6, 8], num_blocks=1, **GREY).double(), torch.randn(1, 2, 20, 24).double()
    (once,), (twice,) = (network(image[:, :1], torch.ones(1, 1), Condition(c * image)) for c in (1, 2))
    torch.testing.assert_close(twice, 2 * once)


def test_only_dense_blocks_begin_small() -> None:
    """A tenth of He et al.'s deviation there, as published; with all layers so, no gradient reached the first ones."""
    network = RRDB(width=32, growth=16, depth=2, **GREY)
    for block in (dense for blocks in network.blocks for dense in blocks):
        for layer in block.layers:
            wanted = 0.1 * math.sqrt(2 / layer.weight[0].numel())
            assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.1)
    assert float(network.trunk.weight.detach().std()) == pytest.approx(1 / math.sqrt(3 * 9 * 32), rel=0.1)
    image = torch.randn(2, 2, 16, 16)
    network(image[:, :1], torch.ones(2, 1), Condition(image))[0].square().mean().backward()
    assert float(network.blocks[0][0].layers[0].weight.grad.square().mean().sqrt()) > 1e-7


def test_a_window_sees_itself_alone_until_windows_are_shifted() -> None:
    network = SwinIR(dim=8, depths=[2], num_heads=2, window_size=4, **GREY).groups[0].blocks.double()
    features = torch.randn(1, 16, 16, 8, dtype=torch.float64, requires_grad=True)

    def seen_from(row: int, column: int, layers: nn.Module) -> list[list[int]]:
        (gradient,) = torch.autograd.grad(layers(features)[0, row, column].sum(), features)
        marked = gradient[0].abs().sum(2) > 1e-20  # what is masked has a weight of exp(-100)
        return [sorted({int(place) for place in marked.nonzero()[:, axis]}) for axis in (0, 1)]

    assert seen_from(5, 9, network[:1]) == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert seen_from(5, 9, network[1:]) == [[2, 3, 4, 5], [6, 7, 8, 9]]  # moved by half a window
    assert seen_from(0, 0, network[1:]) == [[0, 1], [0, 1]]  # what is moved over the edge is not seen there
    assert seen_from(5, 9, network) == [list(range(8)), list(range(4, 12))]


@pytest.mark.parametrize(("settings", "message"), [({"dim": 9}, "multiple of"), ({"window_size": 5}, "must be even")])
def test_sizes_of_windows_and_heads_that_do_not_fit_are_told(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinIR(**{"dim": 8, "num_heads": 2, "depths": [1], **GREY, **settings})
