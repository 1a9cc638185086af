"""Degradations: range, shape, determinism, validity maps, and equality with independent implementations."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from scipy import ndimage, stats
from scipy.ndimage import label
from skimage.feature import canny
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, affine

from datamodules.embedded.digits import DigitsDataModule
from generative.degradations import (
    Affine,
    BlockMask,
    BrushMask,
    CannyEdges,
    Degradation,
    Downsample,
    GaussianBlur,
    GaussianNoise,
    Greyscale,
    Jpeg,
    Mixture,
    MotionBlur,
    PoissonNoise,
    Quantisation,
    SaltAndPepper,
    Sequential,
    Severity,
)
from generative.degradations.blur import gaussian_kernel, motion_kernel
from generative.degradations.edges import connected
from generative.degradations.levels import _counts
from generative.randomness import IndexRandomness, StepRandomness, generator_for
from generative.types import Degraded

CONF = Path(__file__).parents[2] / "conf" / "degradation"
PRESETS = sorted(path.stem for path in CONF.glob("*.yaml"))
MASKS = ["block_mask", "brush_mask", "holes"]
COLOUR = {"greyscale": 3}  # channels that a preset needs


def load(preset: str) -> Degradation:
    return instantiate(OmegaConf.load(CONF / f"{preset}.yaml"), _convert_="all")


def images(batch_size: int, channels: int = 1, height: int = 32, width: int = 32) -> Tensor:
    """Smooth images with some noise that use the whole range [-1, 1]."""
    generator = generator_for(0, "test images")
    coarse = torch.rand(batch_size, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (2.2 * smooth - 1.1 + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


def by_step(batch_size: int, step: int = 0) -> StepRandomness:
    return StepRandomness(generator_for(0, "test", step), batch_size)


def by_index(*index: int) -> IndexRandomness:
    return IndexRandomness.for_images(0, "test", torch.tensor(index))


def test_the_presets_of_the_issue_exist():
    names = "gaussian salt_pepper block_mask brush_mask blur super_resolution jpeg mixed holes"
    names += " poisson quantisation greyscale affine canny noise_sigma bicubic"
    assert set(names.split()) == set(PRESETS)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (3, 33, 21), (1, 18, 47)])
@pytest.mark.parametrize("preset", PRESETS)
def test_shape_range_and_validity(preset, shape, training):
    clean = images(6, COLOUR.get(preset, shape[0]), *shape[1:])
    before = clean.clone()
    degraded = load(preset)(clean, by_step(6), training)

    assert torch.equal(clean, before)
    assert degraded.image.shape == clean.shape
    assert degraded.image.dtype == clean.dtype
    assert degraded.image.is_contiguous()
    if preset != "noise_sigma":
        assert degraded.image.min() >= -1
        assert degraded.image.max() <= 1
    assert not torch.equal(degraded.image, clean)
    assert degraded.validity.shape == (6, 1, *shape[1:])
    assert ((degraded.validity == 0) | (degraded.validity == 1)).all()
    known = degraded.validity.expand_as(clean).bool()
    assert torch.equal(degraded.image[known], clean[known])
    if preset in MASKS:
        assert 0 < degraded.validity.mean() < 1
    elif preset != "mixed":
        assert (degraded.validity == 0).all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_an_image_is_degraded_the_same_in_any_batch(preset, channels, training):
    degradation, clean = load(preset), images(7, COLOUR.get(preset, channels))

    def degrade(*rows: int) -> Degraded:
        return degradation(clean[list(rows)], by_index(*rows), training)

    whole = degrade(0, 1, 2, 3, 4, 5, 6)
    for rows in [(0, 1, 2), (3, 4, 5, 6), (6, 2, 4, 0, 5, 1, 3), (5,)]:
        part = degrade(*rows)
        assert torch.equal(part.image, whole.image[list(rows)])
        assert torch.equal(part.validity, whole.validity[list(rows)])


@pytest.mark.parametrize("preset", PRESETS)
def test_training_draws_are_a_function_of_the_step(preset):
    degradation, clean = load(preset), images(16, COLOUR.get(preset, 1))
    first, again, other = (degradation(clean, by_step(16, step), training=True) for step in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.validity, again.validity)
    if preset not in ("super_resolution", "bicubic", "greyscale"):
        assert (first.image != other.image).any() or (first.validity != other.validity).any()


@pytest.mark.parametrize("preset", ["mixed", "blur", "brush_mask"])
def test_evaluation_does_not_depend_on_the_training_range(preset):
    config = OmegaConf.load(CONF / f"{preset}.yaml")
    expected = instantiate(config, _convert_="all")(images(8), by_index(*range(8)))
    for step in config.steps.values():
        for key, value in step.items():
            if OmegaConf.is_dict(value):
                step[key] = {"train": [1, 1], "evaluation": value["evaluation"]}
    actual = instantiate(config, _convert_="all")(images(8), by_index(*range(8)))
    assert torch.equal(actual.image, expected.image)


def test_mixed_evaluates_at_the_values_of_the_issue():
    steps = load("mixed").steps
    zero, rows = torch.zeros(64, 1, 32, 32), by_step(64)
    assert torch.equal(steps["noise"].std.sample(rows, training=False), torch.full((64,), 0.7))
    share = (steps["salt_pepper"](zero, rows).image != 0).float().mean()
    assert share == pytest.approx(0.1, abs=0.005)
    block = steps["block"](zero + 1, rows)
    assert ((block.validity == 0).sum(dim=(1, 2, 3)) == 100).all()
    assert (block.image[block.validity == 0] == 0).all()


# Severity


def test_severity_forms():
    rows = by_step(2000)
    assert (Severity(0.5, "s").sample(rows, training=True) == 0.5).all()
    drawn = Severity([0.2, 0.6], "s").sample(rows, training=False)
    assert drawn.min() >= 0.2
    assert drawn.max() <= 0.6
    assert drawn.mean() == pytest.approx(0.4, abs=0.02)
    both = Severity({"train": [1, 3], "evaluation": 2}, "s", integer=True)
    assert (both.sample(rows, training=False) == 2).all()
    counts = both.sample(rows, training=True).unique(return_counts=True)
    assert counts[0].tolist() == [1, 2, 3]
    assert (counts[1] / 2000 - 1 / 3).abs().max() < 0.05


def test_a_fixed_severity_draws_nothing():
    row = by_index(0)
    state = row.generators[0].get_state()
    Severity({"train": [0, 1], "evaluation": 0.5}, "s").sample(row, training=False)
    assert torch.equal(row.generators[0].get_state(), state)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianNoise(std=[0.7, 0.1]), r"GaussianNoise\.std: low"),
        (lambda: GaussianNoise(std=-0.1), r"GaussianNoise\.std: must lie in \[0, inf\]"),
        (lambda: GaussianNoise(std="high"), r"GaussianNoise\.std: expected a number"),
        (lambda: GaussianNoise(std=None), "GaussianNoise: give one of std .* and sigma"),
        (lambda: GaussianNoise(std=0.1, sigma=25), "GaussianNoise: give one of std .* and sigma"),
        (lambda: GaussianNoise(sigma=-1), r"GaussianNoise\.sigma: must lie in"),
        (lambda: GaussianNoise(std=float("nan")), r"GaussianNoise\.std: expected a number"),
        (lambda: GaussianNoise(std=[0.1, 0.2, 0.3]), r"GaussianNoise\.std: expected a number"),
        (lambda: GaussianNoise(std={"train": 0.1, "test": 0.1}), r"GaussianNoise\.std: .* keys train and evaluation"),
        (lambda: GaussianNoise(std={"train": 0.1}), r"GaussianNoise\.std: .* keys train and evaluation"),
        (lambda: SaltAndPepper(amount=1.5), r"SaltAndPepper\.amount: must lie in \[0, 1\]"),
        (lambda: BlockMask(size=2.5), r"BlockMask\.size: expected whole"),
        (lambda: BlockMask(size=0), r"BlockMask\.size: must lie"),
        (lambda: BlockMask(size=4, num_blocks=0), r"BlockMask\.num_blocks"),
        (lambda: BlockMask(size=4, fill=2), r"BlockMask\.fill"),
        (lambda: BlockMask(size=4, image_size=0), r"BlockMask\.image_size"),
        (lambda: BrushMask(num_strokes=0, width=3, length=4), r"BrushMask\.num_strokes"),
        (lambda: MotionBlur(length=0), r"MotionBlur\.length"),
        (lambda: Downsample(factor=0), r"Downsample\.factor"),
        (lambda: Downsample(factor=2.0), r"Downsample\.factor"),
        (lambda: Downsample(factor=2, upsampling="cubic"), r"Downsample\.upsampling"),
        (lambda: Jpeg(quality=0), r"Jpeg\.quality"),
        (lambda: PoissonNoise(peak=0), r"PoissonNoise\.peak"),
        (lambda: Quantisation(levels=1), r"Quantisation\.levels"),
        (lambda: Affine(scale=0), r"Affine\.scale"),
        (lambda: CannyEdges(low=0.5, high=[0.4, 0.6]), r"CannyEdges\.low: must not exceed CannyEdges\.high"),
        (lambda: Sequential({}), r"Sequential\.steps"),
        (lambda: Sequential({"noise": None}), r"Sequential\.steps"),
        (lambda: Mixture({}), r"Mixture\.steps"),
        (lambda: Mixture({"a": GaussianNoise(1)}, weights={"b": 1}), r"Mixture\.weights: b is not"),
        (lambda: Mixture({"a": GaussianNoise(1)}, weights={"a": 0}), r"Mixture\.weights: must"),
    ],
)
def test_bad_arguments_name_the_parameter(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Pixel noise


def test_gaussian_noise_has_its_standard_deviation_before_the_clamp():
    for std in (0.05, 0.2):
        noise = GaussianNoise(std)(torch.zeros(16, 3, 32, 32), by_step(16)).image
        assert noise.std() == pytest.approx(std, rel=0.02)
        assert noise.mean() == pytest.approx(0, abs=0.005)


def test_noise_of_papers_has_its_grey_levels_and_is_not_cut():
    white = torch.ones(64, 1, 32, 32)
    noise = Sequential({"noise": GaussianNoise(sigma=25, clip=False)})(white, by_step(64)).image - white
    assert noise.std() * 127.5 == pytest.approx(25, rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.005)
    cut = GaussianNoise(std=50 / 255)(white, by_step(64)).image
    torch.testing.assert_close(GaussianNoise(sigma=25, clip=False)(white, by_step(64)).image.clamp(-1, 1), cut)


def test_salt_and_pepper_hits_its_share_in_all_channels():
    degraded = SaltAndPepper(0.2)(torch.zeros(64, 3, 32, 32), by_step(64)).image
    assert torch.equal(degraded[:, 0], degraded[:, 1])
    assert set(degraded.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert (degraded == 1).float().mean() == pytest.approx(0.1, abs=0.005)
    assert (degraded == -1).float().mean() == pytest.approx(0.1, abs=0.005)


# Masks


def test_blocks_are_whole_and_everywhere():
    validity = BlockMask({"train": [2, 5], "evaluation": 3})(
        images(4000, 1, 8, 6), by_step(4000), training=True
    ).validity
    area = (validity == 0).sum(dim=(1, 2, 3))
    assert set(area.unique().tolist()) == {4, 9, 16, 25}
    assert (validity == 0).any(dim=0).all()  # corners are reached too


def test_block_positions_are_uniform():
    hole = BlockMask(3)(torch.zeros(6000, 1, 5, 3), by_step(6000)).validity == 0
    first_row = hole[:, 0, :, 0].int().argmax(dim=1)
    assert (first_row.bincount(minlength=3) / 6000 - 1 / 3).abs().max() < 0.03


def test_several_blocks_and_fill():
    degraded = BlockMask(4, num_blocks=3, fill=[-1, 1])(images(200), by_step(200))
    area = (degraded.validity == 0).sum(dim=(1, 2, 3))
    assert area.max() == 48
    assert area.min() >= 16
    for image, validity in zip(degraded.image, degraded.validity, strict=True):
        assert len(image[validity == 0].unique()) == 1


def test_a_block_may_fill_the_image_but_not_exceed_it():
    assert (BlockMask(8)(images(2, 1, 8, 8), by_step(2)).validity == 0).all()
    with pytest.raises(ValueError, match=r"BlockMask\.size: .*9 pixels do not fit into images of 8x32"):
        BlockMask(9)(images(2, 1, 8, 32), by_step(2))


@pytest.mark.parametrize(("preset", "training"), [("block_mask", False), ("brush_mask", True), ("holes", True)])
def test_holes_are_in_proportion_to_the_images(preset, training):
    """The same draws at twice the size: each pixel of the small hole is about four of the large one."""
    small, large = (
        1 - load(preset)(torch.zeros(60, 1, s, s), by_index(*range(60)), training).validity for s in (32, 64)
    )
    shares = [hole.mean((1, 2, 3)) for hole in (small, large)]
    assert shares[1].mean() == pytest.approx(shares[0].mean().item(), rel=0.1)  # strokes lose their pixelated rim
    overlap = (torch.nn.functional.interpolate(small, scale_factor=2) - large).abs().mean()
    assert overlap < 0.35 * shares[0].mean()
    load(preset).check_images(8, 1)
    tiny = load(preset)(torch.zeros(50, 1, 8, 8), by_index(*range(50)), training)
    assert (tiny.validity.mean((1, 2, 3)) < 1).any()
    assert tiny.validity.mean() > 0


def test_block_sizes_of_other_images_are_whole_pixels():
    hole = BlockMask([6, 14], image_size=32)(torch.zeros(2000, 1, 20, 40), by_step(2000), training=True).validity == 0
    sides = hole.sum(dim=(1, 2, 3)).double().sqrt()
    assert set(sides.unique().tolist()) == {round(size * 20 / 32) for size in range(6, 15)}


def test_sizes_that_do_not_fit_are_refused_when_the_data_are_built():
    steps = {"noise": GaussianNoise(0.1), "block": BlockMask({"train": [6, 14], "evaluation": 10})}
    message = r"^degradation\.steps\.inner\.steps\.block\.size: blocks of up to 14 pixels do not fit into images of 8x8"
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(image_size=8, degradation=Sequential({"inner": Mixture(steps)}))
    DigitsDataModule(image_size=14, degradation=Mixture(steps))
    steps["block"] = BlockMask(33, image_size=32)
    with pytest.raises(
        ValueError, match=r"^degradation\.steps\.block\.size: blocks of up to 66 pixels do not fit into .* 64x64"
    ):
        DigitsDataModule(image_size=64, degradation=Mixture(steps))


def test_a_stroke_of_no_length_is_a_disc():
    hole = BrushMask(num_strokes=1, width=5, length=0)(torch.zeros(500, 1, 16, 16), by_step(500)).validity == 0
    area = hole.sum(dim=(1, 2, 3))
    assert area.max() == 21  # lattice points within 2.5 of a lattice point
    assert area.min() >= 8  # a quarter of the disc in a corner
    assert hole.any(dim=0).all()


def test_more_strokes_remove_more():
    share = [
        1 - BrushMask(num_strokes=n, width=3, length=6)(torch.zeros(200, 1, 32, 32), by_step(200)).validity.mean()
        for n in (1, 2, 4)
    ]
    assert 0.03 < share[0] < share[1] < share[2] < 0.5


# Filters


@pytest.mark.parametrize("sigma", [0.0, 0.6, 1.5, 3.0])
def test_gaussian_blur_equals_scipy(sigma):
    clean = images(2, 3, 21, 34)
    blurred = GaussianBlur({"train": 5, "evaluation": sigma})(clean, by_step(2)).image
    radius = int(np.ceil(4 * sigma))
    expected = ndimage.gaussian_filter(clean.numpy(), (0, 0, sigma, sigma), radius=(0, 0, radius, radius))
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)


def test_kernels_sum_to_one_and_are_what_they_say():
    sigma_B1 = torch.tensor([[0.3], [2.0]])
    torch.testing.assert_close(gaussian_kernel(sigma_B1, 8).sum(dim=1), torch.ones(2))
    length, angle = torch.tensor([1.0, 5.0, 5.0, 6.3, 5.0]), torch.tensor([33.0, 0.0, 90.0, 20.0, 45.0])
    kernel = motion_kernel(length, angle, radius=3)
    torch.testing.assert_close(kernel.sum(dim=(1, 2)), torch.ones(5))
    identity, box = torch.zeros(7, 7), torch.zeros(7, 7)
    identity[3, 3] = 1
    box[3, 1:6] = 0.2
    torch.testing.assert_close(kernel[0], identity)
    torch.testing.assert_close(kernel[1], box)
    torch.testing.assert_close(kernel[2], box.T)
    torch.testing.assert_close(kernel, kernel.flip(1, 2))
    assert kernel[4, 2, 4] > 3 * kernel[4, 4, 4]  # 45 degrees rises to the right


@pytest.mark.parametrize(
    "degradation",
    [GaussianBlur(2), MotionBlur([1, 9]), Downsample(3), Downsample(4, "nearest"), Downsample(64), Jpeg(30)],
    ids=lambda degradation: type(degradation).__name__,
)
def test_a_constant_stays_constant(degradation):
    for level in (-1.0, 25 / 127.5 - 1, 1.0):  # at quality 30 the DC step is 27/8 levels
        constant = torch.full((3, 3, 10, 7), level)
        degraded = degradation(constant, by_step(3)).image
        assert degraded.std() < 1e-4
        tolerance = 0.02 if isinstance(degradation, Jpeg) else 1e-4
        assert (degraded - constant).abs().max() < tolerance


def test_downsampling_keeps_block_means_only():
    clean = images(2, 3, 12, 8)
    nearest = Downsample(4, "nearest")(clean, by_step(2)).image
    torch.testing.assert_close(nearest[:, :, 4, 4], clean[:, :, 4:8, 4:8].mean(dim=(2, 3)))
    torch.testing.assert_close(Downsample(1)(clean, by_step(2)).image, clean)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_downsampling_equals_pillow(factor):
    clean = images(2, 1, 12 * factor, 9 * factor)
    small, large = [], []
    for image in clean[:, 0].numpy():
        size = image.shape[1] // factor, image.shape[0] // factor
        small.append(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        large.append(np.asarray(small[-1].resize(image.shape[::-1], Image.Resampling.BICUBIC)))
    exact = Downsample(factor, kernel="bicubic")._resampled(clean)[:, 0]
    torch.testing.assert_close(exact, torch.from_numpy(np.stack(large)), atol=2e-6, rtol=0)
    levels = [np.clip((np.asarray(image) + 1) * 127.5, 0, 255).round() for image in small]
    files = [Image.fromarray((each / 127.5 - 1).astype(np.float32)) for each in levels]
    shape = (9 * factor, 12 * factor)
    expected = np.stack([np.asarray(each.resize(shape, Image.Resampling.BICUBIC)) for each in files])
    rounded = Downsample(factor, kernel="bicubic", rounded=True)
    torch.testing.assert_close(
        rounded(clean, by_step(2)).image[:, 0], torch.from_numpy(expected).clamp(-1, 1), atol=2e-6, rtol=0
    )
    with pytest.raises(ValueError, match="Downsample is no linear map"):
        rounded.observation(torch.ones(1, 1, 4, 4))


# JPEG


def pil_jpeg(levels_HWC: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(levels_HWC.squeeze()).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer)).reshape(levels_HWC.shape)


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 95])
@pytest.mark.parametrize(("channels", "subsample_chroma"), [(1, True), (3, False), (3, True)])
def test_jpeg_equals_libjpeg(channels, subsample_chroma, quality):
    levels = ((images(4, channels, 45, 37) + 1) * 127.5).round()
    ours = Jpeg(quality, subsample_chroma)(levels / 127.5 - 1, by_step(4)).image
    ours = ((ours + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    theirs = [
        pil_jpeg(image, quality, subsampling=2 if subsample_chroma else 0)
        for image in levels.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    ]
    # What is left are libjpeg's fixed-point transforms; compression itself changes these images by 1.5 to 20 levels.
    assert np.abs(ours - np.stack(theirs)).mean() < 0.3


def test_jpeg_refuses_other_channels():
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        Jpeg(50)(images(1, 2), by_step(1))


# Counts, levels, colour, place, edges


@pytest.mark.parametrize("peak", [0.5, 8.0, 200.0])
def test_photons_have_the_poisson_distribution(peak):
    grey = torch.linspace(-1, 1, 5).repeat_interleave(40).repeat(8).view(5, 1, 16, 20)
    mean = (grey.double() + 1) / 2 * peak
    counts = torch.cat([_counts(mean, by_step(5, step).uniform(1, 16, 20), peak) for step in range(30)])
    for value in mean.unique().tolist():
        found = counts[mean.repeat(30, 1, 1, 1) == value].numpy()
        assert found.mean() == pytest.approx(value, abs=4 * (value / len(found)) ** 0.5)
        assert abs((found <= round(value)).mean() - stats.poisson.cdf(round(value), value)) < 0.02
    uniform = torch.tensor([0.0, 0.3, 0.5, 0.9, 1 - 2**-24], dtype=torch.float32)
    expected = stats.poisson.ppf(uniform.double().numpy(), peak).clip(min=0)
    assert _counts(torch.full((5,), peak), uniform, peak).tolist() == expected.tolist()


def test_photon_noise_keeps_black_and_the_mean():
    noisy = PoissonNoise(30)(torch.full((64, 1, 32, 32), -0.4), by_step(64)).image
    assert noisy.mean() == pytest.approx(-0.4, abs=0.002)
    assert noisy.std() == pytest.approx(2 * (0.3 / 30) ** 0.5, rel=0.02)
    assert torch.equal(PoissonNoise(5)(-torch.ones(2, 1, 8, 8), by_step(2)).image, -torch.ones(2, 1, 8, 8))


@pytest.mark.parametrize("levels", [2, 4, 17, 256])
def test_quantisation_leaves_so_many_levels_and_moves_by_half_a_step(levels):
    clean = images(4, 3)
    rounded = Quantisation(levels)(clean, by_step(4)).image
    ramp = Quantisation(levels)(torch.linspace(-1, 1, 2049).view(1, 1, 1, -1), by_step(1)).image
    assert len(ramp.unique()) == levels
    assert (ramp.min(), ramp.max()) == (-1, 1)
    assert (rounded - clean).abs().max() <= 1 / (levels - 1) + 1e-6


def test_greyscale_is_pillows_grey_and_needs_colour():
    levels = ((images(4, 3) + 1) * 127.5).round()
    ours = (Greyscale()(levels / 127.5 - 1, by_step(4)).image + 1) * 127.5
    for image, grey in zip(levels.byte(), ours, strict=True):
        theirs = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(grey.numpy() - theirs).max() < 0.6
    with pytest.raises(
        ValueError, match="degradation.steps.g takes the colour from images, and the data have 1 channel"
    ):
        DigitsDataModule(degradation=Sequential({"g": Greyscale()}))


@pytest.mark.parametrize(
    ("angle", "scale", "shift", "shear"),
    [(30, 1, 0, 0), (0, 1.3, 0, 0), (0, 1, 0.125, 0), (-12, 0.8, 0.0625, 0), (0, 1, 0, 20)],
)
def test_affine_equals_torchvision_inside(angle, scale, shift, shear):
    clean = images(3, 3, 32, 48)
    ours = Affine(angle, scale, shift, shear)(clean, by_step(3)).image
    theirs = affine(
        clean,
        -angle,
        [round(shift * 48), round(shift * 32)],
        scale,
        [-shear, 0.0],
        InterpolationMode.BILINEAR,
        fill=[7.0],
    )
    inside = (theirs.abs() <= 1).all(dim=1, keepdim=True)
    inside = -torch.nn.functional.max_pool2d(-inside.float(), 3, stride=1, padding=1) > 0  # it blends the fill in
    assert inside.float().mean() > 0.4
    assert ((ours - theirs).abs() * inside).max() < 1e-4


def test_affine_of_nothing_is_the_image_and_a_quarter_turn_is_exact():
    clean = images(2, 1)
    torch.testing.assert_close(Affine()(clean, by_step(2)).image, clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(Affine(90)(clean, by_step(2)).image, clean.rot90(1, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
def test_canny_agrees_with_scikit_image(sigma):
    clean = images(6, 1, 48, 40)
    clean[:, :, 10:30, 8:25] *= -1  # an outline
    ours = CannyEdges(sigma, 0.2, 0.5)(clean, by_step(6)).image[:, 0] > 0
    grey = (clean[:, 0].double().numpy() + 1) / 2
    theirs = np.stack([canny(image, sigma, 0.2, 0.5, mode="reflect") for image in grey])
    assert theirs.mean() > 0.03
    assert (ours.numpy() != theirs).mean() < 0.003  # rounding decides where two neighbours are equal
    assert set(CannyEdges()(images(2, 3), by_step(2)).image.unique().tolist()) == {-1, 1}
    assert (CannyEdges()(torch.zeros(1, 1, 9, 9), by_step(1)).image == -1).all()
    for size in ((1, 1), (1, 7), (2, 3), (9, 2)):  # all of it is rim
        assert (CannyEdges()(images(2, 1, *size), by_step(2)).image == -1).all()


def test_weak_edges_stay_where_a_path_leads_to_a_strong_one():
    noise = torch.rand(3, 1, 40, 31, generator=torch.Generator().manual_seed(0))
    weak = noise < 0.42  # paths that wind through much of the image
    weak[..., [0, -1], :] = weak[..., :, [0, -1]] = False
    strong = weak & (noise < 0.01)
    for ours, of_image, beginning in zip(connected(strong, weak), weak, strong, strict=True):
        parts, _ = label(of_image[0].numpy(), np.ones((3, 3)))
        kept = np.isin(parts, parts[beginning[0].numpy()])
        assert 0 < kept.sum() < of_image.sum()
        assert np.array_equal(ours[0].numpy(), kept)


# Compositions


def test_sequential_applies_in_order_and_multiplies_validity():
    mask, noise = BlockMask(5), GaussianNoise(0.1)
    two_masks = Sequential({"a": mask, "left_out": None, "b": mask})(images(50), by_step(50)).validity
    assert (two_masks == 0).sum(dim=(1, 2, 3)).max() > 25
    masked_last = Sequential({"noise": noise, "mask": mask})(images(2), by_step(2))
    noised_last = Sequential({"mask": mask, "noise": noise})(images(2), by_step(2))
    assert (masked_last.image == 0).sum() >= 50
    assert (noised_last.image == 0).sum() < 5
    assert not masked_last.validity.any()


def test_mixture_gives_each_image_one_step_by_weight():
    steps = {name: BlockMask(size) for name, size in (("a", 1), ("b", 2), ("c", 3), ("never", 4))}
    mixture = Mixture(steps, weights={"b": 2, "never": 0})
    degraded = mixture(torch.ones(8000, 1, 4, 4), by_step(8000))
    area = (degraded.validity == 0).sum(dim=(1, 2, 3))
    assert mixture.kinds == ("a", "b", "c", "never")
    assert torch.equal((degraded.kind + 1) ** 2, area)  # each image tells which step it met
    share = area.bincount(minlength=17) / 8000
    for size, expected in ((1, 0.25), (2, 0.5), (3, 0.25), (4, 0.0)):
        assert share[size**2] == pytest.approx(expected, abs=0.03)


def test_each_image_tells_what_befell_it_however_degradations_are_nested():
    """Holes of 1, 2 or 3 pixels a side in one corner of a larger image, and a fill that tells of the other choice."""
    size = Mixture({"one": BlockMask(1), "more": Mixture({"two": BlockMask(2), "three": BlockMask(3)})})
    fill = Mixture({"light": BlockMask(4, fill=1.0), "dark": BlockMask(4, fill=-1.0)})  # the whole image
    both = Sequential({"fill": fill, "noise": GaussianNoise(0.0), "size": size})
    assert both.kinds == tuple(f"{a}+{b}" for a in ("light", "dark") for b in ("one", "more.two", "more.three"))
    degraded = both(torch.zeros(64, 1, 4, 4), by_index(*range(64)))
    names = [both.kinds[kind] for kind in degraded.kind.tolist()]
    assert set(names) == set(both.kinds)
    grey = {"one": 1, "two": 4, "three": 9}
    for name, image in zip(names, degraded.image, strict=True):
        assert (image == 0).sum() == grey[name.rpartition(".")[2].rpartition("+")[2]]
        assert image.sum().sign() == (1 if name.startswith("light") else -1)
    plain = Sequential({"noise": GaussianNoise(0.5)})
    assert (plain.kinds, plain(torch.zeros(2, 1, 4, 4), by_index(0, 1)).kind) == ((), None)


def test_mixture_consumes_only_the_rows_own_stream():
    """A row's draws after the choice are those of its step alone."""
    mixture = Mixture({"noise": GaussianNoise(0.1), "salt": SaltAndPepper(0.5)})
    clean = images(1)
    alone = by_index(3)
    chosen = "noise" if alone.uniform().item() < 0.5 else "salt"
    expected = mixture.steps[chosen](clean, alone).image
    assert torch.equal(mixture(clean, by_index(3)).image, expected)


@pytest.mark.parametrize(
    ("override", "training", "evaluation"),
    [
        ("steps.noise.std=[0.1,0.2]", (0.1, 0.2), (0.1, 0.2)),
        ("steps.noise.std=0.5", (0.5, 0.5), (0.5, 0.5)),
        ("steps.noise.std={train:[0.1,0.2],evaluation:0.15}", (0.1, 0.2), (0.15, 0.15)),
    ],
)
def test_command_line_overrides_of_a_severity(override, training, evaluation):
    with initialize_config_dir(str(CONF), version_base=None):
        degradation = instantiate(compose("mixed", overrides=[override]), _convert_="all")
    for mode, (low, high) in ((True, training), (False, evaluation)):
        std = degradation.steps["noise"].std.sample(by_step(500), mode)
        assert std.min() == pytest.approx(low, abs=0.01)
        assert std.max() == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize("override", ["~steps.noise", "steps.noise=null"])
def test_command_line_removal_of_a_step(override):
    with initialize_config_dir(str(CONF), version_base=None):
        degradation = instantiate(compose("mixed", overrides=[override]), _convert_="all")
    assert list(degradation.steps) == ["salt_pepper", "block"]
