"""Settings of runs tell them apart by what differs in them."""

from __future__ import annotations

from launch.settings import differing, distinguishing, value_at


def test_a_key_of_a_later_revision_that_is_null_tells_nothing_apart() -> None:
    earlier = {"network.depth": "4", "network._target_": "A"}
    later = {"network.depth": "4", "network._target_": "A", "bottleneck": "null"}
    assert differing([earlier, later]) == []
    assert differing([earlier, later | {"bottleneck": "vq"}]) == ["bottleneck"]


def test_an_exchanged_object_is_one_key() -> None:
    assert distinguishing([{"network._target_": "A", "network.dim": "1"}, {"network._target_": "B"}]) == ["network"]


def test_an_object_is_told_with_the_objects_in_it_and_not_with_those_of_others() -> None:
    common = {"degradation._target_": "a.Sequential"}
    block = common | {"degradation.steps.block._target_": "a.Block", "degradation.steps.block.size": "10"}
    small = block | {"degradation.steps.block.size": "6"}
    noise = common | {"degradation.steps.noise._target_": "a.Noise", "degradation.steps.noise.std": "1"}
    mixture = {"degradation._target_": "a.Mixture", "degradation.steps.motion._target_": "a.Motion"}
    several = [block, small, noise, mixture]
    assert distinguishing(several) == ["degradation"]
    assert [value_at(settings, "degradation", several) for settings in several] == [
        "Sequential(steps.block=Block(size=10))",
        "Sequential(steps.block=Block(size=6))",
        "Sequential(steps.noise=Noise)",
        "Mixture",
    ]
    network = [{"m._target_": "M", "m.guidance": "null"}, {"m._target_": "M", "m.guidance._target_": "G"}]
    assert [value_at(settings, "m", network) for settings in network] == ["M(guidance=null)", "M(guidance=G)"]
