"""The metrics of image fusion against NumPy, SciPy and scikit-image, hand-made pictures and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from skimage.filters import sobel_h, sobel_v
from skimage.measure import shannon_entropy
from skimage.metrics import normalized_mutual_information, structural_similarity

from generative.metrics.fusion import (
    MS_SSIM_MIN_SIZE,
    ORIENTATION,
    SCALE_WEIGHTS,
    STRENGTH,
    FusionMetrics,
    average_gradient,
    edge_transfer,
    edges,
    entropy,
    ms_ssim,
    mutual_information,
    spatial_frequency,
)
from generative.types import Batch


def _field(size: int, seed: int, smoothing: float = 2.0) -> np.ndarray:
    """Grey levels with structure at several scales."""
    noise = np.random.default_rng(seed).standard_normal((size, size))
    smooth = ndimage.gaussian_filter(noise, smoothing)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).round()


def _signed(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels).float()[None, None] / 127.5 - 1


def _measured(restored: np.ndarray, clean: np.ndarray, degraded: np.ndarray | None = None) -> dict[str, float]:
    metrics = FusionMetrics()
    batch = Batch(_signed(clean), torch.zeros(1).long(), degraded=None if degraded is None else _signed(degraded))
    metrics.update({"x": _signed(restored)} | ({} if degraded is None else {"degraded": batch.degraded}), batch)
    return metrics.compute()


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Restored, clean and degraded picture, large enough for every metric."""
    clean, noise = _field(180, 0), np.random.default_rng(1).standard_normal((180, 180))
    degraded = np.clip(clean + 40 * noise, 0, 255).round()
    return ndimage.gaussian_filter(degraded, 1.0).round(), clean, degraded


@pytest.fixture(scope="module")
def measured(pictures: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, float]:
    return _measured(*pictures)


def test_a_picture_alone_is_as_numpy_and_scikit_image_say(measured, pictures) -> None:
    for name, levels in zip(("x", "clean", "degraded"), pictures, strict=True):
        across, down = np.diff(levels, axis=1), np.diff(levels, axis=0)
        expected = {
            "entropy": shannon_entropy(levels.astype(np.uint8), base=2),
            "spatial_frequency": math.sqrt((across**2).mean() + (down**2).mean()),
            "contrast": levels.std(),
            "average_gradient": np.sqrt((across[:-1] ** 2 + down[:, :-1] ** 2) / 2).mean(),
            "total_variation": (np.abs(across).sum() + np.abs(down).sum()) / levels.size,
        }
        for metric, value in expected.items():
            assert measured[f"{metric}/{name}"] == pytest.approx(value, rel=1e-5), metric


def test_a_picture_beside_the_clean_one_is_as_scipy_and_scikit_image_say(measured, pictures) -> None:
    restored, clean, degraded = pictures
    # Of scikit-image's normalised form (H(x) + H(y)) / H(x, y).
    both = shannon_entropy(restored.astype(np.uint8), base=2) + shannon_entropy(clean.astype(np.uint8), base=2)
    ratio = normalized_mutual_information(restored, clean, bins=[np.arange(257) - 0.5] * 2)
    assert measured["mutual_information/x"] == pytest.approx(both - both / ratio, rel=1e-5)
    assert measured["correlation/x"] == pytest.approx(stats.pearsonr(restored.ravel(), clean.ravel())[0], abs=1e-6)
    changed, wanted = (restored - degraded).ravel(), (clean - degraded).ravel()
    assert measured["scd/x"] == pytest.approx(stats.pearsonr(changed, wanted)[0], abs=1e-6)
    assert "scd/degraded" not in measured
    assert measured["ms_ssim/x"] == pytest.approx(_ms_ssim(restored, clean), abs=1e-4)
    assert measured["vif/x"] == pytest.approx(_vif(restored, clean), rel=1e-3)
    qabf, nabf = _edge_transfer(restored, clean)
    assert (measured["qabf/x"], measured["nabf/x"]) == pytest.approx((qabf, nabf), abs=1e-5)


def _edge_transfer(fused: np.ndarray, source: np.ndarray) -> tuple[float, float]:
    inside = (slice(1, -1), slice(1, -1))
    gradients = [(sobel_v(x)[inside] * 4, sobel_h(x)[inside] * 4) for x in (fused, source)]
    g, a = zip(*((np.hypot(x, y), np.arctan2(y, x)) for x, y in gradients), strict=True)
    ratio = np.minimum(*g) / np.maximum(np.maximum(*g), 1e-12)
    turn = np.abs(np.cos(a[0] - a[1]))  # lines have no direction
    turn = 1 - np.arccos(np.clip(turn, 0, 1)) / (np.pi / 2)
    q = STRENGTH[0] / (1 + np.exp(STRENGTH[1] * (ratio - STRENGTH[2])))
    q = q * ORIENTATION[0] / (1 + np.exp(ORIENTATION[1] * (turn - ORIENTATION[2])))
    return (g[1] * q).sum() / g[1].sum(), (g[1] * (1 - q) * (g[0] > g[1])).sum() / g[1].sum()


