"""Scenes that training never shows: pairs of labels that are held out, and more objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.embedded.combinations import WHOLE, Group, Selection, held_out_pairs
from datamodules.embedded.scenes import ScenesDataModule, SceneStyle, draw_scenes
from datamodules.splits import Split

STYLE = SceneStyle()


def drawn(held_out: float, max_objects: int, group: Group, split: Split = "train") -> Tensor:
    """Multi-hot labels of 400 scenes."""
    selection = Selection(held_out, max_objects, group)
    return torch.cat([draw_scenes(STYLE, split, chunk, selection)[1] for chunk in range(2)])


def pairs_of(labels: Tensor) -> set[tuple[int, int]]:
    """All pairs of labels that stand together in a scene, counted one by one."""
    rows = [row.nonzero()[:, 0].tolist() for row in labels]
    return {(a, b) for row in rows for a in row for b in row if a < b}


def test_no_training_scene_shows_a_pair_that_is_held_out() -> None:
    held_out = {tuple(pair) for pair in held_out_pairs(0.25).triu().nonzero().tolist()}
    assert len(held_out) == 69  # a quarter of 24 * 23 / 2
    shown, tested = drawn(0.25, 3, "shown"), drawn(0.25, 3, "held_out", "test")
    assert not pairs_of(shown) & held_out
    assert all(pairs_of(row[None]) & held_out for row in tested)
    assert set(tested.sum(1).tolist()) == {2, 3}
    assert (shown.sum(0) > 10).all()  # each label is learnt
    assert all(90 < (shown.sum(1) == count).sum() < 180 for count in (1, 2, 3))


def test_scenes_of_more_objects_than_training_shows() -> None:
    assert set(drawn(0.0, 2, "shown").sum(1).tolist()) == {1, 2}
    assert set(drawn(0.0, 2, "more_objects").sum(1).tolist()) == {3}
    assert set(drawn(0.0, 1, "more_objects").sum(1).tolist()) == {2, 3}
    both = Selection(0.25, 2, "more_objects")
    assert both.beyond == ("held_out", "more_objects")
    assert both.holds(drawn(0.25, 2, "more_objects")).all()  # one thing at a time is new


def test_half_of_all_pairs_leaves_scenes_of_three_to_each_label() -> None:
    assert held_out_pairs(0.25).logical_and(~held_out_pairs(0.5)).sum() == 0  # a smaller share is part of a larger one
    allowed = (~held_out_pairs(0.5)).double().fill_diagonal_(0)
    assert ((allowed @ allowed @ allowed).diagonal() > 0).all()


def test_nothing_kept_back_is_as_it_was() -> None:
    assert WHOLE.key() == ""
    assert torch.equal(draw_scenes(STYLE, "train", 0)[1], draw_scenes(STYLE, "train", 0, Selection())[1])


def test_label_sets_and_test_images_of_each_group(tmp_path: Path) -> None:
    few = {"num_train": 4, "num_val": 4, "num_test": 6, "cache_dir": tmp_path, "image_size": 16}
    data = ScenesDataModule(held_out="combinations:0.25", max_objects=2, **few)
    assert list(data.label_sets) == ["test", "new_test", "shown", "held_out", "more_objects"]
    for group in ("shown", "held_out", "more_objects"):
        sets = data.label_sets[group]
        assert sets.shape == (32, 24)
        assert len(sets.unique(dim=0)) == 32
        assert set(sets.sum(1).tolist()) == ({3.0} if group == "more_objects" else {2.0})
        assert Selection(0.25, 2, group).holds(sets).all()
    for group in data.selection.beyond:
        images, labels = data.real_images(group, 1000)
        test = ScenesDataModule(held_out="combinations:0.25", max_objects=2, tested=group, **few)
        batch = test.batch("test", range(6))
        assert torch.equal(batch.image, images)
        assert torch.equal(batch.labels, labels)
        masks = test.object_masks("test", torch.arange(6))
        assert torch.equal(masks.flatten(2).any(2), labels > 0)
        assert test.record()["tested"] == group
    assert data.real_images("new_test", 10) is None
    assert data.record()["held_out_pairs"] == 69


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"held_out": "pairs:0.2"}, "data.held_out=pairs:0.2 must be combinations:SHARE"),
        ({"held_out": "combinations:0.6"}, "at most 0.5"),
        ({"held_out": "combinations:0"}, "above 0"),
        ({"held_out": "combinations:0.25", "max_objects": 1}, "data.max_objects=1 shows none: set 2 or 3"),
        ({"max_objects": 4}, "data.max_objects=4 must be 1, 2 or 3"),
        ({"tested": "held_out"}, "set data.held_out=combinations:0.25, or data.tested=shown"),
        ({"tested": "more_objects"}, "set data.max_objects=2"),
        ({"tested": "others"}, "data.tested=others must be 'shown', 'held_out' or 'more_objects'"),
    ],
)
def test_bad_settings_are_one_sentence(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match="^data") as error:
        ScenesDataModule(**settings)
    assert said in str(error.value)
