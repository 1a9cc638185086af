"""Paired and unpaired distances of restored images: closed forms, and independence of batches and ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from processes import on_two_ranks
from torch import Tensor, nn

from generative.metrics.features import INCEPTION, FeatureExtractor, Features, NetworkExtractor
from generative.metrics.generation import ReferenceFeatures
from generative.metrics.restoration_distances import RestorationDistanceMetrics

NUM_IMAGES = 40
SHIFT = 20 / 127.5


class Pixels(nn.Module):
    """The pixels are the features: a row's features depend on that row alone, to the last bit."""

    def features(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.flatten(1)


class FakeInception(FeatureExtractor):
    """Pixels under Inception's name, with logits."""

    def __init__(self) -> None:
        super().__init__(INCEPTION, Pixels(), "none", "test")

    def __call__(self, image_BCHW: Tensor) -> Features:
        return Features(image_BCHW.flatten(1), 3 * image_BCHW.flatten(1))


def _images(num_images: int = NUM_IMAGES, seed: int = 0) -> Tensor:
    """Images that 8 bits hold exactly, also with ``SHIFT``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200, (num_images, 1, 2, 2), generator=generator).float() / 127.5 - 1


def _outputs() -> dict[str, Tensor]:
    return {"same": _images(), "brighter": _images() + SHIFT, "other": _images(seed=1)}


REFERENCE = ReferenceFeatures(_images(60, seed=2).flatten(1), "the reference")


def _collect(
    batches: tuple[Tensor, ...], extractor: FeatureExtractor | None = None, outputs: dict[str, Tensor] | None = None
) -> RestorationDistanceMetrics:
    metrics = RestorationDistanceMetrics(extractor or NetworkExtractor("pixels", Pixels(), "none"))
    metrics.reset()
    outputs, clean = outputs or _outputs(), _images()
    for rows in batches:
        metrics.update({name: image[rows] for name, image in outputs.items()}, clean[rows], rows)
    return metrics


@pytest.fixture(scope="module")
def measured() -> RestorationDistanceMetrics:
    metrics = _collect((torch.arange(NUM_IMAGES),))
    metrics.values = metrics.compute(REFERENCE)
    return metrics


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s1 + s2 - 2 * root))


def _kernel(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of sets of one size."""
    size, dim = x.shape
    xx, yy, xy = ((a @ b.T / dim + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (xx, yy))
    return float(within - 2 * xy.mean())


def test_equal_images_are_at_no_paired_distance(measured) -> None:
    assert measured.values["fd_pixels_paired/same"] == pytest.approx(0, abs=1e-9)
    assert measured.values["kd_pixels_paired/same"] <= 0  # unbiased
    assert measured.values["fd_pixels/same"] > 0.01  # of another finite set they are


def test_a_shift_of_all_pixels_is_its_square(measured) -> None:
    assert measured.values["fd_pixels_paired/brighter"] == pytest.approx(4 * SHIFT**2, rel=1e-5)


def test_paired_and_unpaired_equal_independent_formulas(measured) -> None:
    clean, reference = _images().flatten(1).double().numpy(), REFERENCE.features.double().numpy()
    for name, image in _outputs().items():
        restored = image.flatten(1).double().numpy()
        assert measured.values[f"fd_pixels_paired/{name}"] == pytest.approx(_frechet(restored, clean), abs=1e-6)
        assert measured.values[f"kd_pixels_paired/{name}"] == pytest.approx(_kernel(restored, clean), abs=1e-6)
        assert measured.values[f"fd_pixels/{name}"] == pytest.approx(_frechet(restored, reference), abs=1e-6)


def test_names_and_definitions(measured) -> None:
    kinds = ("fd_pixels_paired", "kd_pixels_paired", "fd_pixels", "kd_pixels", "precision_pixels", "recall_pixels")
    assert measured.values.keys() == {f"{kind}/{output}" for kind in kinds for output in _outputs()}
    definition = measured.definition()
    assert definition.keys() == _outputs().keys()
    assert definition["same"]["paired"]["reference"] == f"the clean images of these {NUM_IMAGES} images"
    assert definition["same"]["paired"]["num_reference"] == measured.num_images == NUM_IMAGES
    assert definition["same"]["unpaired"]["reference"] == "the reference"
    assert {"fd_pixels_paired", "kd_pixels_paired"} <= definition["same"]["paired"].keys()
    assert not any("precision" in key for key in definition["same"]["paired"])
    usual = _collect((torch.arange(NUM_IMAGES),), FakeInception()).compute(REFERENCE)
    names = ("fid_paired", "kid_paired", "fid", "kid", "precision", "recall", "inception_score")
    assert usual.keys() == {f"{name}/{output}" for name in names for output in _outputs()}


def test_neither_order_nor_batch_size_matters(measured) -> None:
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(3))
    metrics = _collect(order.split(7))
    assert metrics.compute(REFERENCE) == measured.values
    assert metrics.compute(REFERENCE) == measured.values  # asking changes nothing
    metrics.reset()
    assert metrics.compute(REFERENCE) == {}
    assert metrics.definition() == {}


def test_too_few_images_are_a_reason_and_no_number() -> None:
    metrics = _collect((torch.tensor([5]),))
    assert metrics.compute(REFERENCE) == {}
    assert metrics.definition()["same"]["paired"]["skipped"] == {
        "fd_pixels_paired": "needs 2 images, got 1",
        "kd_pixels_paired": "needs 2 images, got 1",
    }
    assert metrics.definition()["same"]["unpaired"]["skipped"].keys() == {
        f"{kind}_pixels" for kind in ("fd", "kd", "precision", "recall")
    }


def test_an_output_that_diverged_leaves_the_others_alone(measured) -> None:
    broken = _outputs()
    broken["other"][3, 0, 0, 0] = torch.nan
    metrics = _collect((torch.arange(NUM_IMAGES),), outputs=broken)
    values = metrics.compute(REFERENCE)
    assert values == {name: value for name, value in measured.values.items() if not name.endswith("/other")}
    assert "not finite" in metrics.definition()["other"]["paired"]["skipped"]["fd_pixels_paired"]


def _measure_shares(rank: int) -> list[dict[str, float]]:
    rows = torch.arange(NUM_IMAGES)
    uneven = _collect(rows[:11].split(4) if rank == 0 else rows[11:].split(9)).compute(REFERENCE)
    one_idle = _collect(() if rank == 0 else (rows,)).compute(REFERENCE)
    return [uneven, one_idle]


def test_two_ranks_agree_with_one(measured, tmp_path: Path) -> None:
    assert on_two_ranks(_measure_shares, tmp_path) == [[measured.values] * 2] * 2
