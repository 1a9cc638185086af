"""MNIST and CIFAR-10 from a torchvision root."""

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST

from datamodules import torchvision_sets
from datamodules.torchvision_sets import TorchvisionDataModule

REAL_MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
SETTINGS = {"dataset": "MNIST", "name": "mnist", "image_size": 32, "channels": 1}


def write_idx(path: Path, values: np.ndarray, pack: bool) -> None:
    content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    path.with_name(f"{path.name}.gz" if pack else path.name).write_bytes(gzip.compress(content) if pack else content)


@pytest.fixture(params=[False, True], ids=["plain", "gz"])
def root(request, tmp_path, monkeypatch) -> Path:
    """A small root in MNIST's layout: image i of a part is filled with i."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 12)):
        images = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((28, 28), np.uint8) + (name == "t10k") * 100
        write_idx(folder / f"{name}-images-idx3-ubyte", images, request.param)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10, request.param)
    if request.param:
        md5 = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in folder.iterdir()]
        monkeypatch.setattr(MNIST, "resources", md5)
    monkeypatch.setattr(torchvision_sets, "NUM_HELD_OUT", 10)
    return tmp_path


def values(data):
    """Return what the images of each split are filled with."""
    numbers = data.record()["images"].items()
    images = {split: data.batch(split, range(n)).image.flatten(1).amax(1) for split, n in numbers}
    return {split: set(image.add(1).mul(127.5).round().int().tolist()) for split, image in images.items()}


def test_splits_are_held_out_of_training_and_official(root):
    data = TorchvisionDataModule(**SETTINGS, root=root)
    assert data.record()["images"] == {"train": 30, "val": 10, "test": 12}
    value = values(data)
    assert value["train"] | value["val"] == set(range(40))
    assert value["test"] == set(range(100, 112))
    batch = data.batch("test", range(12))
    assert batch.labels.argmax(1).tolist() == [i % 10 for i in range(12)]
    assert (batch.image[:, :, :2] == -1).all()


def test_all_training_images_train_where_the_test_images_validate(root):
    data = TorchvisionDataModule(**SETTINGS, root=root, val_from="test")
    assert data.record()["images"] == {"train": 40, "val": 10, "test": 2}
    value = values(data)
    assert value["train"] == set(range(40))
    assert value["val"] | value["test"] == set(range(100, 112))
    with pytest.raises(ValueError, match=r"data\.val_from=both"):
        TorchvisionDataModule(**SETTINGS, val_from="both")


def test_the_root_is_not_written_to(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    TorchvisionDataModule(**SETTINGS, root=root).setup()
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize("dataset", ["MNIST", "CIFAR10"])
def test_offline_without_data_is_one_sentence(tmp_path, monkeypatch, dataset):
    def offline(self):
        Path(getattr(self, "raw_folder", self.root)).mkdir(parents=True)  # as torchvision does
        raise RuntimeError("Error downloading\nTried a mirror, got:\nno route to host")

    monkeypatch.setattr(MNIST, "download", offline)
    monkeypatch.setattr(CIFAR10, "download", offline)
    data = TorchvisionDataModule(**{**SETTINGS, "dataset": dataset}, root=tmp_path / "no" / "data")
    with pytest.raises(FileNotFoundError, match=r"data\.root=FOLDER") as error:
        data.setup()
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_unknown_dataset_is_named():
    with pytest.raises(ValueError, match=r"data\.dataset=SVHN"):
        TorchvisionDataModule(**{**SETTINGS, "dataset": "SVHN"})


def test_cifar10_is_read_as_rgb(tmp_path, monkeypatch):
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)
    for name, rows in (("data_batch_1", pixels[:6]), ("test_batch", pixels[6:])):
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": list(range(len(rows)))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    monkeypatch.setattr(torchvision_sets, "NUM_HELD_OUT", 2)
    data = TorchvisionDataModule("CIFAR10", "cifar10", image_size=32, channels=3, root=tmp_path)
    expected = torch.from_numpy(pixels[6:]).view(2, 3, 32, 32)
    assert torch.equal(data.splits.test.gather(torch.arange(2), 32), expected)


@pytest.mark.skipif(not REAL_MNIST.exists(), reason=f"real MNIST is not in {REAL_MNIST}")
def test_real_mnist():
    data = TorchvisionDataModule(**SETTINGS, root=REAL_MNIST, num_train=100)
    assert data.record()["images"] == {"train": 100, "val": 2000, "test": 10000}
    # The published training set begins 5 0 4 1 9, the test set 7 2 1 0 4.
    assert data.batch("test", range(5)).labels.argmax(1).tolist() == [7, 2, 1, 0, 4]
