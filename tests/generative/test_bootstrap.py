"""Intervals over test images: closed forms, independent code, and that pairing and weights are what they should be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from generative.metrics.bootstrap import NUM_RESAMPLES, bootstrap
from generative.metrics.by_image import ImageSums, ImageValues
from generative.metrics.restoration import psnr_of_mse
from launch.by_image_csv import FILE_NAME, read_by_image, write_by_image
from launch.record_files import DamagedRecordError

SIZE = 400


def drawn(seed: int, shift: float = 0.0, common: float = 0.0) -> ImageValues:
    """Values of 400 images; ``common`` is the share that all draws have alike."""
    own, alike = (torch.randn(SIZE, generator=torch.Generator().manual_seed(s)).double() for s in (seed, 99))
    return ImageValues(torch.arange(SIZE), own + common * alike + shift, torch.ones(SIZE).double())


def test_the_interval_of_a_mean_has_its_closed_form() -> None:
    values = drawn(0)
    found = bootstrap([(1.0, values)])
    margin = 1.96 * values.total.std().item() / math.sqrt(SIZE)
    assert found.value == pytest.approx(values.total.mean().item())
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin), abs=0.1 * margin)


def test_a_difference_is_paired_and_agrees_with_independent_code() -> None:
    """What makes an image hard for both is no part of the difference; of squared errors its PSNR is taken at the end."""
    a, b = (drawn(seed, shift, common=10.0) for seed, shift in ((1, 0.3), (2, 0.0)))
    found = bootstrap([(1.0, a), (-1.0, b)])
    assert found.excludes_zero
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(2 / SIZE), rel=0.1)
    squared = [ImageValues(each.index, each.total.square(), each.weight) for each in (a, b)]
    found = bootstrap([(1.0, squared[0]), (-1.0, squared[1])], psnr_of_mse)
    arrays = tuple(each.total.numpy() for each in squared)
    other = stats.bootstrap(
        arrays, lambda x, y, axis=-1: 10 * np.log10(y.mean(axis) / x.mean(axis)), paired=True, vectorized=True,
        n_resamples=NUM_RESAMPLES, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.1 * (other.high - other.low))


def test_weights_count_and_only_common_images_are_compared() -> None:
    a, b = drawn(1), drawn(2)
    rows = torch.arange(0, SIZE, 2)
    half = ImageValues(a.index[rows], a.total[rows], a.weight[rows])
    assert bootstrap([(1.0, half), (-1.0, b)]) == bootstrap([(1.0, half), (-1.0, b.of(rows))])
    assert bootstrap([(1.0, a.of(rows[:1]))]) is None
    doubled = ImageValues(
        a.index, torch.cat([2 * a.total[:200], a.total[200:]]), torch.cat([2 * a.weight[:200], a.weight[200:]])
    )
    expected = np.average(a.total, weights=[2] * 200 + [1] * 200)
    assert bootstrap([(1.0, doubled)]).value == pytest.approx(expected)
    same = bootstrap([(0.5, a), (0.5, a), (-1.0, a)])
    assert (same.low, same.value, same.high) == (0, 0, 0)
    assert not same.excludes_zero


def test_values_are_kept_image_by_image_and_read_back(tmp_path: Path) -> None:
    values, weights = torch.rand(6, 1, 4), torch.rand(6, 1, 4)
    weights[2] = 0
    sums = ImageSums()
    for rows in (torch.tensor([3, 1]), torch.tensor([0, 5, 2, 4])):
        sums.add("mse_hole/mean", values[rows], rows, weights[rows])
        sums.add("psnr/mean", values[rows, 0, 0], rows)
    sums.add("objects/sample", torch.tensor([0.0, 1.0, 1.0]), torch.tensor([4, 4, 4]))
    found = sums.merged()
    torch.testing.assert_close(
        found["mse_hole/mean"].mean.item(), np.average(values.flatten(), weights=weights.flatten()), rtol=1e-6, atol=0
    )
    assert found["mse_hole/mean"].index.tolist() == [0, 1, 3, 4, 5]
    torch.testing.assert_close(found["psnr/mean"].total, values[:, 0, 0].double())
    assert (found["objects/sample"].total.tolist(), found["objects/sample"].weight.tolist()) == ([2.0], [3.0])
    found["nan/mean"] = ImageValues(
        torch.tensor([1, 7]), torch.tensor([math.nan, 1.0]).double(), torch.ones(2).double()
    )
    write_by_image(tmp_path, found)
    back = read_by_image(tmp_path)
    assert back.keys() == found.keys()
    for name, parts in found.items():
        assert back[name].index.tolist() == parts.index.tolist()
        torch.testing.assert_close(back[name].mean, parts.mean, rtol=1e-6, atol=0, equal_nan=True)
    write_by_image(tmp_path, {})
    assert read_by_image(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "index,psnr/mean\n1,x\n", "index,psnr/mean\n1\n", "index,a\n2,1\n1,1\n"]
)
def test_a_damaged_table_of_images_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(DamagedRecordError, match=r"by_image\.csv is damaged.*evaluate the run again"):
        read_by_image(tmp_path)
