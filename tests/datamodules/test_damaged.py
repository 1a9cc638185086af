"""Image files that cannot be decoded: they stop the run or are left out and counted, in all data sets that read files."""

import io
import json
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import composed, read_json, tiny, train_here
from PIL import Image, ImageFile
from test_webdataset import first_shard, numbers, png, shard_data, write_shard, write_shards

from datamodules.damage import DamagedImageError
from datamodules.decoding import decode
from datamodules.iclevr import ICLEVRDataModule
from datamodules.image_folder import ImageFolderDataModule
from datamodules.labels import LABELS
from files.images import DECODING_ERRORS
from launch.commands.train import train
from launch.errors import EXIT_RUN_FAILED, UserError, exit_code
from launch.run_folder import RunFolder


def encoded(kind: str, number: int = 0) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png(number, (64, 64)))).save(file, kind)
    return file.getvalue()


def with_size(content: bytes, width: int, height: int) -> bytes:
    """A PNG file that claims to be larger."""
    return content[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:]


DAMAGED = {
    "empty": b"",
    "text": b"this is no image\n" * 20,
    "truncated_jpeg": encoded("JPEG")[:-400],
    "truncated_png": encoded("PNG")[:-2000],
    "truncated_webp": encoded("WEBP")[:-400],
    "header_only": encoded("PNG")[:40],
    "bomb": with_size(encoded("PNG"), 30_000, 30_000),
    "wrong_checksum": encoded("PNG")[:200] + b"\x00\xff" * 50 + encoded("PNG")[300:],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_never_decoded_in_part(kind):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(DECODING_ERRORS):
        decode(io.BytesIO(DAMAGED[kind]), 3, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_files_with_wrong_bytes_decode_or_raise_what_is_expected(kind):
    """Whatever Pillow makes of such files, it is no error that would end a run with a traceback."""
    whole, draws = encoded(kind), np.random.default_rng(0)
    raised = 0
    for _ in range(150):
        content = bytearray(whole)
        for place in draws.integers(0, len(whole), draws.integers(1, 30)) % draws.choice([100, len(whole)]):
            content[place] = draws.integers(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                decode(io.BytesIO(bytes(content[: draws.integers(20, len(whole) + 1)])), 3, 8)
        except DECODING_ERRORS:
            raised += 1
    assert raised > 20


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Thirty images of a folder, eight of them damaged in eight ways."""
    (tmp_path / "images").mkdir()
    for i in range(22):
        (tmp_path / "images" / f"{i:02d}.png").write_bytes(png(i))
    for kind, content in DAMAGED.items():
        (tmp_path / "images" / f"z_{kind}.png").write_bytes(content)
    return tmp_path / "images"


def folder_data(root: Path, **settings) -> ImageFolderDataModule:
    return ImageFolderDataModule("image_folder", 8, 3, root=root, cache_dir=root.parent / "cache", **settings)


def test_image_folder_stops_by_default_and_names_the_files(images):
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(
            DamagedImageError,
            match=r"8 of 30 images cannot be decoded \(.*z_bomb\.png, .*z_empty\.png, .*png and 5 more\).*damaged=skip",
        ) as error:
            folder_data(images).setup()
        assert "\n" not in str(error.value)


def test_image_folder_skips_and_counts(images):
    with pytest.warns(UserWarning, match=r"8 of 30 images cannot be decoded and are left out \(.*z_bomb\.png"):
        record = folder_data(images, damaged="skip", val_fraction=0.2, test_fraction=0.2).record()
    assert sum(record["images"].values()) == 22
    assert (record["damaged"], record["damaged_images"]) == ("skip", 8)
    assert record["damaged_first"][1] == str(images / "z_empty.png")
    for file in images.glob("z_*"):
        file.unlink()
    assert folder_data(images, damaged="stop").record()["damaged_images"] == 0


@pytest.fixture
def iclevr(tmp_path: Path) -> Path:
    """Ten scenes of three pictures, two of them damaged."""
    root = tmp_path / "iclevr"
    (root / "images").mkdir(parents=True)
    labels = {f"CLEVR_train_{i:06d}_{k}.png": [LABELS[i]] for i in range(10) for k in range(3)}
    for number, name in enumerate(labels):
        (root / "images" / name).write_bytes(png(number))
    contents = {
        "objects.json": {name: i for i, name in enumerate(LABELS)},
        "train.json": labels,
        "test.json": [["red cube"]],
        "new_test.json": [["red cube"]],
    }
    for file, content in contents.items():
        (root / file).write_text(json.dumps(content))
    for name, kind in (("CLEVR_train_000003_1.png", "empty"), ("CLEVR_train_000005_0.png", "truncated_png")):
        (root / "images" / name).write_bytes(DAMAGED[kind])
    return root


def test_iclevr_stops_or_skips(iclevr):
    def data(damaged: str) -> ICLEVRDataModule:
        return ICLEVRDataModule(image_size=8, root=iclevr, cache_dir=iclevr.parent / "cache", damaged=damaged)

    with pytest.raises(
        DamagedImageError, match=r"2 of 30 images cannot be decoded \(.*000003_1\.png, .*000005_0\.png\)"
    ):
        data("stop").setup()
    skipping = data("skip")
    with pytest.warns(UserWarning, match="2 of 30 images cannot be decoded and are left out"):
        skipping.setup()
    record = skipping.record()
    assert sum(record["images"].values()) == 28
    assert record["damaged_images"] == 2
    assert all((skipping.batch(split, range(n)).image > -1).any() for split, n in record["images"].items())


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Forty training images in four shards, of which number 3, 8 and 9 of the first are damaged."""
    folder = tmp_path / "shards"
    write_shards(folder, "train", 4)
    write_shards(folder, "val", 1, start=500)
    write_shards(folder, "test", 1, start=600)
    kinds = {3: "truncated_jpeg", 8: "empty", 9: "text"}
    write_shard(
        first_shard(folder),
        [{"cls": b"%d" % (i % 3), "png": DAMAGED[kinds[i]] if i in kinds else png(i)} for i in range(10)],
    )
    return folder


def test_shards_replace_a_damaged_image_by_the_next_whole_one_and_its_label(shards):
    store = shard_data(shards, damaged="skip", num_classes=3, label_key="cls").splits.train
    image, index = store.read(torch.tensor([9, 3, 8, 4, 0]), 8)
    assert numbers(image) == index.tolist() == [10, 4, 10, 4, 0]
    assert store.labels_of(index).argmax(1).tolist() == [1, 1, 1, 1, 0]
    batch = next(
        iter(
            shard_data(shards, damaged="skip", num_classes=3, label_key="cls", global_batch_size=40).train_dataloader()
        )
    )
    assert set(batch.damaged) == {3, 8, 9}
    assert batch.labels.argmax(1).tolist() == [index % 3 for index in batch.index.tolist()]


def test_the_stream_with_replacements_resumes_exactly(shards):
    settings = {"damaged": "skip", "global_batch_size": 8}
    whole = list(islice(shard_data(shards, **settings).train_dataloader(), 10))
    assert sum(len(batch.damaged) for batch in whole) == 6  # two epochs of three
    resumed = shard_data(shards, **settings)
    resumed.start_step = 6
    for a, b in zip(whole[6:], resumed.train_dataloader(), strict=False):
        assert torch.equal(a.image, b.image)
        assert a.damaged == b.damaged


def test_shards_count_when_a_batch_is_used_and_warn_once(shards):
    data = shard_data(shards, damaged="skip", global_batch_size=40)
    stream = iter(data.train_dataloader())
    first = next(stream)
    assert data.damage_record()["damaged_images"] == 0  # fetched, not used yet
    with pytest.warns(UserWarning, match=r"0000\d\.png in .*train-000\.tar cannot be decoded and is replaced"):
        data.on_after_batch_transfer(first, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.on_after_batch_transfer(next(stream), 0)
    assert data.damage_record() == {
        "damaged": "skip",
        "damaged_images": 3,
        "damaged_first": [f"0000{i}.png in {first_shard(shards)}" for i in (3, 8, 9)],
    }


def test_shards_stop_at_the_batch_that_meets_the_image(shards):
    data = shard_data(shards)
    stream = iter(data.train_dataloader())
    indices = torch.cat([batch.indices for batch in islice(data.train_dataloader().index_batches, 5)])
    bad_step = min((indices == bad).nonzero().item() // 8 for bad in (3, 8, 9))
    assert len(list(islice(stream, bad_step))) == bad_step
    with pytest.raises(
        DamagedImageError, match=r"0000\d\.png in .*train-000\.tar cannot be decoded .*data\.damaged=skip"
    ) as error:
        next(stream)
    assert exit_code(error.value) == EXIT_RUN_FAILED


@pytest.mark.parametrize("split", ["val", "test"])
def test_damaged_evaluation_images_are_found_before_the_start_and_left_out(shards, split):
    samples = [{"png": DAMAGED["empty"] if i in (0, 4) else png(700 + i)} for i in range(10)]
    write_shard(shards / f"{split}-000.tar", samples)
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(
            DamagedImageError, match=rf"2 of 10 images cannot be decoded \(00000\.png in .*{split}-000\.tar"
        ):
            shard_data(shards).setup()
    data = shard_data(shards, damaged="skip")
    with pytest.warns(UserWarning, match="2 of 10 images cannot be decoded and are left out"):
        data.setup()
    store = getattr(data.splits, split)
    assert numbers(store.gather(torch.arange(8), 8)) == [701, 702, 703, 705, 706, 707, 708, 709]
    assert data.record()["damaged_images"] == 2


def test_nothing_but_damaged_images_is_an_error(shards):
    write_shard(shards / "val-000.tar", [{"png": b""}] * 3)
    with pytest.raises(ValueError, match="none of the 3 image files can be decoded"):
        shard_data(shards, damaged="skip").setup()


RUN = [
    "experiment=meanflow_dit",
    "data=webdataset",
    "data.image_size=16",
    "network.patch_size=4",
    "data.num_train=null",
]


@pytest.mark.slow
def test_training_stops_keeps_its_checkpoint_and_goes_on_when_told_to_skip(shards, tmp_path):
    """One run from the stop to the end: exit code, checkpoint, metric and record."""
    settings = [*RUN, *(f"data.{split}={shards}/{split}-*.tar" for split in ("train", "val", "test"))]
    settings += [f"paths.cache_dir={tmp_path}/cache", "callbacks.checkpoint.every_n_steps=1", "trainer.max_steps=6"]
    settings += ["trainer.val_check_interval=6", "callbacks.calibration=null"]
    seed = next(seed for seed in range(50) if first_damaged_step(shards, seed) == 3)
    with pytest.raises(DamagedImageError, match=r"train-000\.tar cannot be decoded"):
        train_here(tmp_path / "run", *settings, f"seed={seed}")
    step = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step in (1, 2)  # Lightning asks for one batch more than it has used, and for the next before a save
    run = RunFolder(tmp_path / "run")
    arguments = [*tiny("meanflow_dit"), *settings, f"seed={seed}", "data.damaged=skip"]
    config = composed(run.path, arguments)
    config.resume = str(run.path)
    train(run, config, arguments)
    record = read_json(run.record_path)
    assert record["finished"]
    assert record["data"]["damaged"] == "skip"
    assert record["data"]["damaged_images"] == 3
    assert len(record["data"]["damaged_first"]) == 3
    header, *rows = [line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines()]
    counts = [row[header.index("data/damaged_images")] for row in rows]
    assert [float(count) for count in counts if count] == sorted(float(count) for count in counts if count)
    assert float([count for count in counts if count][-1]) == 3
    assert torch.load(run.checkpoint, weights_only=True)["damaged_images"] == [3, 8, 9]


def first_damaged_step(shards: Path, seed: int) -> int:
    batches = islice(shard_data(shards, seed=seed, image_size=16).train_dataloader().index_batches, 5)
    return min(batch.step for batch in batches if set(batch.indices.tolist()) & {3, 8, 9})


def test_a_damaged_folder_stops_before_training(images, tmp_path):
    settings = [
        "experiment=meanflow_dit",
        "data=image_folder",
        f"data.root={images}",
        "data.image_size=16",
        "network.patch_size=4",
    ]
    with pytest.raises(UserError, match=r"8 of 30 images cannot be decoded"):
        train_here(tmp_path / "run", *settings, f"paths.cache_dir={tmp_path}/cache")
    assert not (tmp_path / "run" / "checkpoints").exists()
