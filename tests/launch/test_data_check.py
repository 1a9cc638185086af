"""The data of a run are those of its record, wherever and whenever it continues."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import checked_command, read_json, train_here
from hydra.utils import get_object
from omegaconf import OmegaConf
from PIL import Image

from launch.commands import evaluate
from launch.commands.train import train
from launch.compose import compose_config
from launch.data_check import check_answer, check_unchanged, data_record, settings_digest
from launch.errors import UserError
from launch.paths import PATH_KEYS, make_absolute, path_nodes
from launch.received import own
from launch.record import config_hash
from launch.run_folder import RunFolder, identity, write_json
from launch.use.model_card import _earlier_data

PRINTS = {"train": "aa", "val": "bb", "test": "cc"}


def config_of(**data: Any):
    return OmegaConf.create(
        {"data": {"_target_": "x", "root": "/pics", "global_batch_size": 8, "num_test": None, **data}}
    )


def data_of(**prints: str) -> Any:
    record = {
        "name": "image_folder", "source": "image files", "folders": {"train": "/pics"}, "fingerprint": "ff",
        "images": {"train": 36, "val": 2, "test": 2}, "fingerprints": {**PRINTS, **prints},
    }  # fmt: skip
    return SimpleNamespace(record=lambda: record)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    write_json(run.record_path, {"data": data_record(run, config_of(), data_of(), None)})
    return run


def test_changed_data_stop_with_both_fingerprints(run: RunFolder) -> None:
    assert check_unchanged(run, config_of(), data_of()) == {}
    sentence = (
        r"data of .*run have changed .*: val bb of 2 images is now b2 of 2 images, test cc of 2 images is now c2 of 2 images "
        r"\(/pics\).* data_changed=accept"
    )
    with pytest.raises(UserError, match=sentence):
        check_unchanged(run, config_of(global_batch_size=4, damaged="skip"), data_of(test="c2", val="b2"))
    assert check_unchanged(run, config_of(), data_of(val="b2"), ("test", "label_sets")) == {}
    with pytest.raises(UserError, match=r"label_sets none is now dd"):
        check_unchanged(run, config_of(), data_of(label_sets="dd"), ("test", "label_sets"))
    accepted = check_unchanged(run, config_of(), data_of(test="c2"), answer="accept")
    assert accepted == {"test": {"recorded": "cc", "found": "c2"}}
    with pytest.raises(UserError, match="data_changed=yes is unknown: choose stop or accept"):
        check_answer("yes")


def test_other_data_that_were_asked_for_are_said_and_used(run: RunFolder) -> None:
    for config in (config_of(num_test=1), config_of(root="/others")):
        with pytest.warns(UserWarning, match=r"settings were changed: test cc of 2 images is now c2"):
            assert check_unchanged(run, config, data_of(test="c2")) == {}


def test_a_record_from_before_is_no_obstacle(run: RunFolder) -> None:
    write_json(run.record_path, {"data": {"name": "image_folder", "fingerprint": "ee"}})
    with pytest.warns(UserWarning, match="older than fingerprints of splits and labels"):
        assert check_unchanged(run, config_of(), data_of()) == {}
    assert data_record(run, config_of(), data_of(), 5)["earlier"] == [
        {"until_step": 5, "name": "image_folder", "fingerprint": "ee"}
    ]


def test_the_record_keeps_what_the_data_were(run: RunFolder) -> None:
    assert "earlier" not in data_record(run, config_of(), data_of(), 3)
    for step, value in ((4, "c2"), (6, "c3"), (7, "c3")):
        record = data_record(run, config_of(), data_of(test=value), step)
        write_json(run.record_path, {"data": record})
    assert [(one["until_step"], one["fingerprints"]["test"]) for one in record["earlier"]] == [(4, "cc"), (6, "c2")]
    assert record["fingerprints"]["test"] == "c3"


def test_the_card_says_what_the_data_were(run: RunFolder) -> None:
    assert _earlier_data(data_record(run, config_of(), data_of(), 3)) == {}
    text = _earlier_data(data_record(run, config_of(), data_of(test="c2"), 1500))
    assert text == {"earlier data": "until step 1,500 fingerprint ff"}


def test_paths_mean_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [
        "experiment=vqgan_cats",
        "data.root=a/../pics",
        "perceptual=vgg16",
        "classifier=runs/c",
    ]
    config = compose_config([*overrides, "perceptual.heads='~/vgg.pth'"])
    before = config_hash(config)
    make_absolute(config)
    assert (config.data.root, config.data.test_root) == (f"{tmp_path}/pics", f"{tmp_path}/pics/val")
    assert (config.classifier, config.tokenizer) == (f"{tmp_path}/runs/c", "auto")
    assert config.perceptual.heads == str(Path("~/vgg.pth").expanduser())
    assert config_hash(config) == before
    shards = compose_config(["experiment=meanflow_dit", "data=webdataset"])
    shards.data.train = ["s/train-{0..9}.tar", "https://host/a.tar", "pipe:cat b.tar", "/c.tar"]
    shards.data.val = "~/v-*.tar::w.tar"
    make_absolute(shards)
    assert list(shards.data.train) == [
        f"{tmp_path}/s/train-{{0..9}}.tar", "https://host/a.tar", "pipe:cat b.tar", "/c.tar"
    ]  # fmt: skip
    assert shards.data.val == f"{Path.home()}/v-*.tar::{tmp_path}/w.tar"
    once = [value for _, _, value in path_nodes(shards)]
    make_absolute(shards)
    assert [value for _, _, value in path_nodes(shards)] == once


def test_every_argument_that_takes_a_path_is_known() -> None:
    arguments = {
        name
        for target, names in own().arguments.items()
        for name, parameter in inspect.signature(get_object(target)).parameters.items()
        if name in names and "Path" in str(parameter.annotation)
    }
    outputs = {"default_root_dir", "folder", "save_dir"}
    assert {"root", "test_json", "weights", "cache_dir"} <= arguments <= PATH_KEYS | outputs


def write_pictures(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:03d}.png")


def test_a_run_keeps_to_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, folder in enumerate(("a", "b")):
        write_pictures(tmp_path / folder / "pics", seed)
    monkeypatch.chdir(tmp_path / "a")
    overrides = ["data=image_folder", "data.root=pics", "data.image_size=16", "degradation=blur"]
    run = train_here(tmp_path / "run", "experiment=meanflow_dit", *overrides, "callbacks.calibration=null")
    recorded = run.record["data"]
    assert recorded["settings"] == settings_digest(run.config())

    def evaluated(*arguments: str) -> dict[str, Any]:
        name = f"e{len(list(run.path.glob('evaluations/*')))}"
        evaluate.main([f"run={run.path}", f"name={name}", *arguments])
        return read_json(run.path / "evaluations" / name / "metrics.json")["record"]["data"]

    monkeypatch.chdir(tmp_path / "b")
    assert evaluated()["fingerprints"] == recorded["fingerprints"]
    with pytest.warns(UserWarning, match="settings were changed"):
        assert evaluated("data.root=pics")["folders"] == {"train": str(tmp_path / "b" / "pics")}
    typed = checked_command(f"resume={run.path}", "data.root=pics", "trainer.max_steps=3").hydra.overrides.task
    assert f"data.root='{tmp_path}/b/pics'" in typed
    assert "data.root=pics" not in typed
    write_pictures(tmp_path / "a" / "pics", 2)
    with pytest.raises(UserError, match=rf"test \w+ of 2 images is now .*{tmp_path}/a/pics.*data_changed=accept"):
        evaluated()
    assert evaluated("data_changed=accept")["changed"]["test"]["recorded"] == recorded["fingerprints"]["test"]

    config = run.config()
    config.resume, config.paths.run, config.name = str(run.path), str(run.path), "meanflow_dit"
    config.trainer.max_steps = 3
    with pytest.raises(UserError, match=r"train \w+ of 36 images is now \w+ of 36 images"):
        train(run, config, identity(run.overrides()))
    assert run.record["data"] == recorded
    config.data_changed = "accept"
    train(run, config, identity(run.overrides()))
    (earlier,) = run.record["data"]["earlier"]
    assert (earlier["until_step"], earlier["fingerprints"]) == (2, recorded["fingerprints"])
    assert run.record["data"]["fingerprints"] != recorded["fingerprints"]
