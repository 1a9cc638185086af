"""The score of label sets, by hand."""

from __future__ import annotations

import pytest
import torch

from generative.metrics.label_accuracy import LabelAccuracyMetrics, label_scores, recognised_labels

SCORES = torch.tensor(
    [
        [0.9, 0.2, 0.1, 0.0],  # one label, right
        [0.1, 0.2, 0.9, 0.0],  # one label, wrong
        [0.6, 0.7, 0.5, 0.1],  # three labels, two of them among the three most likely
    ]
)
LABELS = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 1]])


def test_the_k_most_likely_labels_of_an_image_with_k_labels() -> None:
    recognised = recognised_labels(SCORES, LABELS)
    assert recognised.tolist() == [[True, False, False, False], [False] * 4, [True, True, False, False]]


def test_pooled_and_per_image_scores_differ() -> None:
    scores = label_scores(recognised_labels(SCORES, LABELS), LABELS)
    assert scores.pooled == pytest.approx(3 / 5)
    assert scores.per_image == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert scores.exact == pytest.approx(1 / 3)


def test_monotone_scores_count_alike() -> None:
    logits = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    labels = (torch.rand(50, 24, generator=torch.Generator().manual_seed(1)) < 0.1).long()
    assert torch.equal(recognised_labels(logits, labels), recognised_labels(logits.sigmoid(), labels))
    in_order = logits.topk(24, dim=1).indices  # an independent implementation
    for row in range(50):
        chosen = set(in_order[row, : int(labels[row].sum())].tolist())
        assert set(recognised_labels(logits, labels)[row].nonzero().flatten().tolist()) == chosen & set(
            labels[row].nonzero().flatten().tolist()
        )


def test_of_equal_scores_the_smaller_number_wins_and_nan_never_does() -> None:
    labels = torch.tensor([[0, 1, 1, 0, 0]])
    assert recognised_labels(torch.zeros(1, 5), labels).tolist() == [[False, True, False, False, False]]
    assert not recognised_labels(torch.full((1, 5), torch.nan), labels).any()
    one_nan = torch.tensor([[0.0, torch.nan, 0.3, 0.2, -torch.inf]])
    assert recognised_labels(one_nan, labels).tolist() == [[False, False, True, False, False]]


def test_sums_over_batches_are_those_of_all_images() -> None:
    whole, parts = LabelAccuracyMetrics("heldout"), LabelAccuracyMetrics("heldout")
    whole.update(SCORES, LABELS)
    parts.update(SCORES[:1], LABELS[:1])
    parts.update(SCORES[1:], LABELS[1:])
    assert parts.compute() == pytest.approx(whole.compute())
    assert whole.compute() == pytest.approx(
        {"label_accuracy/heldout": 3 / 5, "label_accuracy_per_image/heldout": 5 / 9, "exact_sets/heldout": 1 / 3}
    )
    assert (whole.num_images, whole.num_labels) == (3, 5)


def test_images_without_labels_are_left_out() -> None:
    metrics = LabelAccuracyMetrics("heldout")
    metrics.update(SCORES, torch.zeros_like(LABELS))
    assert metrics.compute() == {}
    metrics.update(SCORES[:1], LABELS[:1])
    assert metrics.compute()["label_accuracy_per_image/heldout"] == 1
    assert metrics.num_images == 1
