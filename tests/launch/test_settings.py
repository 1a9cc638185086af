"""Settings of runs tell them apart by what differs in them."""

from __future__ import annotations

from launch.settings import differing, distinguishing


def test_a_key_of_a_later_revision_that_is_null_tells_nothing_apart() -> None:
    earlier = {"network.depth": "4", "network._target_": "A"}
    later = {"network.depth": "4", "network._target_": "A", "bottleneck": "null"}
    assert differing([earlier, later]) == []
    assert differing([earlier, later | {"bottleneck": "vq"}]) == ["bottleneck"]


def test_an_exchanged_object_is_one_key() -> None:
    assert distinguishing([{"network._target_": "A", "network.dim": "1"}, {"network._target_": "B"}]) == ["network"]
