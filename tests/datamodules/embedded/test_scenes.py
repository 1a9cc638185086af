"""The embedded scenes: deterministic, cached, and what their labels say."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from datamodules.embedded import raycaster, scenes
from datamodules.embedded.raycaster import CUBE, CYLINDER, SPHERE, Scenes, project, render
from datamodules.embedded.scenes import ScenesDataModule, SceneStyle, draw_scenes, generate_scenes
from datamodules.labels import COLOURS, LABELS, parse_labels

FEW = {"num_train": 24, "num_val": 4, "num_test": 4}


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors here are too small to be divided between threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def lone(shapes: list[int], colour: str = "gray", lamps=raycaster.LAMPS) -> Scenes:
    """One object in the middle of each scene, without jitter, seen from nearby."""
    n = len(shapes)
    return Scenes(
        present=torch.ones(n, 1, dtype=torch.bool),
        shape=torch.tensor(shapes)[:, None],
        albedo=(torch.tensor(COLOURS[colour]) / 255).expand(n, 1, 3),
        place=torch.zeros(n, 1, 2),
        angle=torch.zeros(n, 1),
        camera=0.5 * torch.tensor(raycaster.CAMERA).expand(n, 3),
        lamps=torch.tensor(lamps).expand(n, 3, 3),
    )


def coverage(views: Scenes, size: int) -> torch.Tensor:
    """Where a bright object differs from the empty ground: (N, S, S) bool."""
    white = replace(views, albedo=torch.full_like(views.albedo, 50.0))
    return (render(white, size) == 255).all(1)


def test_generation_is_deterministic_and_follows_style_and_split():
    style = SceneStyle(image_size=16)
    first, again = generate_scenes(style, "val", 30), generate_scenes(style, "val", 30)
    assert first["images"].shape == (30, 3, 16, 16)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (generate_scenes(style, "train", 30), generate_scenes(replace(style, seed=1), "val", 30)):
        assert not torch.equal(first["images"], other["images"])
    assert len({replace(style, **change).key() for change in ({}, {"seed": 1}, {"camera_distance": 9.0})}) == 3


def test_fewer_scenes_are_the_first_ones():
    style = SceneStyle(image_size=16)
    many, few = generate_scenes(style, "train", 210), generate_scenes(style, "train", 9)
    assert all(torch.equal(many[name][:9], few[name]) for name in few)
    assert not torch.equal(many["images"][:10], many["images"][200:])


def test_sizes_of_pictures_do_not_change_scenes():
    small, large = (generate_scenes(SceneStyle(image_size=size), "train", 20)["images"].float() for size in (32, 64))
    assert (F.avg_pool2d(large, 2) - small).abs().mean() < 1


def test_each_number_of_objects_is_equally_likely_and_each_label_occurs():
    labels = torch.cat([draw_scenes(SceneStyle(), "train", chunk)[1] for chunk in range(3)])
    assert all(160 < (labels.sum(1) == count).sum() < 240 for count in (1, 2, 3))
    assert (labels.sum(0) > 20).all()
    assert set(labels.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("camera_distance", [7.0, raycaster.CAMERA_DISTANCE])
def test_objects_are_apart_and_labelled_by_shape_and_colour(camera_distance):
    style = SceneStyle(camera_distance=camera_distance)
    drawn, labels = draw_scenes(style, "train", 0)
    for row in range(len(drawn)):
        count = int(drawn.present[row].sum())
        places, shapes, albedos = (getattr(drawn, name)[row, :count] for name in ("place", "shape", "albedo"))
        if count > 1:
            assert torch.pdist(places).min() > 2 * raycaster.RADIUS + style.gap
        colours = [list(COLOURS.values()).index(tuple((255 * albedo).round().int().tolist())) for albedo in albedos]
        numbers = {8 * shape + colour for shape, colour in zip(shapes.tolist(), colours, strict=True)}
        assert numbers == set(labels[row].nonzero()[:, 0].tolist())
        assert len(numbers) == count


@pytest.mark.parametrize("camera_distance", [7.0, raycaster.CAMERA_DISTANCE])
def test_objects_lie_in_the_frame_and_show(camera_distance):
    drawn = draw_scenes(SceneStyle(camera_distance=camera_distance), "val", 0)[0].select(slice(0, 16))
    for k in range(3):
        some = drawn.select(drawn.present[:, k])
        # Only object k shines; the others hide it but are dark.
        shown = coverage_of(some, k, hide=True)
        whole = coverage_of(some, k, hide=False)
        border = torch.cat([whole[:, 0], whole[:, -1], whole[..., 0], whole[..., -1]], dim=-1)
        assert not border.any()
        assert (shown.flatten(1).sum(1) > 0.4 * whole.flatten(1).sum(1)).all()


def coverage_of(views: Scenes, k: int, hide: bool) -> torch.Tensor:
    only = F.one_hot(torch.tensor(k), 3).float()[:, None].expand(3, 3)
    if not hide:  # the object alone, as the first one
        first = {name: getattr(views, name)[:, k : k + 1] for name in ("present", "shape", "place", "angle")}
        return coverage(replace(views, **first, albedo=torch.ones(len(views), 1, 3)), 64)
    dark = replace(views, albedo=100 * only.expand(len(views), 3, 3) - 50)
    return (render(dark, 64) == 255).all(1)


def test_masks_are_where_a_labels_object_shows(tmp_path):
    data = ScenesDataModule(image_size=64, cache_dir=tmp_path)
    index = torch.tensor([203, 1, 7])  # of two chunks, in any order
    masks = data.object_masks("test", index)
    assert masks.shape == (3, 24, 64, 64)
    for row, number in enumerate(index.tolist()):
        drawn, labels = draw_scenes(data.style, "test", number // 200)
        some, here = drawn.select(slice(number % 200, number % 200 + 1)), labels[number % 200] > 0
        assert torch.equal(masks[row].flatten(1).any(1), here)
        for k in range(int(some.present.sum())):
            colour = (torch.tensor(list(COLOURS.values())) / 255 == some.albedo[0, k]).all(1).nonzero().item()
            bright = coverage_of(some, k, hide=True)[
                0
            ]  # also where it covers a small part of a pixel, unless beside another
            mask = masks[row, 8 * some.shape[0, k] + colour]
            assert (mask & ~bright).sum() < 0.05 * mask.sum()
            assert mask.sum() > 0.75 * bright.sum()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_lone_object_has_its_colour(colour):
    views = lone([CUBE, SPHERE, CYLINDER], colour)
    mask = coverage(views, 32)
    albedo = torch.tensor(COLOURS[colour]) / 255
    for picture, covered in zip(render(views, 32).float() / 255, mask, strict=True):
        linear = picture[:, covered].pow(2.2).mean(1)
        assert F.cosine_similarity(linear, albedo, dim=0) > 0.97


def test_silhouettes_are_those_of_the_solids():
    cube, sphere, cylinder = coverage(lone([CUBE, SPHERE, CYLINDER]), 64)
    assert max(cube.sum(), sphere.sum()) < 0.8 * cylinder.sum()
    # The picture squeezes 4:3 into a square, so that the ball is as much higher than wide.
    high, wide = sphere.any(1).sum(), sphere.any(0).sum()
    assert 1.2 < high / wide < 1.45
    filled = [mask.sum() / (mask.any(1).sum() * mask.any(0).sum()) for mask in (cube, sphere, cylinder)]
    assert filled[1] < filled[2]
    assert filled[0] > 0.75  # its diagonal points sideways, but for the camera's turn


def test_depths_lie_on_the_solids():
    generator = torch.Generator().manual_seed(0)
    origin = torch.tensor([3.0, -2.0, 2.5])[:, None]
    ray = -origin + 0.8 * (2 * torch.rand(3, 4000, generator=generator) - 1)
    for shape, half in enumerate(raycaster.HALF_HEIGHTS):
        depth = raycaster._depth(shape, origin, ray)
        point = (origin + depth * ray)[:, depth.isfinite()]
        x, y, z = point.abs()
        gauge = {
            CUBE: point.abs().amax(0) / half,
            SPHERE: point.norm(dim=0) / half,
            CYLINDER: torch.maximum((x * x + y * y).sqrt(), z) / half,
        }[shape]
        assert 500 < depth.isfinite().sum() < 4000
        assert (gauge - 1).abs().max() < 1e-4
        normal = raycaster._normals(torch.full((point.shape[1],), shape), point)
        assert (normal.norm(dim=0) - 1).abs().max() < 1e-4
        assert ((normal * ray[:, depth.isfinite()]).sum(0) < 1e-3).all()  # the near side faces the viewer


def test_nearer_objects_hide_farther_ones():
    towards = torch.tensor(raycaster.CAMERA[:2]) / torch.tensor(raycaster.CAMERA[:2]).norm()
    pair = lone([SPHERE])
    both = replace(
        pair,
        present=torch.ones(1, 2, dtype=torch.bool),
        shape=torch.tensor([[SPHERE, SPHERE]]),
        albedo=torch.tensor([[[50.0] * 3, [0.0] * 3]]),
        place=torch.stack([-towards, towards])[None],
        angle=torch.zeros(1, 2),
    )
    swapped = replace(both, place=both.place.flip(1))
    assert (render(both, 48) == 255).sum() < 0.7 * (render(swapped, 48) == 255).sum()


def test_objects_cast_shadows_away_from_the_lamp():
    key_only = (raycaster.LAMPS[0], (0.0, 0.0, -9.0), (0.0, 0.0, -9.0))
    views = lone([SPHERE], lamps=key_only)
    empty = replace(views, present=torch.zeros(1, 1, dtype=torch.bool))
    ratio = (render(views, 64).float() / render(empty, 64).float())[0].mean(0)
    away = -1.6 * torch.tensor(key_only[0][:2]) / torch.tensor(key_only[0][:2]).norm()
    ends = torch.stack([torch.tensor([*away, 0.0]), torch.tensor([*-away, 0.0])], dim=1)
    (right, up), _ = project(ends[:, None], views.camera)
    column, row = ((right[0] + 1) * 32).int(), ((1 - up[0]) * 32).int()
    assert ratio[row[0], column[0]] < 0.85
    assert ratio[row[1], column[1]] > 0.95


def test_splits_are_disjoint_and_described(tmp_path):
    data = ScenesDataModule(image_size=16, cache_dir=tmp_path, label_factors=[3, 8], **FEW)
    record = data.record()
    assert record["images"] == {"train": 24, "val": 4, "test": 4}
    assert set(record["identical_images"].values()) == {0}
    assert record["label_names"] == list(LABELS)
    assert record["label_factors"] == [3, 8]
    batch = data.batch("train", range(24))
    assert batch.labels.shape == (24, 24)
    assert set(batch.labels.sum(1).tolist()) == {1, 2, 3}


def test_second_use_reads_the_cache_split_by_split(tmp_path, monkeypatch):
    first = ScenesDataModule(image_size=16, cache_dir=tmp_path, **FEW).record()
    monkeypatch.setattr(scenes, "generate_scenes", lambda *args: pytest.fail(f"{args[1]} generated again"))
    assert ScenesDataModule(image_size=16, cache_dir=tmp_path, **FEW).record() == first
    with pytest.raises(pytest.fail.Exception, match="train generated"):
        ScenesDataModule(image_size=16, cache_dir=tmp_path, **{**FEW, "num_train": 5}).setup()


def test_label_sets_are_the_drawn_ones_or_those_of_the_files(tmp_path):
    drawn = ScenesDataModule(cache_dir=tmp_path).label_sets
    assert {name: int(sets.sum()) for name, sets in drawn.items()} == {"test": 72, "new_test": 84}
    (tmp_path / "mine.json").write_text(json.dumps([["red cube", "blue sphere"]]))
    sets = ScenesDataModule(test_json=tmp_path / "mine.json").label_sets
    assert torch.equal(sets["test"], parse_labels("red cube, blue sphere", LABELS)[None])
    assert torch.equal(sets["new_test"], drawn["new_test"])


def test_bad_label_sets_stop_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "generate_scenes", lambda *args: pytest.fail("drawn"))
    with pytest.raises(FileNotFoundError, match=r"data\.new_test_json"):
        ScenesDataModule(new_test_json=tmp_path / "none.json", cache_dir=tmp_path).setup()


def test_settings_that_do_not_fit_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "_MAX_ROUNDS", 10)
    with pytest.raises(ValueError, match=r"data\.label_factors=\[3, 7\] .* set data\.label_factors=\[24\]"):
        ScenesDataModule(label_factors=[3, 7])
    with pytest.raises(ValueError, match=r"data\.num_val"):
        ScenesDataModule(image_size=16, cache_dir=tmp_path, **{**FEW, "num_val": 0}).setup()
    with pytest.raises(ValueError, match=r"data\.camera_distance=3"):
        ScenesDataModule(image_size=16, cache_dir=tmp_path, camera_distance=3.0, **FEW).setup()
