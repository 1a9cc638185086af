"""The only source of randomness."""

from __future__ import annotations

import torch

from generative.randomness import IndexRandomness, StepRandomness, generator_for


def draw(*key: object) -> torch.Tensor:
    return torch.rand(4, generator=generator_for(*key))  # type: ignore[arg-type]


def test_generators_depend_on_every_part_of_the_key() -> None:
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    draws = {tuple(draw(*key).tolist()) for key in keys}
    assert len(draws) == len(keys)
    assert torch.equal(draw(*keys[0]), draw(*keys[0]))


def test_index_draws_do_not_depend_on_the_batch() -> None:
    index = torch.tensor([3, 0, 7, 5])
    whole = IndexRandomness.for_images(0, "x", index)
    first, second = whole.normal(2, 3), whole.uniform()
    part = IndexRandomness.for_images(0, "x", index[[2, 1]])
    assert torch.equal(part.normal(2, 3), first[[2, 1]])
    assert torch.equal(part.uniform(), second[[2, 1]])


def test_selected_rows_continue_their_own_streams() -> None:
    index = torch.arange(4)
    a = IndexRandomness.for_images(0, "x", index)
    a.normal(5)
    selected = a.select(torch.tensor([1, 3])).uniform(2)
    b = IndexRandomness.for_images(0, "x", index)
    b.normal(5)
    assert torch.equal(selected, b.uniform(2)[[1, 3]])


def test_step_randomness_shapes() -> None:
    randomness = StepRandomness(generator_for(0, "x"), 3)
    assert randomness.normal(1, 4, 4).shape == (3, 1, 4, 4)
    assert randomness.uniform().shape == (3,)
    assert randomness.select(torch.tensor([0])).normal(2).shape == (1, 2)
