"""Between pixels and tokens: token masks, the receptive radius, and composites."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.inpainting import composite, gray_patches, receptive_radius, token_mask

SIZE, GRID, PATCH = 32, 8, 4


def validity(rows: int = 40, size: int = SIZE) -> Tensor:
    """Holes of one pixel, of a rectangle, or none."""
    source = torch.Generator().manual_seed(0)
    known = torch.ones(rows, 1, size, size)
    for row in range(1, rows):
        top, left = torch.randint(size, (2,), generator=source).tolist()
        height, width = torch.randint(1, 12, (2,), generator=source).tolist() if row % 2 else (1, 1)
        known[row, 0, top : top + height, left : left + width] = 0
    return known


@pytest.mark.parametrize("dilation", [0, 1, 2, 7, 20])
def test_token_mask_covers_the_hole_and_what_is_around(dilation: int) -> None:
    known = validity()
    unknown = token_mask(known, GRID, dilation).view(-1, GRID, GRID)
    expected = torch.zeros_like(unknown)
    for row, _, y, x in (known == 0).nonzero().tolist():
        top, left = y // PATCH, x // PATCH
        expected[row, max(0, top - dilation) : top + dilation + 1, max(0, left - dilation) : left + dilation + 1] = True
    assert torch.equal(unknown, expected)
    assert not unknown[0].any()


def test_token_masks_are_row_major_also_of_oblong_images() -> None:
    known = torch.ones(1, 1, 8, 16)
    known[0, 0, 1, 15] = 0
    assert token_mask(known, 4).nonzero().tolist() == [[0, 3]]


def test_a_grid_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.image_size: images of 32x32 .*5x5"):
        token_mask(validity(2), 5)


def stack(*convolutions: tuple[int, int], channels: int = 4) -> nn.Sequential:
    """Convolutions of (kernel, stride) on the folded image of 8 x 8, padded to keep the size."""
    layers: list[nn.Module] = []
    channels_in = 3
    for kernel, stride in convolutions:
        layers += [
            nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2 if stride == 1 else 0),
            nn.SiLU(),
        ]
        channels_in = channels
    return nn.Sequential(*layers)


ENCODERS = {
    "patches alone": (stack((4, 4)), 0),
    "pointwise": (stack((1, 1), (4, 4), (1, 1)), 0),
    "pixels before": (stack((3, 1), (4, 4)), 1),
    "five pixels before": (stack((3, 1), (5, 1), (3, 1), (4, 4)), 1),  # 4 pixels
    "six pixels before": (stack((7, 1), (5, 1), (4, 4)), 2),
    "tokens after": (stack((4, 4), (3, 1), (3, 1)), 2),
    "between two halvings": (stack((2, 2), (3, 1), (2, 2)), 1),
    "everywhere": (stack((3, 1), (2, 2), (3, 1), (2, 2), (3, 1)), 2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_radius_of_convolutions(name: str) -> None:
    encoder, expected = ENCODERS[name]
    assert receptive_radius(encoder, SIZE, 3, GRID) == expected


def test_radius_does_not_depend_on_the_weights() -> None:
    encoder = stack((3, 1), (4, 4), (3, 1))
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    assert receptive_radius(encoder, SIZE, 3, GRID) == 2


@pytest.mark.parametrize(("axis", "shift"), [(2, 3), (3, -2), (3, 1)])
def test_radius_of_a_network_that_looks_one_way(axis: int, shift: int) -> None:
    def encode(image: Tensor) -> Tensor:
        patches = F.avg_pool2d(image, PATCH)
        shifted = torch.zeros_like(patches)
        length = GRID - abs(shift)
        shifted.narrow(axis, max(0, shift), length).copy_(patches.narrow(axis, max(0, -shift), length))
        return patches + shifted

    assert receptive_radius(encode, SIZE, 3, GRID) == abs(shift)


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 4), nn.Sequential(nn.Flatten(2), nn.Softmax(dim=-1), nn.Unflatten(2, (GRID, GRID)))],
    ids=str,
)
def test_what_mixes_all_positions_is_global(norm: nn.Module) -> None:
    assert receptive_radius(nn.Sequential(stack((4, 4)), norm), SIZE, 3, GRID) == GRID - 1


def test_radius_equals_that_of_probing_patch_by_patch() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 5, 2, padding=1), nn.Conv2d(4, 4, 3, 2, padding=1, padding_mode="reflect"))
    worst = 0
    for top in range(GRID):
        for left in range(GRID):
            image = torch.zeros(1, 3, SIZE, SIZE)
            image[..., top * PATCH : (top + 1) * PATCH, left * PATCH : (left + 1) * PATCH] = float("nan")
            with torch.no_grad():
                reached = F.pad(encoder(image), (0, 1, 0, 1))[..., :GRID, :GRID].isnan()[0].any(0).nonzero()
            worst = max(worst, int((reached - torch.tensor([top, left])).abs().max()))
    padded = nn.Sequential(encoder, nn.ZeroPad2d((0, 1, 0, 1)))
    assert receptive_radius(lambda image: padded(image)[..., :GRID, :GRID], SIZE, 3, GRID) == worst


@torch.no_grad()
def test_the_fill_of_a_hole_flips_no_token_outside_of_the_dilated_mask() -> None:
    torch.manual_seed(0)
    encoder = stack((3, 1), (4, 4), (3, 1))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    radius = receptive_radius(encoder, SIZE, 3, GRID)
    assert radius == 2
    image, known = torch.rand(60, 3, SIZE, SIZE) * 2 - 1, torch.ones(60, 1, SIZE, SIZE)
    known[:, :, 12:20, 8:16] = 0  # whole patches, so that the outermost pixels of those around see it
    clean = encoder(image)
    scale, codes = clean.std(), torch.randn(1, 2048, 4)

    def tokens(fill: float) -> Tensor:
        z = encoder(torch.where(known == 0, torch.tensor(fill), image)) / scale
        return torch.cdist(z.flatten(2).mT, codes).argmin(dim=-1)

    flipped = torch.stack([tokens(fill) != tokens(-1.0) for fill in (-0.3, 0.4, 1.0)]).any(dim=0)
    assert not (flipped & ~token_mask(known, GRID, radius)).any()
    assert (flipped & ~token_mask(known, GRID, radius - 1)).any()


def pictures(rows: int = 40) -> tuple[Tensor, Tensor]:
    degraded, decoded = torch.rand(2, rows, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return degraded, decoded


def test_composites_keep_every_known_pixel_to_the_last_bit() -> None:
    degraded, decoded = pictures()
    known = validity()
    out = composite(degraded, known, decoded)
    inside = (known == 0).expand_as(out)
    assert torch.equal(out[inside], decoded[inside])
    assert torch.equal(out[~inside], degraded[~inside])


def distance_to_hole(known_HW: Tensor) -> Tensor:
    """(H, W) Chebyshev distances in pixels, by brute force."""
    hole = (known_HW == 0).nonzero()
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    pixel = torch.stack([y, x], dim=-1).flatten(0, 1)
    return (pixel[:, None] - hole).abs().amax(dim=-1).amin(dim=1).view(SIZE, SIZE)


@pytest.mark.parametrize("feather", [1, 3, 6])
def test_feathers_fade_out_linearly_outside_of_the_hole(feather: int) -> None:
    degraded, decoded = torch.zeros(40, 3, SIZE, SIZE), torch.ones(40, 3, SIZE, SIZE)
    known = validity()
    weight = composite(degraded, known, decoded, feather)
    assert (weight[0] == 0).all()  # no hole
    for row in range(1, 40):
        expected = (1 - distance_to_hole(known[row, 0]) / (feather + 1)).clamp(min=0)
        torch.testing.assert_close(weight[row], expected.expand(3, -1, -1))


@pytest.mark.parametrize("feather", [1, 4])
def test_feathers_leave_the_hole_and_far_pixels_to_the_last_bit(feather: int) -> None:
    degraded, decoded = pictures()
    known = validity()
    out = composite(degraded, known, decoded, feather)
    for row in range(1, 40):
        distance = distance_to_hole(known[row, 0])
        assert torch.equal(out[row][:, distance == 0], decoded[row][:, distance == 0])
        assert torch.equal(out[row][:, distance > feather], degraded[row][:, distance > feather])
    assert torch.equal(out[0], degraded[0])


def test_composites_keep_known_pixels_beside_decoded_ones_of_half_precision() -> None:
    degraded, decoded = pictures()
    out = composite(degraded, validity(), decoded.bfloat16(), feather=2)
    assert out.dtype is torch.float32
    assert torch.equal(out[0], degraded[0])


def test_grey_patches_are_those_of_unknown_tokens() -> None:
    image, _ = pictures(2)
    unknown = torch.zeros(2, GRID**2, dtype=torch.bool)
    unknown[1, 2 * GRID + 5] = True
    out = gray_patches(image, unknown, GRID)
    assert torch.equal(out[0], image[0])
    assert (out[1, :, 8:12, 20:24] == 0).all()
    assert ((out[1] == image[1]).sum() == 3 * (SIZE**2 - PATCH**2)).item()
