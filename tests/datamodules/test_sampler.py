"""The training stream is a pure function of (seed, step, rank); evaluation shards hold every image once."""

from itertools import islice

import pytest
import torch

from datamodules.sampler import EvaluationSampler, StepBatchSampler


def test_each_epoch_visits_each_image_once():
    sampler = StepBatchSampler(num_items=12, global_batch_size=4, seed=0)
    stream = torch.cat([batch.indices for batch in islice(sampler, 9)]).view(3, 12)
    for epoch in stream:
        assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(stream[0], stream[1])


@pytest.mark.parametrize("global_batch_size", [4, 10, 14, 50])
def test_batches_are_slices_of_one_stream_of_permutations(global_batch_size):
    sampler = StepBatchSampler(num_items=20, global_batch_size=global_batch_size, seed=3)
    stream = torch.cat([batch.indices for batch in islice(sampler, 20)])
    for epoch in stream[: len(stream) // 20 * 20].view(-1, 20):
        assert sorted(epoch.tolist()) == list(range(20))


def test_resumed_stream_is_the_tail():
    whole = list(islice(StepBatchSampler(50, 8, seed=1), 30))
    tail = list(islice(StepBatchSampler(50, 8, seed=1, start_step=17), 13))
    assert [batch.step for batch in tail] == list(range(17, 30))
    for a, b in zip(whole[17:], tail, strict=True):
        assert torch.equal(a.indices, b.indices)


def test_batch_at_does_not_depend_on_what_was_asked_before():
    sampler = StepBatchSampler(50, 8, seed=1)
    steps = [40, 3, 3, 100, 0]
    asked = [sampler.batch_at(step).indices for step in steps]
    for step, indices in zip(steps, asked, strict=True):
        assert torch.equal(indices, StepBatchSampler(50, 8, seed=1).batch_at(step).indices)


def test_seeds_differ():
    assert not torch.equal(
        StepBatchSampler(50, 50, 0).batch_at(0).indices, StepBatchSampler(50, 50, 1).batch_at(0).indices
    )


@pytest.mark.parametrize("world_size", [2, 4])
def test_union_over_ranks_is_the_batch_of_one_rank(world_size):
    for step in (0, 2, 7):
        ranks = [StepBatchSampler(13, 8, 0, rank=r, world_size=world_size).batch_at(step) for r in range(world_size)]
        assert torch.equal(
            torch.cat([batch.indices for batch in ranks]), StepBatchSampler(13, 8, 0).batch_at(step).indices
        )


def test_indivisible_batch_size_is_one_clear_sentence():
    with pytest.raises(
        ValueError, match=r"data\.global_batch_size=9 .* 2 ranks: set data\.global_batch_size=8"
    ) as error:
        StepBatchSampler(100, 9, 0, world_size=2)
    assert "\n" not in str(error.value)


def test_five_images_over_two_ranks_are_five():
    shards = [EvaluationSampler(5, 10, rank, 2) for rank in range(2)]
    images = [torch.cat([batch.indices for batch in shard]).tolist() for shard in shards]
    assert images == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("num_items", [5, 8, 23])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_covers_all_images_in_equally_many_batches(num_items, batch_size, world_size):
    shards = [EvaluationSampler(num_items, batch_size, rank, world_size) for rank in range(world_size)]
    batches = [[batch.indices.tolist() for batch in shard] for shard in shards]
    assert sorted(i for shard in batches for batch in shard for i in batch) == list(range(num_items))
    assert {len(shard) for shard in batches} == {len(shards[0])}
    largest = max(len(batch) for shard in batches for batch in shard)
    assert largest <= max(batch_size, 2 if world_size > 1 else 1)


def test_fewer_images_than_ranks_is_an_error():
    with pytest.raises(ValueError, match=r"data\.num_test"):
        EvaluationSampler(2, 10, 0, 4)
