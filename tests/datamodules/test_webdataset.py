"""Tar shards: every image by its index, from local files and from URLs, and all that can be wrong with them."""

import gzip
import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import read_json, train_here
from PIL import Image

from datamodules import webdataset
from datamodules.sampler import StepBatchSampler
from datamodules.shards import files as shard_files
from datamodules.shards.files import ShardError
from datamodules.shards.make import make_shards
from datamodules.webdataset import WebDatasetDataModule
from launch.errors import UserError

PER_SHARD = 10


def png(number: int, size: tuple[int, int] = (20, 14)) -> bytes:
    """An image whose first pixel holds its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[size[0] // 2 - 4, size[1] // 2 - 4] = (number // 256, number % 256, 0)  # the corner of the centred crop of 8
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, samples: list[dict[str, bytes]], start: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples, start):
            for ending, content in sample.items():
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_shards(folder: Path, name: str, count: int, start: int = 0) -> None:
    for shard in range(count):
        first = start + shard * PER_SHARD
        samples = [{"cls": str(i % 3).encode(), "png": png(i)} for i in range(first, first + PER_SHARD)]
        write_shard(folder / f"{name}-{shard:03d}.tar", samples, first)


def shard_data(folder: Path, **settings) -> WebDatasetDataModule:
    defaults = {"name": "webdataset", "image_size": 8, "channels": 3, "cache_dir": folder.parent / "cache"}
    patterns = {split: str(folder / f"{split}-*.tar") for split in ("train", "val", "test")}
    return WebDatasetDataModule(**{**defaults, **patterns, "global_batch_size": 8, **settings})


def numbers(image: torch.Tensor) -> list[int]:
    """The numbers of images that were cropped around their centre."""
    return (image[:, 0, 0, 0].long() * 256 + image[:, 1, 0, 0].long()).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    write_shards(folder, "train", 4)
    write_shards(folder, "val", 1, start=500)
    write_shards(folder, "test", 1, start=600)
    return folder


def test_images_come_in_the_order_of_the_shards_with_their_labels(folder):
    data = shard_data(folder, num_classes=3, label_key="cls")
    assert numbers(data.splits.train.gather(torch.arange(40), 8)) == list(range(40))
    assert numbers(data.splits.val.gather(torch.tensor([9, 0]), 8)) == [509, 500]
    batch = next(iter(data.train_dataloader()))
    assert batch.labels.argmax(1).tolist() == [index % 3 for index in batch.index.tolist()]
    assert batch.labels.sum(1).tolist() == [1] * 8
    assert data.splits.train.name_of(17) == f"00017.png in {folder}/train-001.tar"


def test_a_shard_stays_open_while_it_is_read(folder, monkeypatch):
    store, read = shard_data(folder).splits.train, os.pread
    store.files.max_open = 1

    def read_meanwhile(descriptor: int, size: int, offset: int) -> bytes:
        store.files.open(3)  # as another thread may
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", read_meanwhile)
    assert store.name_of(1).startswith("00001.png")
    assert numbers(store.gather(torch.tensor([0, 11]), 8)) == [0, 11]


def test_record_says_that_resume_is_exact(folder):
    record = shard_data(folder).record()
    assert record["images"] == {"train": 40, "val": 10, "test": 10}
    assert set(record["identical_images"].values()) == {0}
    assert record["exact_resume"] is True
    assert "16 shards at a time" in record["order"]
    assert shard_data(folder).record() == record  # the second time from the index


def test_resumed_stream_equals_the_uninterrupted_one(folder):
    whole = list(islice(shard_data(folder, horizontal_flip=True).train_dataloader(), 9))
    resumed = shard_data(folder, horizontal_flip=True)
    resumed.start_step = 4
    for a, b in zip(whole[4:], resumed.train_dataloader(), strict=False):
        assert a.step == b.step
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.index, b.index)


def test_union_over_ranks_is_the_batch_of_one_rank(folder):
    store = shard_data(folder, mixed_shards=2).splits.train

    def batches(rank: int, world_size: int) -> list[torch.Tensor]:
        sampler = StepBatchSampler(len(store), 8, 0, 3, rank, world_size, store.permutation)
        return [batch.indices for batch in islice(sampler, 6)]

    for whole, *parts in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_an_epoch_reads_few_shards_at_a_time_and_every_image_once(folder):
    store = shard_data(folder, mixed_shards=2).splits.train
    orders = [store.permutation(torch.Generator().manual_seed(seed)) for seed in range(20)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(40))
        assert all(len(set((half // PER_SHARD).tolist())) == 2 for half in order.split(20))
    assert len({tuple(order.tolist()) for order in orders}) == 20
    assert (
        len({tuple(sorted(set((order[:20] // PER_SHARD).tolist()))) for order in orders}) > 3
    )  # other pairs of shards


def test_held_out_images_follow_their_content(folder):
    data = shard_data(folder, val=None, test=None, val_fraction=0.1, test_fraction=0.05)
    parts = {split: set(getattr(data.splits, split).content_hashes().tolist()) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 34, "val": 4, "test": 2}
    assert len(set.union(*parts.values())) == 40
    write_shards(folder, "train-more", 1, start=900)
    more = shard_data(folder, val=None, test=None, val_fraction=0.1, test_fraction=0.05).splits
    assert len(parts["val"] - set(more.val.content_hashes().tolist())) <= 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_training_shards_are_no_evaluation_shards(folder, split):
    (folder / "link").symlink_to(folder)
    shards = [str(folder / "link" / path.name) for path in folder.glob("*.tar")]
    with pytest.raises(ValueError, match=rf"{split} images of data\.{split} are the training images themselves"):
        shard_data(folder, **{split: shards}).splits  # noqa: B018


def test_identical_files_leave_training(folder):
    write_shard(folder / "val-000.tar", [{"png": png(number)} for number in (3, 17, 700)])
    record = shard_data(folder).record()
    assert record["removed_from_train"] == 2
    assert record["images"] == {"train": 38, "val": 3, "test": 10}


@pytest.mark.parametrize(
    "pattern", ["{folder}/train-{{000..003}}.tar", "{folder}/train-*.tar", "file://{folder}/train-00?.tar"]
)
def test_patterns_and_lists_name_the_same_shards(folder, pattern):
    listed = [str(folder / f"train-{i:03d}.tar") for i in range(4)]
    assert webdataset.expanded(pattern.format(folder=folder), "data.train") == listed
    assert webdataset.expanded(listed, "data.train") == listed
    assert len(webdataset.expanded(str(folder), "data.train")) == 6


def test_labels_are_numbers_lists_or_a_field(folder):
    contents = [b"2", b"[0, 2]", json.dumps({"class": 1}).encode(), json.dumps({"class": [1, 2]}).encode()]
    for i, split in enumerate(("train", "val", "test")):
        samples = [{"png": png(100 * i + j), "json": content} for j, content in enumerate(contents)]
        write_shard(folder / "labelled" / f"{split}-0.tar", samples)
    data = shard_data(folder / "labelled", num_classes=3, label_key="json", label_field="class")
    assert data.batch("val", range(4)).labels.tolist() == [[0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_made_shards_hold_the_files_as_they_are(tmp_path):
    images = tmp_path / "images"
    for name, count in (("cat", 5), ("dog", 4)):
        (images / name).mkdir(parents=True)
        for i in range(count):
            (images / name / f"{i}.png").write_bytes(png(10 * (name == "dog") + i))
    assert make_shards(images, tmp_path / "shards", "train", 4, labels=True) == ["cat", "dog"]
    assert len(list((tmp_path / "shards").glob("train-*.tar"))) == 3
    data = shard_data(tmp_path / "shards", val=None, test=None, num_classes=2, label_key="cls")
    batches = [data.batch(split, range(count)) for split, count in data.record()["images"].items()]
    made = {}
    for batch in batches:
        bytes_ = ((batch.image + 1) * 127.5).round()
        made |= dict(zip(numbers(bytes_), batch.labels.argmax(1).tolist(), strict=True))
    assert made == {**dict.fromkeys(range(5), 0), **dict.fromkeys(range(10, 14), 1)}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda f: make_shards(f, f.parent / "shards", "train", 4, False),
            {},
            r"has shards named train- already \(train-",
        ),
        (None, {"output": "images/shards"}, "lies inside .*images: write the shards to a folder outside"),
        (None, {"output": "images"}, "lies inside"),
        (
            lambda f: (f / "stray.png").write_bytes(png(1)),
            {"labels": True},
            r"1 image in no subfolder .*stray\.png",
        ),
        (None, {"per_shard": 0}, "--per-shard 0 must be at least 1"),
        (None, {"prefix": "../a"}, r"--prefix \.\./a is no beginning of a file name"),
    ],
)
def test_shards_are_not_mixed_with_others(tmp_path, change, options, message):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for i in range(5):
        (tmp_path / "images" / "cat" / f"{i}.png").write_bytes(png(i))
    if change:
        change(tmp_path / "images")
    before = sorted(tmp_path.rglob("*"))
    settings = {"prefix": "train", "per_shard": 20, "labels": False, **options}
    output = tmp_path / settings.pop("output", "shards")
    with pytest.raises(ValueError, match=message):
        make_shards(tmp_path / "images", output, **settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_appear_together_or_not_at_all(tmp_path, file_limit):
    (tmp_path / "images").mkdir()
    for i in range(6):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(i) + bytes(20_000 * i))
    output = tmp_path / "100%"
    file_limit(50_000)
    with pytest.raises(OSError, match="File too large"):
        make_shards(tmp_path / "images", output, "train", 1, labels=False)
    assert not list(output.iterdir())
    file_limit(1_000_000)
    make_shards(tmp_path / "images", output, "train", 1, labels=False)
    assert [path.name for path in sorted(output.iterdir())] == [f"train-{i:06d}.tar" for i in range(6)]


def first_shard(folder: Path) -> Path:
    return folder / "train-000.tar"


def cut(folder: Path, keep: float) -> None:
    path = first_shard(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def rewrite(folder: Path, *samples: dict[str, bytes]) -> None:
    write_shard(first_shard(folder), list(samples))


def claim_size(folder: Path, size: int, ending: str = "png") -> None:
    """Put a member of that size, all holes, at the front of a tar."""
    member = tarfile.TarInfo(f"00000.{ending}")
    member.size = size
    with first_shard(folder).open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(max(0, size) + 4 * tarfile.BLOCKSIZE)


def members_alone(folder: Path) -> None:
    """Cut a tar exactly behind a member: all that is missing is the end mark."""
    with tarfile.open(first_shard(folder)) as tar:
        end = tar.getmembers()[5].offset
    first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:end])


LABELLED = {"num_classes": 3, "label_key": "cls"}


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (None, {"train": None}, r"set data\.train to a folder of tar files"),
        (None, {"train": "/nowhere/a.tar"}, r"1 of 1 shards of data\.train do not exist \(/nowhere/a\.tar\)"),
        (None, {"val": "/nowhere/*.tar"}, r"/nowhere/\*\.tar matches no shard: set data\.val"),
        (lambda f: cut(f, 0.5), {}, r"train-000\.tar is (damaged|truncated)"),
        (members_alone, {}, r"train-000\.tar is truncated"),
        (lambda f: cut(f, 0), {}, r"train-000\.tar is damaged or no tar file"),
        (
            lambda f: first_shard(f).write_bytes(gzip.compress(first_shard(f).read_bytes())),
            {},
            r"train-000\.tar is compressed.*gunzip",
        ),
        (
            None,
            {"image_key": "jpg;tif"},
            r"no member ends in jpg, tif, but .* endings (cls|png), (cls|png): set data\.image_key",
        ),
        (lambda f: rewrite(f, {"png": png(0)}), LABELLED, r"00000 of .*train-000\.tar has no member \.cls, but png"),
        (lambda f: rewrite(f, {"png": png(0), "cls": b"cat"}), LABELLED, r"\.cls holds neither a number nor JSON"),
        (lambda f: rewrite(f, {"png": png(0), "cls": b"3"}), LABELLED, r"\[3\] are no label numbers from 0 to 2"),
        (lambda f: rewrite(f, {"png": png(0), "cls": b'{"a": 1}'}), LABELLED, r"the fields a: set data\.label_field"),
        (
            lambda f: rewrite(f, {"png": png(0), "cls": b"[" * 100_000}),
            LABELLED,
            r"00000 of .*neither a number nor JSON",
        ),
        (lambda f: claim_size(f, 3 * 2**30), {}, r"00000 of .*train-000\.tar: \.png has 3\.0 GiB, more than the 1 GiB"),
        (lambda f: claim_size(f, -512), {}, r"train-000\.tar is damaged or no tar file \(.*negative"),
        (None, {"num_classes": 3}, r"data\.num_classes=3 and data\.label_key=None do not go together"),
        (None, {"val": None, "val_fraction": 1.0}, r"data\.val_fraction=1\.0 must be less than 1"),
        (None, {"damaged": "ignore"}, r"data\.damaged=ignore must be 'stop' or 'skip'"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, spoil, settings, message):
    if spoil:
        spoil(folder)
    with pytest.raises((ValueError, OSError), match=message) as error:
        shard_data(folder, **settings).setup()
    assert "\n" not in str(error.value)


def test_missing_library_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ValueError, match=r"pip install 'triptych\[webdataset\]'"):
        shard_data(folder)


def test_a_changed_shard_is_indexed_again(folder):
    before = shard_data(folder).record()["fingerprint"]
    write_shard(first_shard(folder), [{"png": png(800 + i)} for i in range(11)])
    record = shard_data(folder).record()
    assert record["fingerprint"] != before
    assert record["images"]["train"] == 41


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


class Breaking(BaseHTTPRequestHandler):
    """Ends each transfer after 15,000 bytes, and continues from where it is asked to."""

    folder: Path
    asked: list[str | None]

    def do_GET(self) -> None:
        content = (self.folder / self.path.lstrip("/")).read_bytes()
        range_ = self.headers.get("Range")
        self.asked.append(range_)
        start = int(range_.removeprefix("bytes=").rstrip("-")) if range_ else 0
        assert not range_ or self.headers["If-Range"] == '"tag"'
        self.send_response(206 if range_ else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"tag"')
        self.end_headers()
        self.wfile.write(content[start : start + 15_000])

    def log_message(self, *args) -> None:
        pass


def serve(handler: type | partial) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    yield from serve(partial(Quiet, directory=folder))


def remote(address: str, folder: Path, **settings) -> WebDatasetDataModule:
    patterns = {split: f"{address}/{split}-000.tar" for split in ("val", "test")}
    train = f"{address}/train-{{000..003}}.tar"
    return shard_data(folder, **{**patterns, "train": train, **settings})


def test_shards_by_url_are_those_of_the_files_and_stay_without_network(folder, address):
    local, far = shard_data(folder), remote(address, folder)
    assert far.record()["fingerprint"] == local.record()["fingerprint"]
    for a, b in islice(zip(local.train_dataloader(), far.train_dataloader(), strict=False), 6):
        assert torch.equal(a.image, b.image)
    for split in ("train", "val", "test"):
        for path in folder.glob(f"{split}-*.tar"):
            path.unlink()  # the server has nothing any more
    assert remote(address, folder).record()["fingerprint"] == local.record()["fingerprint"]


def test_an_interrupted_transfer_goes_on_where_it_stopped(folder, monkeypatch):
    monkeypatch.setattr(shard_files, "_PAUSES", (0.0, 0.0))
    handler = type("Handler", (Breaking,), {"folder": folder, "asked": []})
    size = first_shard(folder).stat().st_size
    assert 30_000 < size < 45_000
    for address in serve(handler):
        files = shard_files.ShardFiles([f"{address}/train-000.tar"], folder.parent / "got")
        with files.open(0) as file:
            assert file.read() == first_shard(folder).read_bytes()
        assert handler.asked == [None, "bytes=15000-", "bytes=30000-"]
        monkeypatch.setattr(shard_files, "_PAUSES", (0.0,))
        files = shard_files.ShardFiles([f"{address}/train-001.tar"], folder.parent / "got")
        with pytest.raises(
            ShardError, match=rf"train-001\.tar cannot be downloaded .*ended after 30000 of {size} bytes"
        ):
            files.open(0)
    kept = [path.name for path in (folder.parent / "got").iterdir() if not path.name.endswith(".lock")]
    assert [name.partition("-")[2] for name in kept] == ["train-000.tar"]


def test_the_cache_keeps_its_size_and_fetches_again(folder, address):
    size = first_shard(folder).stat().st_size
    far = remote(address, folder, cache_gigabytes=3.2 * size / 1e9, mixed_shards=2)
    with pytest.warns(UserWarning, match="downloaded again in each epoch"):
        far.setup()
    images = [batch.image for batch in islice(far.train_dataloader(), 10)]
    downloaded = [path for path in (far.cache_dir / "shards").iterdir() if not path.name.startswith(".")]
    assert sum(path.stat().st_size for path in downloaded) <= 3.2 * size
    for a, b in zip(images, shard_data(folder, mixed_shards=2).train_dataloader(), strict=False):
        assert torch.equal(a, b.image)
    with pytest.raises(ValueError, match=r"data\.cache_gigabytes=.* does not hold the 2 shards of data\.mixed_shards"):
        remote(address, folder, cache_gigabytes=1.5 * size / 1e9, mixed_shards=2).setup()


def test_a_shard_that_others_remove_just_after_its_download_is_fetched_again(folder, address, monkeypatch):
    touch, removed = os.utime, []

    def late(path):
        if not removed:
            removed.append(path)
            Path(path).unlink()
        touch(path)

    monkeypatch.setattr(os, "utime", late)
    files = shard_files.ShardFiles([f"{address}/train-000.tar"], folder.parent / "got")
    with files.open(0) as file:
        assert file.read() == first_shard(folder).read_bytes()
    assert removed


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("{address}/none.tar", "HTTP Error 404: File not found"),
        ("http://127.0.0.1:9/a.tar", "Connection refused"),
        ("http://no-such-host.invalid/a.tar", "resolution|not known|resolve"),
        ("pipe:false", "exit"),
        ("what://a.tar", "no gopen handler"),
    ],
)
def test_no_network_is_one_sentence(folder, address, monkeypatch, train, message):
    monkeypatch.setattr(shard_files, "_PAUSES", (0.0,))
    with pytest.raises(ShardError, match=rf"the shard .* cannot be downloaded to .*({message}).*the network") as error:
        shard_data(folder, train=train.format(address=address)).setup()
    assert "\n" not in str(error.value)


def test_a_pipe_fetches_what_its_command_writes(folder):
    shard = first_shard(folder)
    data = shard_data(folder, train=f"pipe:cat {shard}")
    assert numbers(data.splits.train.gather(torch.arange(10), 8)) == list(range(10))


SETTINGS = ["experiment=meanflow_dit", "data=webdataset", "data.image_size=16", "network.patch_size=4"]


def test_training_reads_shards(folder, tmp_path):
    patterns = [
        f'data.{split}="{folder}/{split}-{{000..{last}}}.tar"' for split, last in (("train", "003"), ("val", "000"))
    ]
    settings = [*patterns, f"data.test={folder}/test-*.tar", f"paths.cache_dir={tmp_path}/cache", "data.num_train=null"]
    run = train_here(tmp_path / "run", *SETTINGS, *settings, "callbacks.calibration=null")
    record = read_json(run.record_path)
    assert record["finished"]
    assert record["data"]["exact_resume"] is True
    assert record["data"]["images"] == {"train": 40, "val": 8, "test": 10}
    with pytest.raises(UserError, match=r"shards of data\.train do not exist"):
        train_here(tmp_path / "bad", *SETTINGS, f"data.train={tmp_path}/none.tar")
    assert not (tmp_path / "bad" / "checkpoints").exists()
