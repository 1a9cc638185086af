"""PSNR and SSIM against closed forms and torchmetrics, merging over ranks, and the calibration's closed form."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from processes import on_two_ranks
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio

from generative.metrics import CalibrationMetrics, RestorationMetrics
from generative.metrics.calibration import theoretical_gap
from generative.metrics.restoration import PSNR_CAP, hole_mask, ssim
from generative.types import Batch


def _images(num_images: int, channels: int = 1, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.6 * torch.rand(num_images, channels, size, size, generator=generator) - 0.8


def _measure(restored: torch.Tensor, clean: torch.Tensor, validity: torch.Tensor | None = None) -> dict[str, float]:
    metrics = RestorationMetrics()
    metrics.update({"x": restored}, Batch(clean, torch.arange(len(clean)), validity=validity))
    return metrics.compute()


def test_psnr_and_mse_of_a_constant_error() -> None:
    clean = _images(3)
    errors = torch.tensor([0.02, 0.1, 0.2]).view(3, 1, 1, 1)
    measured = _measure(clean + errors, clean)
    each = [10 * math.log10(4 / e**2) for e in (0.02, 0.1, 0.2)]
    mse = (0.02**2 + 0.1**2 + 0.2**2) / 3
    assert measured["psnr/x"] == pytest.approx(sum(each) / 3, abs=1e-4)
    assert measured["psnr_pooled/x"] == pytest.approx(10 * math.log10(4 / mse), abs=1e-4)
    assert measured["mse/x"] == pytest.approx(mse, rel=1e-5)
    assert not {"psnr_channel/x", "psnr_luma/x", "psnr_hole/x"} & measured.keys()


def test_psnr_equals_torchmetrics() -> None:
    clean = _images(20, channels=3, size=24)
    restored = (clean + 0.3 * _images(20, 3, 24, seed=1)).clamp(-1, 1)
    psnr = peak_signal_noise_ratio(restored, clean, data_range=2.0, dim=(1, 2, 3))
    assert _measure(restored, clean)["psnr/x"] == pytest.approx(psnr.item(), abs=1e-4)


def _ssim_of_levels(restored: torch.Tensor, clean: torch.Tensor) -> float:
    """SSIM by scikit-image on grey levels in [0, 255], with the settings of Wang et al.; (C, H, W) images in [-1, 1]."""
    a, b = ((image.double().numpy() + 1) * 127.5 for image in (restored, clean))
    return structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=0
    )


def test_ssim_equals_scikit_image() -> None:
    clean = _images(70, channels=3, size=24)  # more planes than one call of ssim takes
    restored = (clean + 0.3 * _images(70, 3, 24, seed=1)).clamp(-1, 1)
    expected = [_ssim_of_levels(a, b) for a, b in zip(restored, clean, strict=True)]
    torch.testing.assert_close(ssim(restored, clean), torch.tensor(expected).float(), atol=2e-5, rtol=0)
    assert _measure(restored, clean)["ssim/x"] == pytest.approx(sum(expected) / 70, abs=1e-5)


@pytest.mark.parametrize("level", [-0.95, 0.0, 0.9])
@pytest.mark.parametrize("size", [(11, 11), (11, 40), (33, 17)])
def test_ssim_of_a_change_of_brightness_equals_scikit_image(level: float, size: tuple[int, int]) -> None:
    """Around mid-grey, 0 in [-1, 1], signed images would compare means by a meaningless ratio."""
    clean = level + 0.05 * torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    restored = (clean + 0.03).clamp(-1, 1)
    assert ssim(restored, clean).item() == pytest.approx(_ssim_of_levels(restored[0], clean[0]), abs=2e-4)
    assert ssim(clean, clean).item() == pytest.approx(1, abs=1e-5)


def test_colour_conventions_differ_as_defined() -> None:
    clean = torch.zeros(2, 3, 8, 8)
    error = torch.tensor([0.1, 0.2, 0.4]).view(1, 3, 1, 1)
    measured = _measure(clean + error, clean)
    psnr_of = lambda mse: 10 * math.log10(4 / mse)  # noqa: E731
    assert measured["psnr/x"] == pytest.approx(psnr_of((0.01 + 0.04 + 0.16) / 3), abs=1e-4)
    assert measured["psnr_channel/x"] == pytest.approx(sum(map(psnr_of, (0.01, 0.04, 0.16))) / 3, abs=1e-4)
    luma = 0.299 * 0.1 + 0.587 * 0.2 + 0.114 * 0.4
    assert measured["psnr_luma/x"] == pytest.approx(psnr_of(luma**2), abs=1e-4)


def test_cap_clamp_and_nan() -> None:
    clean = _images(2)
    assert _measure(clean, clean)["psnr/x"] == _measure(clean, clean)["psnr_pooled/x"] == PSNR_CAP
    white = torch.ones_like(clean)
    assert _measure(white + 5, white)["psnr/x"] == PSNR_CAP  # beyond the range is the range's end
    broken = clean.clone()
    broken[0, 0, 0, 0] = math.nan
    assert all(math.isnan(value) for value in _measure(broken, clean).values())


def test_hole_is_the_unknown_part_of_partly_known_images() -> None:
    clean = torch.zeros(3, 1, 8, 8)
    validity = torch.ones(3, 1, 8, 8)
    validity[0, :, :2, :] = 0  # a hole of 16 pixels
    validity[1] = 0  # nothing known: noise, not a hole
    assert hole_mask(validity).sum() == 16
    restored = torch.where(validity == 0, 0.1, 0.5)
    measured = _measure(restored, clean, validity)
    assert measured["psnr_hole/x"] == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-4)
    assert "psnr_hole/x" not in _measure(restored[1:], clean[1:], validity[1:])


def test_tiny_images_have_no_ssim_and_wrong_shapes_are_named() -> None:
    clean = _images(2, size=10)  # the window has 11
    assert "ssim/x" not in _measure(clean, clean)
    with pytest.raises(ValueError, match=r"Output x has shape \(1, 1, 10, 10\)"):
        _measure(clean[:1], clean)


def test_every_metric_is_defined() -> None:
    clean = _images(2, channels=3)
    validity = torch.ones(2, 1, 16, 16)
    validity[..., :3] = 0
    names = {name.split("/")[0] for name in _measure(clean, clean, validity)}
    assert names == RestorationMetrics.definition().keys() - {"images"}


def _five_images() -> tuple[dict[str, torch.Tensor], Batch]:
    clean = _images(5)
    validity = torch.ones(5, 1, 16, 16)
    validity[4, :, :5] = 0  # only the last image, which the second rank sees, has a hole
    return {"x": clean + 0.1 * _images(5, seed=1)}, Batch(clean, torch.arange(5), validity=validity)


def _measure_rows(rows: list[int]) -> tuple[dict[str, float], int]:
    outputs, batch = _five_images()
    metrics = RestorationMetrics()
    metrics.reset()
    if rows:
        index = torch.tensor(rows)
        metrics.update({name: image[index] for name, image in outputs.items()}, batch.select(index))
    return metrics.compute(), metrics.num_images


def _measure_shares(rank: int) -> list[tuple[dict[str, float], int]]:
    return [_measure_rows(shares[rank]) for shares in ([[1, 3], [0, 2, 4]], [[0, 1, 2, 3, 4], []])]


def test_five_images_over_two_ranks_are_five(tmp_path: Path) -> None:
    expected, num_images = _measure_rows([0, 1, 2, 3, 4])
    assert num_images == 5
    assert "psnr_hole/x" in expected
    for measured, count in chain(*on_two_ranks(_measure_shares, tmp_path)):
        assert count == 5
        assert list(measured) == list(expected)
        assert measured == pytest.approx(expected, rel=1e-6)


def test_true_posterior_samples_follow_the_theory() -> None:
    generator = torch.Generator().manual_seed(0)
    std = 0.2
    samples = std * torch.randn(17, 64, 1, 16, 16, generator=generator)  # the truth is one more draw around mean 0
    validity = torch.ones(64, 1, 16, 16)
    validity[:, :, 4:8, 4:8] = 0
    metrics = CalibrationMetrics(num_samples=16)
    for rows in torch.arange(64).split(40):
        batch = Batch(samples[16, rows], rows, validity=validity[rows])
        metrics.update(samples[:16, rows], batch, torch.zeros(len(rows), 1, 16, 16))
    measured = metrics.compute()
    assert metrics.num_images == 64
    for k in (1, 2, 4, 8, 16):
        assert measured[f"calibration_gap/mean_of_{k}"] == pytest.approx(theoretical_gap(k), abs=0.1)
    assert measured["calibration_psnr/mean"] == pytest.approx(10 * math.log10(4 / std**2), abs=0.1)
    assert measured["spread/sample"] == pytest.approx(std, rel=0.01)
    assert measured["spread_hole/sample"] == pytest.approx(std, rel=0.02)
    assert theoretical_gap(1) == pytest.approx(3.01, abs=0.005)


def test_independent_noise_around_the_truth_averages_out() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros(64, 1, 16, 16)
    metrics = CalibrationMetrics(num_samples=6)
    metrics.update(0.1 * torch.randn(6, 64, 1, 16, 16, generator=generator), Batch(clean, torch.arange(64)))
    measured = metrics.compute()
    assert metrics.num_averaged == [1, 2, 4]
    for k in (1, 2, 4):
        assert measured[f"calibration_psnr/mean_of_{k}"] == pytest.approx(10 * math.log10(4 * k / 0.1**2), abs=0.1)
    assert not any(name.startswith("calibration_gap") for name in measured)  # there is no mean to compare with


def test_a_deterministic_output_has_no_spread() -> None:
    clean = _images(3)
    metrics = CalibrationMetrics(num_samples=4)
    metrics.update((clean + 0.1).expand(4, -1, -1, -1, -1), Batch(clean, torch.arange(3)), clean + 0.1)
    measured = metrics.compute()
    assert measured["spread/sample"] == 0
    assert measured["calibration_gap/mean_of_4"] == pytest.approx(0, abs=1e-4)
    assert CalibrationMetrics(4).compute() == {}


def test_one_sample_has_no_spread_to_measure() -> None:
    with pytest.raises(ValueError, match="num_samples=1 must be at least 2"):
        CalibrationMetrics(num_samples=1)
