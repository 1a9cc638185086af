"""Fingerprints follow every pixel and label of their split, and nothing else: not the processor, not the other splits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from test_iclevr import data_of
from test_iclevr import root as iclevr_root  # noqa: F401 - a fixture
from test_image_folder import folder_data, write_images
from test_torchvision_sets import SETTINGS, write_idx
from test_webdataset import shard_data, write_shards

from datamodules import torchvision_sets
from datamodules.embedded import digits, scenes
from datamodules.iclevr import split_scenes
from datamodules.source import ImageSource
from datamodules.store import ImageStore
from datamodules.torchvision_sets import TorchvisionDataModule


def generated(cache: str) -> list[dict[str, str]]:
    """Fingerprints of a few generated images of each kind."""
    digits.FACES, digits.SIZES = ("DejaVuSans", "cmtt10"), {"train": 30, "val": 5, "test": 5}
    data = [
        digits.DigitsDataModule(cache_dir=cache, style=digits.DigitStyle(tile=48, glyph=30)),
        scenes.ScenesDataModule(num_train=20, num_val=3, num_test=3, cache_dir=cache),
    ]
    return [one.record()["fingerprints"] for one in data]


def changed(before: dict, after: dict) -> set[str]:
    return {split for split in before if before[split] != after[split]}


def small_store(**edits) -> ImageSource:
    images = torch.arange(6 * 4 * 4, dtype=torch.uint8).view(6, 1, 4, 4)
    labels = torch.nn.functional.one_hot(torch.arange(6) % 3, 3).float()
    for name, (place, value) in edits.items():
        {"images": images, "labels": labels}[name][place] = value
    return ImageStore.dense(images, labels)


def test_pixels_labels_order_and_number_count():
    whole = small_store()
    others = [
        small_store(images=((5, 0, 3, 3), 0)),
        small_store(labels=((5, 0), 1.0)),
        whole.select(torch.tensor([1, 0, 2, 3, 4, 5])),
        whole.select(torch.arange(5)),
        ImageStore.dense(whole.flat.view(6, 1, 4, 4)),
        ImageStore.dense(whole.flat.view(6, 1, 2, 8), whole.labels),
    ]
    prints = [store.fingerprint() for store in (whole, *others)]
    assert len(set(prints)) == len(prints)
    assert small_store().fingerprint() == prints[0]
    assert whole.hashed().fingerprint() == prints[0]


def test_files_of_a_folder(tmp_path):
    for start, split in enumerate(("train", "val", "test")):
        write_images(tmp_path / "images" / split, 6, start=100 * start)
    before = folder_data(tmp_path / "images").record()["fingerprints"]
    write_images(tmp_path / "images" / "val", 1, start=100)  # the same pixels
    assert folder_data(tmp_path / "images").record()["fingerprints"] == before
    (tmp_path / "images" / "val" / "100.png").write_bytes((tmp_path / "images" / "test" / "200.png").read_bytes())
    assert changed(before, folder_data(tmp_path / "images").record()["fingerprints"]) == {"val"}


def test_labels_of_shards(tmp_path):
    for name, start in (("train", 0), ("val", 500), ("test", 600)):
        write_shards(tmp_path / "shards", name, 1, start)
    settings = {"num_classes": 3, "label_key": "cls"}
    before = shard_data(tmp_path / "shards", **settings).record()["fingerprints"]
    write_shards(tmp_path / "shards", "test", 1, 601)
    assert changed(before, shard_data(tmp_path / "shards", **settings).record()["fingerprints"]) == {"test"}
    shard = tmp_path / "shards" / "train-000.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"0", content.index(b"00003.cls") + 512)] = ord("2")  # its label was 0
    shard.write_bytes(content)
    os.utime(shard, (1, 1))
    after = shard_data(tmp_path / "shards", **settings).record()["fingerprints"]
    assert changed(before, after) == {"train", "test"}


def test_labels_and_label_sets_of_iclevr(iclevr_root):  # noqa: F811
    before = data_of(iclevr_root).record()["fingerprints"]
    labels = json.loads((iclevr_root / "train.json").read_text())
    labels[split_scenes(list(labels))["test"][0]] = ["gray cube", "cyan cylinder", "red sphere", "red cube"]
    (iclevr_root / "train.json").write_text(json.dumps(labels))
    after = data_of(iclevr_root).record()["fingerprints"]
    assert changed(before, after) == {"test"}
    (iclevr_root / "new_test.json").write_text(json.dumps([["red cube"]]))
    assert changed(after, data_of(iclevr_root).record()["fingerprints"]) == {"label_sets"}


def test_labels_of_mnist(tmp_path, monkeypatch):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torchvision_sets, "NUM_HELD_OUT", 4)
    for name, count in (("train", 12), ("t10k", 5)):
        images = torch.arange(count * 28 * 28).view(count, 28, 28).to(torch.uint8).numpy()
        write_idx(folder / f"{name}-images-idx3-ubyte", images + (name == "t10k"), False)
        write_idx(folder / f"{name}-labels-idx1-ubyte", (torch.arange(count) % 10).to(torch.uint8).numpy(), False)
    before = TorchvisionDataModule(**SETTINGS, root=tmp_path).record()["fingerprints"]
    write_idx(folder / "t10k-labels-idx1-ubyte", torch.tensor([0, 1, 2, 3, 9], dtype=torch.uint8).numpy(), False)
    assert changed(before, TorchvisionDataModule(**SETTINGS, root=tmp_path).record()["fingerprints"]) == {"test"}


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="there is no other instruction set")
def test_generated_images_have_the_same_fingerprint_on_another_processor(tmp_path, monkeypatch):
    for name in ("FACES", "SIZES"):
        monkeypatch.setattr(digits, name, getattr(digits, name))
    code = "import sys, json, torch; from test_fingerprints import generated; print(json.dumps("
    code += "[torch.backends.cpu.get_cpu_capability(), generated(sys.argv[1])]))"
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "other")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    capability, found = json.loads(output.splitlines()[-1])
    assert capability == "DEFAULT"
    assert found == generated(str(tmp_path / "here"))
