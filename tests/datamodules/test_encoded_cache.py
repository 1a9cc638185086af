"""The cache of tokens on shards, and its bound."""

import os

import pytest
import torch
from test_webdataset import folder, numbers, shard_data  # noqa: F401 - a fixture

from datamodules import encoded_cache
from datamodules.encoded_cache import EncodedCacheError, encoded
from datamodules.views import Views


class FirstPixel:
    """A tokenizer whose two tokens are the first bytes of an image, which hold its number."""

    name, num_codes, hash = "tokens", 256, "first_pixel"

    def to(self, device):
        return self

    def encode(self, image_BCHW):
        return ((image_BCHW[:, :2, 0, 0] + 1) * 127.5).round().long()


def test_tokens_of_shards_are_those_of_their_images(folder, tmp_path, monkeypatch):  # noqa: F811
    store = shard_data(folder).splits.train
    with pytest.warns(UserWarning, match="centred crop alone"):
        cache = encoded(store, 8, Views(mirrored=True), FirstPixel(), "cpu", tmp_path)
    index = torch.tensor([3, 30, 17])
    assert cache.lookup(index)[:, 1].tolist() == numbers(store.gather(index, 8)) == index.tolist()
    monkeypatch.setattr(FirstPixel, "encode", lambda self, image: pytest.fail("encoded again"))
    with pytest.warns(UserWarning, match="centred crop alone"):
        assert torch.equal(encoded(store, 8, Views(mirrored=True), FirstPixel(), "cpu", tmp_path).values, cache.values)


def test_larger_training_images_are_seen_in_the_crop_that_is_encoded(folder, tmp_path):  # noqa: F811
    data = shard_data(folder)
    with pytest.warns(UserWarning, match="centred crop alone"):
        data.use_encoder(FirstPixel(), tmp_path)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert torch.equal(batch.encoded, FirstPixel().encode(batch.image))
    assert torch.equal(batch.encoded[:, 1], batch.index)


def test_more_tokens_than_memory_are_refused_after_the_first_batch(folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 1}[name])
    monkeypatch.setattr(encoded_cache, "BATCH_SIZE", 4)
    store = shard_data(folder).splits.train
    with (
        pytest.warns(UserWarning, match="centred crop alone"),
        pytest.raises(EncodedCacheError, match=r"tokens of 40 training images take .* set data\.num_train=12 or less"),
    ):
        encoded(store, 8, Views(), FirstPixel(), "cpu", tmp_path)
