"""i-CLEVR's public layout, and everything that can be wrong with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import iclevr
from datamodules.iclevr import ICLEVRDataModule, scene_of, split_scenes
from datamodules.labels import COLOURS, LABELS, SHAPES, multi_hot

REAL = Path(__file__).parents[3] / "shared" / "data" / "iclevr"
NUM_SCENES = 40


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    content = edit(content) or content
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path) -> Path:
    """Forty scenes of three pictures, half of them of each published size."""
    root = tmp_path / "iclevr_root"
    (root / "images").mkdir(parents=True)
    labels = {}
    for scene in range(NUM_SCENES):
        for frame in range(3):
            name = f"CLEVR_train_{scene:06d}_{frame}.png"
            labels[name] = [LABELS[(scene + 7 * k) % 24] for k in range(frame + 1)]
            height, width = ((240, 320), (64, 64))[scene % 2]
            picture = np.zeros((height, width, 4), np.uint8)  # the public files have an alpha channel
            picture[..., :3] = (scene, 80 * frame, 0)
            picture[: height // 2, :, 2] = 200
            picture[..., 3] = 255
            Image.fromarray(picture).save(root / "images" / name, compress_level=1)
    contents = {
        "objects.json": {name: i for i, name in enumerate(LABELS)},
        "train.json": labels,
        "test.json": [["red cube"], ["blue sphere", "gray cube"]],
        "new_test.json": [["cyan cylinder", "blue sphere", "gray cube"]],
    }
    for file, content in contents.items():
        (root / file).write_text(json.dumps(content))
    return root


def data_of(root: Path | None, **settings) -> ICLEVRDataModule:
    cache = settings.pop("cache_dir", None) or root.parent / "cache"
    return ICLEVRDataModule(root=root, cache_dir=cache, **{"label_factors": [3, 8], **settings})


def scenes_in(data: ICLEVRDataModule, split: str, count: int) -> set[int]:
    image = data.batch(split, range(count)).image
    return set(((image[:, 0] + 1) * 127.5).round().mean((1, 2)).int().tolist())


def test_both_sizes_are_squeezed_to_one_and_labelled(root):
    data = data_of(root)
    image, labels = (getattr(data.batch("train", range(108)), name) for name in ("image", "labels"))
    assert image.shape == (108, 3, 64, 64)
    names = split_scenes(list(json.loads((root / "train.json").read_text())))["train"]
    written = json.loads((root / "train.json").read_text())
    assert torch.equal(labels, multi_hot([written[name] for name in names], LABELS))
    bytes_ = ((image + 1) * 127.5).round().int()
    for picture, name in zip(bytes_, names, strict=True):
        scene, frame = (int(part) for part in name.removesuffix(".png").split("_")[2:])
        assert (picture[0] == scene).all()
        assert (picture[1] == 80 * frame).all()
        assert (picture[2, :31] == 200).all()  # the upper half stays the upper half: no crop
        assert (picture[2, 33:] == 0).all()


def test_splits_hold_whole_scenes_and_follow_the_names_alone(root):
    data = data_of(root, seed=3)
    record = data.record()
    assert record["images"] == {"train": 108, "val": 6, "test": 6}
    assert "bilinear" in record["resize"]
    parts = [scenes_in(data, split, count) for split, count in record["images"].items()]
    assert [len(part) for part in parts] == [36, 2, 2]
    assert set.union(*parts) == set(range(NUM_SCENES))
    assert data_of(root, seed=4).record()["fingerprint"] == record["fingerprint"]


def test_the_published_number_of_scenes_holds_out_three_hundred():
    names = [f"CLEVR_train_{scene:06d}_{frame}.png" for scene in range(6003) for frame in range(3)]
    parts = split_scenes(names)
    assert {split: len(part) for split, part in parts.items()} == {"train": 16_209, "val": 900, "test": 900}
    scenes = [{scene_of(name) for name in part} for part in parts.values()]
    assert sum(map(len, scenes)) == len(set.union(*scenes)) == 6003
    assert split_scenes(names[::-1]) == parts


@pytest.mark.parametrize("folder", ["iclevr", ""])
def test_pictures_are_found_beside_or_below_the_files(root, folder):
    record = data_of(root).record()
    if folder:
        (root / "images").rename(root / folder)
    else:
        for file in (root / "images").iterdir():
            file.rename(root / file.name)
    assert data_of(root).record()["fingerprint"] == record["fingerprint"]


def test_each_path_can_be_named_by_itself(root, tmp_path):
    record = data_of(root).record()
    apart = tmp_path / "apart"
    apart.mkdir()
    keys = {}
    for file in ("objects.json", "train.json", "test.json", "new_test.json"):
        keys[file.replace(".", "_")] = (root / file).rename(apart / f"my_{file}")
    data = data_of(None, images=root / "images", cache_dir=tmp_path / "cache", **keys)
    assert data.record()["fingerprint"] == record["fingerprint"]


def test_second_use_reads_the_cache_until_a_file_changes(root, monkeypatch):
    first = data_of(root).record()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(root / "images" / "CLEVR_train_000001_0.png")
    assert data_of(root).record()["fingerprint"] != first["fingerprint"]
    monkeypatch.setattr(iclevr, "read_squeezed", lambda *args: pytest.fail("decoded again"))
    data_of(root).setup()
    with pytest.raises(pytest.fail.Exception):
        data_of(root, image_size=32).setup()


def test_label_sets_load_without_pictures(root, monkeypatch):
    monkeypatch.setattr(ICLEVRDataModule, "load_splits", lambda self: pytest.fail("images were loaded"))
    sets = data_of(root).label_sets
    assert torch.equal(sets["test"], multi_hot([["red cube"], ["blue sphere", "gray cube"]], LABELS))
    assert sets["new_test"].shape == (1, 24)
    assert data_of(root).label_names == LABELS


def test_root_is_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set data\.root=FOLDER"):
        data_of(None, cache_dir=tmp_path).setup()
    with pytest.raises(FileNotFoundError, match=r"none does not exist: set data\.root=FOLDER"):
        data_of(tmp_path / "none").setup()


@pytest.mark.parametrize("file", ["objects.json", "train.json", "test.json", "new_test.json"])
def test_missing_file_is_named_with_its_key(root, file):
    (root / file).unlink()
    key = file.replace(".", "_")
    with pytest.raises(FileNotFoundError, match=rf"{file} does not exist: set data\.root=FOLDER .*data\.{key}=FILE"):
        data_of(root).setup()


def colour_major(objects):
    return {f"{colour} {shape}": i for i, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES)}


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("objects.json", list, r"objects\.json does not give each label name a number"),
        ("objects.json", lambda o: o.update({"red cube": 0}), r"objects\.json does not give each label name a number"),
        ("objects.json", lambda o: o.update({"pink cone": 24}), r"data\.num_classes=24, but .*has 25 labels"),
        ("objects.json", colour_major, r"data\.label_factors=\[3, 8\] .* set data\.label_factors=\[24\]"),
        ("train.json", list, r"train\.json does not give lists of label names by image file"),
        ("train.json", lambda t: t.update({"x_0.png": "red cube"}), r"train\.json: x_0\.png is not a list of label"),
        ("train.json", lambda t: t.update({"x_0.png": ["red"]}), r"train\.json: x_0\.png has the unknown label 'red'"),
        ("train.json", lambda t: t.update({"x_0.png": []}), r"train\.json: x_0\.png is empty"),
        ("train.json", lambda t: {"a_0.png": ["red cube"], "b_0.png": ["red cube"]}, "2 scenes, too few"),
        ("test.json", lambda s: s.append(["pink cone"]), r"test\.json: set 2 .* unknown label 'pink cone'"),
        ("new_test.json", lambda s: s.append([]), r"new_test\.json: set 1 .* is empty"),
    ],
)
def test_files_of_another_content_are_named_before_decoding(root, monkeypatch, file, edit, message):
    monkeypatch.setattr(iclevr, "read_squeezed", lambda *args: pytest.fail("decoded"))
    change(root / file, edit)
    with pytest.raises(ValueError, match=message) as error:
        data_of(root).setup()
    assert "\n" not in str(error.value)


def test_labels_in_another_order_load_without_factors(root):
    change(root / "objects.json", colour_major)
    data = data_of(root, label_factors=[24])
    data.setup()
    assert data.label_names[1] == "gray sphere"


def test_missing_pictures_are_counted_and_named(root):
    for scene in range(5):
        (root / "images" / f"CLEVR_train_00000{scene}_1.png").unlink()
    message = (
        r"5 of the 120 images .*train\.json names .*\(CLEVR_train_000000_1\.png, CLEVR_train_000001_1\.png, "
        r"CLEVR_train_000002_1\.png and 2 more\).*data\.images=FOLDER.*data\.allow_missing=true"
    )
    with pytest.raises(FileNotFoundError, match=message):
        data_of(root).setup()
    with pytest.warns(UserWarning, match="5 of the 120 images") as caught:
        record = data_of(root, allow_missing=True).record()
    assert len([warning for warning in caught if "left out" in str(warning.message)]) == 1
    assert sum(record["images"].values()) == 115


def test_no_picture_at_all_stops_even_where_some_may_miss(root):
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"120 of the 120 images .*data\.images=FOLDER"):
        data_of(root, allow_missing=True).setup()


@pytest.mark.skipif(not REAL.exists(), reason=f"i-CLEVR is not in {REAL}")
def test_real_files(tmp_path):
    data = data_of(REAL, cache_dir=tmp_path)
    assert data.label_names == LABELS
    assert {name: (len(sets), int(sets.sum())) for name, sets in data.label_sets.items()} == {
        "test": (32, 72),
        "new_test": (32, 84),
    }
    labels = data.read_labels()
    assert len(labels) == 18_009
    assert {split: len(part) for split, part in split_scenes(list(labels)).items()} == {
        "train": 16_209,
        "val": 900,
        "test": 900,
    }


@pytest.mark.skipif(not REAL.exists(), reason=f"i-CLEVR is not in {REAL}")
def test_the_public_label_sets_are_no_new_combinations():
    """What docs/generation.md says of them, from the published files themselves."""
    read = {name: json.loads((REAL / f"{name}.json").read_text()) for name in ("train", "test", "new_test")}
    trained = {frozenset(labels) for labels in read["train"].values()}
    seen = {name: sum(frozenset(labels) in trained for labels in read[name]) for name in ("test", "new_test")}
    assert seen == {"test": 31, "new_test": 32}
    assert len(read["test"]) == len(read["new_test"]) == 32
