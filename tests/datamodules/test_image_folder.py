"""Folder trees of images, with everything that users' folders hold."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import image_folder
from datamodules.decoding import decode
from datamodules.image_folder import ImageFolderDataModule, held_out


def write_images(folder: Path, count: int, size: tuple[int, int] = (20, 14), start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


def folder_data(root: Path | None, **settings) -> ImageFolderDataModule:
    cache = (root or Path(settings.pop("cache", "."))).parent / "cache"
    return ImageFolderDataModule(
        **{"name": "image_folder", "image_size": 8, "channels": 3, "cache_dir": cache, "root": root, **settings}
    )


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "images"


def test_split_by_file_is_deterministic_and_disjoint(root):
    write_images(root / "a", 15)
    write_images(root / "b", 15, size=(9, 30), start=15)
    data = folder_data(root, val_fraction=0.1, test_fraction=0.2)
    record = data.record()
    assert record["images"] == {"train": 21, "val": 3, "test": 6}
    assert set(record["identical_images"].values()) == {0}
    assert folder_data(root, val_fraction=0.1, test_fraction=0.2).record() == record


def test_an_added_file_moves_no_other_into_training():
    names = [f"{i}.png" for i in range(100)]
    before = held_out(names, {"val": 0.1})
    after = held_out([*names, "new.png"], {"val": 0.1})
    assert len(set(before["val"]) - set(after["val"])) <= 1


def test_subfolders_are_the_splits_and_missing_ones_are_drawn(root):
    write_images(root / "train", 20)
    write_images(root / "val", 5, start=100)
    assert folder_data(root, test_fraction=0.2).record()["images"] == {"train": 16, "val": 5, "test": 4}


def test_each_folder_can_be_named(root):
    write_images(root / "big", 10)
    write_images(root / "set12", 4, start=50)
    data = folder_data(None, cache=root, train_root=root / "big", val_root=root / "set12", test_root=root / "set12")
    assert data.record()["images"] == {"train": 10, "val": 4, "test": 4}


def test_identical_files_leave_training(root):
    write_images(root / "train", 10)
    write_images(root / "val", 4, start=100)
    write_images(root / "test", 4, start=200)
    shutil.copy(root / "train" / "003.png", root / "val" / "copy.png")
    record = folder_data(root).record()
    assert record["removed_from_train"] == 1
    assert record["images"] == {"train": 9, "val": 5, "test": 4}


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("kind", ["same", "link", "parent", "link in root", "copy"])
def test_training_images_are_no_evaluation_images(root, split, kind):
    train, other = root / "train", root / "other"
    write_images(train, 6)
    settings = {f"{split}_root": {"same": f"{train}/../train", "parent": root}.get(kind, other)}
    if kind == "copy":
        shutil.copytree(train, other)
    elif kind == "link in root":
        (root / split).symlink_to("train")
        settings = {}
    else:
        other.symlink_to(train)
    message = rf"{split} images of data\.(root|{split}_root)=.* are the training images themselves .*/train\)"
    with pytest.raises(ValueError, match="are the training images themselves" if kind == "copy" else message):
        folder_data(root, **settings).splits  # noqa: B018


def test_hidden_and_other_files_are_no_images(root):
    write_images(root, 10)
    (root / "notes.txt").write_text("not an image")
    (root / "._000.png").write_bytes(b"a hidden file")
    assert sum(folder_data(root).record()["images"].values()) == 10


def test_what_is_seen_of_some_files_is_said_once(root, recwarn):
    write_images(root, 10)
    transparent = np.dstack([np.full((14, 20, 3), 40, np.uint8), np.full((14, 20), 0, np.uint8)])
    for i in range(4):
        transparent[i] = 200
        Image.fromarray(transparent).save(root / f"t{i}.png")
    frames = [Image.new("RGB", (20, 14), colour) for colour in ("red", "gray")]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    (root / "phone.HEIC").write_bytes(b"")
    (root / ".thumbnails").mkdir()
    shutil.copy(root / "000.png", root / ".thumbnails" / "000.png")
    (root / "dir.png").mkdir()
    data = folder_data(root)
    assert sum(data.record()["images"].values()) == 15
    told = [str(w.message) for w in recwarn if "images" in str(w.message) or "picture" in str(w.message)]
    assert len(told) == 3
    assert "holds 1 picture of formats" in told[0]
    assert "(phone.HEIC)" in told[0]
    assert "4 of 15 images with transparent pixels, which are seen over white (" in told[1]
    assert "t2.png and 1 more)" in told[1]
    assert "1 of 15 images with several frames or pages, of which the first is used (" in told[2]
    splits = data.splits
    stores = [splits.train, splits.val, splits.test]
    shown = [store.image(i).unique().tolist() for store in stores for i in range(len(store))]
    assert shown.count([212, 255]) == 4  # over white: (200 * 200 + 55 * 255) / 255, and not the 40 that is hidden
    assert shown.count([0, 255]) == 1


def test_none_readable_is_an_error(root):
    root.mkdir()
    for i in range(5):
        (root / f"{i}.png").write_bytes(b"nothing")
    for damaged, message in (
        ("stop", "5 of 5 images cannot"),
        ("skip", r"none of the 5 image files .*check the data's"),
    ):
        with pytest.raises(ValueError, match=message):
            folder_data(root, damaged=damaged).setup()


def test_missing_and_empty_folders_name_the_key(root):
    for make in (lambda: None, root.mkdir):
        make()
        with pytest.raises(FileNotFoundError, match=r"data\.root=FOLDER") as error:
            folder_data(root).setup()
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"data\.root=FOLDER"):
        folder_data(None, cache=root).setup()
    write_images(root, 2)
    with pytest.raises(ValueError, match="too few"):
        folder_data(root).setup()


def test_decoded_once_and_again_when_a_file_changes(root, monkeypatch):
    write_images(root, 6)
    first = folder_data(root).record()
    calls = []
    real = image_folder.read_fitted
    monkeypatch.setattr(image_folder, "read_fitted", lambda *args: calls.append(1) or real(*args))
    assert folder_data(root).record() == first
    assert not calls
    write_images(root, 1, size=(21, 21))
    assert folder_data(root).record()["fingerprint"] != first["fingerprint"]
    assert calls


def test_small_images_are_enlarged_until_they_fit(root):
    write_images(root, 6, size=(6, 4))
    data = folder_data(root, image_size=16)
    assert data.splits.train.shortest_side == 16
    assert data.splits.train.heights.unique().tolist() == [24]
    assert folder_data(root, image_size=8, short_side=12).splits.train.shortest_side == 12


def test_modes_become_grey_or_rgb(tmp_path):
    sixteen = np.full((8, 8), 0x8080, np.uint16)
    images = {
        "rgba": Image.new("RGBA", (8, 8), (200, 100, 50, 255)),
        "palette": Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4),
        "grey": Image.new("L", (8, 8), 128),
        "sixteen": Image.fromarray(sixteen),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    for name in ("rgba", "palette"):
        assert decode(tmp_path / f"{name}.png", 3, 8)[:, 0, 0].tolist() == [200, 100, 50]
    for name in ("grey", "sixteen"):
        assert decode(tmp_path / f"{name}.png", 1, 8).unique().tolist() == [128]
        assert decode(tmp_path / f"{name}.png", 3, 8).shape == (3, 8, 8)


def test_evaluation_crops_are_centred_and_training_crops_are_random(root):
    write_images(root, 6)
    data = folder_data(root, global_batch_size=4)
    path = sorted(p for p in root.iterdir())[
        held_out([f"{i:03d}.png" for i in range(6)], {"val": 0.05, "test": 0.05})["val"][0]
    ]
    centre = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[:, 6:14, 3:11]
    assert torch.equal(data.splits.val.gather(torch.tensor([0]), 8)[0], centre)
    stream = iter(data.train_dataloader())
    cuts = {tuple(image.flatten().tolist()) for _ in range(5) for image in next(stream).image}
    assert len(cuts) > 8
