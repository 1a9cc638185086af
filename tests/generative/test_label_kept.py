"""Labels kept: by hand."""

from __future__ import annotations

import pytest
import torch

from generative.metrics.label_kept import VISIBILITIES, LabelKeptMetrics, judged_labels, visibility


def rows(*sets: str, num_labels: int = 4) -> torch.Tensor:
    """Sets of labels such as ``02``."""
    return torch.tensor([[str(label) in labels for label in range(num_labels)] for labels in sets])


def test_classes_are_the_likeliest_and_sets_those_more_likely_than_not() -> None:
    scores = torch.tensor([[0.2, 0.4, 0.4, 0.1], [0.9, 0.6, 0.7, 0.5], [torch.nan, 0.3, 0.1, 0.0], [torch.nan] * 4])
    assert torch.equal(judged_labels(scores, has_one_label=True), rows("1", "0", "1", ""))
    assert torch.equal(judged_labels(scores, has_one_label=False), rows("", "012", "", ""))


def test_only_images_that_are_read_rightly_when_clean_count_batch_by_batch() -> None:
    metrics = LabelKeptMetrics()
    labels = rows("0", "1", "2", "3", "0", "1")
    clean = rows("0", "1", "2", "0", "0", "1")  # the fourth is misread
    restored = rows("0", "2", "2", "3", "3", "1")
    degradations = ["noise", "noise", "block", "block", "block", "noise"]
    for part in (slice(0, 2), slice(2, 6)):
        right = metrics.update(
            {"mean": restored[part]}, clean[part], labels[part].float(), torch.arange(6)[part], degradations[part]
        )
        assert right.tolist() == (labels == clean).all(1)[part].tolist()
    assert metrics.compute() == pytest.approx(
        {
            "label_kept/mean": 3 / 5,
            "label_kept_by_degradation/mean/noise": 2 / 3,
            "label_kept_by_degradation/mean/block": 1 / 2,
        }
    )
    assert metrics.counts == {
        "label_kept/mean": 5,
        "label_kept_by_degradation/mean/noise": 3,
        "label_kept_by_degradation/mean/block": 2,
    }
    assert (metrics.num_images, metrics.clean_accuracy) == (6, pytest.approx(5 / 6))
    metrics.reset()
    assert metrics.compute() == {}


def test_objects_are_visible_half_hidden_or_hidden() -> None:
    hole = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    hole[..., :2] = True
    objects = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    objects[0, 1, 0, 3], objects[0, 2, 1, 1:3], objects[0, 3, 2:, :2] = True, True, True
    assert [VISIBILITIES[n] for n in visibility(objects, hole)[0]] == ["no_object", "visible", "half_hidden", "hidden"]


def test_images_count_by_their_least_visible_object_and_objects_each_by_its_own() -> None:
    seen = torch.tensor([[1, 0, 3, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])  # the last one has no hole
    labels = rows("02", "01", "0", "3")
    restored = rows("0", "01", "01", "3")
    metrics = LabelKeptMetrics()
    metrics.update({"sample": restored}, labels, labels, torch.arange(len(labels)), visibility_BL=seen)
    assert metrics.compute() == {
        "label_kept/sample": 2 / 4,
        "label_kept_by_visibility/sample/visible": 0,
        "object_kept_by_visibility/sample/visible": 1,  # all three are still seen
        "label_kept_by_visibility/sample/half_hidden": 1,
        "object_kept_by_visibility/sample/half_hidden": 1,
        "label_kept_by_visibility/sample/hidden": 0,
        "object_kept_by_visibility/sample/hidden": 0,
    }
    assert metrics.counts["object_kept_by_visibility/sample/visible"] == 3