def _ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    value = 1.0
    for number, weight in enumerate(SCALE_WEIGHTS, 1):
        blur = lambda x: ndimage.gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]  # noqa: E731
        variance_a, variance_b = blur(a * a) - blur(a) ** 2, blur(b * b) - blur(b) ** 2
        structure = (2 * (blur(a * b) - blur(a) * blur(b)) + 58.5225) / (variance_a + variance_b + 58.5225)
        factor = structure.mean()
        if number == len(SCALE_WEIGHTS):
            _, full = structural_similarity(
                a, b, data_range=255, gaussian_weights=True, use_sample_covariance=False, full=True
            )
            factor = full[5:-5, 5:-5].mean()
        value *= factor**weight
        h, w = (side // 2 * 2 for side in a.shape)
        a, b = (x[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for x in (a, b))
    return value


def _vif(a: np.ndarray, b: np.ndarray) -> float:
    """The formula of Sheikh and Bovik (2006) over four scales, in the domain of pixels."""
    kept = whole = 0.0
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (size / 5) ** 2))
        line /= line.sum()
        rim = slice(size // 2, -(size // 2))

        def mean(x: np.ndarray, line: np.ndarray = line, rim: slice = rim) -> np.ndarray:
            return ndimage.correlate1d(ndimage.correlate1d(x, line, 0), line, 1)[rim, rim]

        if scale:
            a, b = mean(a)[::2, ::2], mean(b)[::2, ::2]
        var_a, var_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
        gain = np.maximum(mean(a * b) - mean(a) * mean(b), 0) / var_b
        noise = np.where(gain > 0, var_a - gain * (mean(a * b) - mean(a) * mean(b)), var_a)
        kept += np.log(1 + gain**2 * var_b / (np.maximum(noise, 0) + 2)).sum()
        whole += np.log(1 + var_b / 2).sum()
    return kept / whole


def test_hand_made_pictures() -> None:
    ramp = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 4)[None]
    assert entropy(ramp).item() == 2
    assert mutual_information(ramp, 255 - ramp).item() == pytest.approx(2)
    assert mutual_information(ramp, ramp.transpose(1, 2)).item() == pytest.approx(0, abs=1e-12)  # independent
    assert spatial_frequency(ramp).item() == 1
    assert average_gradient(ramp).item() == pytest.approx(math.sqrt(0.5))
    strength, orientation = edges(torch.cat([ramp, ramp.transpose(1, 2)]))
    assert (strength == 8).all()  # four rows of weight twice the slope
    assert orientation[0].eq(0).all()
    assert orientation[1].eq(math.pi / 2).all()


def test_edges_of_equal_pictures_have_the_highest_transfer() -> None:
    picture = torch.from_numpy(_field(24, 2)).float()[None]
    q, n = edge_transfer([picture], picture)
    best = STRENGTH[0] / (1 + math.exp(STRENGTH[1] / 2)) * ORIENTATION[0] / (1 + math.exp(ORIENTATION[1] / 5))
    assert q.item() == pytest.approx(best, abs=1e-6)
    assert n.item() == 0
    turned = picture.transpose(1, 2)
    assert edge_transfer([picture, turned], picture)[0] < q  # an edge of either source counts
    two = edge_transfer([picture, picture], picture)
    torch.testing.assert_close(two[0], q)


def test_what_is_not_defined_is_left_out_and_what_diverged_is_seen() -> None:
    flat, picture = np.full((24, 24), 90.0), _field(24, 3)
    measured = _measured(picture, flat)
    assert not {"correlation/x", "qabf/x", "nabf/x"} & measured.keys()  # no image has one
    both = FusionMetrics()
    for clean in (flat, picture):
        both.update({"x": _signed(picture)}, Batch(_signed(clean), torch.zeros(1).long()))
    assert both.compute()["correlation/x"] == pytest.approx(1)
    assert both.num_images == 2
    assert not {"vif/x", "ms_ssim/x"} & both.compute().keys()  # too small
    broken = picture.copy()
    broken[3, 3] = math.nan
    diverged = _measured(broken, picture)
    assert all(math.isnan(value) for name, value in diverged.items() if name.endswith("/x"))
    assert FusionMetrics().compute() == {}


def test_channels_count_alike_and_sizes_below_a_window_are_refused_by_nobody() -> None:
    a, b, clean = (_field(MS_SSIM_MIN_SIZE, seed) for seed in range(3))
    colour, grey = FusionMetrics(), FusionMetrics()
    index = torch.zeros(1).long()
    colour.update(
        {"x": torch.cat([_signed(a), _signed(b), _signed(a)], 1)}, Batch(_signed(clean).expand(-1, 3, -1, -1), index)
    )
    for restored in (a, b, a):
        grey.update({"x": _signed(restored)}, Batch(_signed(clean), index))
    assert colour.compute() == pytest.approx(grey.compute())
    assert colour.num_images == 1
    assert ms_ssim(torch.from_numpy(clean)[None].float(), torch.from_numpy(clean)[None].float()).item() == 1
    tiny = FusionMetrics()
    tiny.update({"x": torch.zeros(1, 1, 2, 2)}, Batch(torch.zeros(1, 1, 2, 2), index))
    assert tiny.compute() == {}
