"""The entry scripts: evaluation repeats training's numbers, generation keeps file names, errors are one clear sentence."""

from __future__ import annotations

import csv
import os
import re
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import checked_command, finished, read_json, script, tiny, train_here
from omegaconf import OmegaConf
from PIL import Image
from processes import Run
from user_metric import MeanError

import callbacks
from launch.command_line import is_true, whole_number
from launch.commands import compare, evaluate, export, generate, report
from launch.commands import train as training
from launch.compose import help_text
from launch.errors import UserError
from launch.evaluation import takes_part_in_test
from launch.run_folder import RunFolder, write_json
from launch.use import whole_pictures
from launch.use.restorer import hole_at_size


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_here(tmp_path_factory.mktemp("runs") / "run", "experiment=meanflow_dit", "trainer.max_steps=4")


def result(run: RunFolder, name: str) -> dict:
    return read_json(run.path / "evaluations" / name / "metrics.json")


def test_evaluation_repeats_the_end_of_training(run: RunFolder) -> None:
    evaluate.main([f"run={run.path}"])
    again, trained = result(run, "default"), read_json(run.path / "metrics.json")
    assert again["metrics"] == trained["metrics"]
    assert again["record"]["weights"] == trained["record"]["weights"] == "ema"
    assert again["record"]["evaluation"]["num_images"] == 10
    assert list((run.path / "evaluations" / "default" / "images").rglob("*.png"))


def test_evaluation_does_not_depend_on_the_batch_size(run: RunFolder) -> None:
    evaluate.main([f"run={run.path}", "name=batch", "data.eval_batch_size=10"])
    assert result(run, "batch")["metrics"] == pytest.approx(read_json(run.path / "metrics.json")["metrics"], rel=1e-4)


def test_evaluation_with_other_settings(run: RunFolder) -> None:
    evaluate.main([f"run={run.path}", "sampler=heun", "sampler.num_steps=2", "degradation=block_mask", "name=other"])
    record = result(run, "other")["record"]
    assert record["sampling"]["sampler"] == "Heun"
    assert record["sampling"]["num_network_calls"]["sample"] == 3
    assert set(record["degradation"]["steps"]) == {"block"}
    evaluate.main([f"run={run.path}", "~degradation.steps.noise", "weights=raw", "name=raw"])
    assert set(result(run, "raw")["record"]["degradation"]["steps"]) == {"salt_pepper", "block"}


def test_known_pixels_are_exact_when_reimposed(run: RunFolder) -> None:
    evaluate.main([f"run={run.path}", "degradation=block_mask", "module.reimpose_known=true", "name=reimposed"])
    metrics = result(run, "reimposed")["metrics"]
    for output in ("sample", "mean"):  # full PSNR = PSNR in the hole + 10 log10(1 / hole share)
        gain = metrics[f"psnr_pooled/{output}"] - metrics[f"psnr_hole/{output}"]
        assert gain == pytest.approx(10 * np.log10(32 * 32 / 100), abs=1e-3)


def test_a_metric_that_no_list_knows_is_measured_and_shown(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    target = "++callbacks.mean_error._target_=user_metric.MeanError"
    evaluate.main([f"run={run.path}", target, "callbacks.calibration=null", "name=own"])
    own = result(run, "own")
    assert 0 < own["metrics"]["mean_error/mean"] < 2
    assert own["record"]["mean_error"] == {"num_images": 10}
    assert own["metrics"].items() >= {name: own["metrics"][name] for name in ("psnr/mean", "ssim/mean")}.items()
    assert re.search(r"other metrics.*Mean error.*mean +│ +0\.", capfd.readouterr().out, re.DOTALL)


def test_evaluation_keeps_callbacks_by_what_they_are() -> None:
    kept = [
        callbacks.Evaluation(),
        callbacks.LabelAccuracy(),
        callbacks.ImageGrid(),
        callbacks.TrainingProgress(),
        MeanError(),
    ]
    assert all(map(takes_part_in_test, kept))
    measured = callbacks.SpikeGuard()
    assert not any(map(takes_part_in_test, [callbacks.EMA(0.9), callbacks.LastCheckpoint(), measured]))
    measured.results, measured.record = {"a/b": 1.0}, {}  # type: ignore[attr-defined]
    assert takes_part_in_test(measured)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_here(tmp_path_factory.mktemp("baseline") / "a=1,b", "experiment=regression_dit")


def comparison(run: RunFolder, name: str) -> list[dict[str, str]]:
    with (Path(run.config().paths.outputs) / "comparisons" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # outputs/ is a relative path
    return tmp_path


def test_comparison_is_every_combination_with_seeds_averaged(
    run: RunFolder, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    choices = ["sampler.num_steps=1,2", "module.evaluation_seed=range(0,2)", "callbacks.calibration=null"]
    evaluate.main(["-m", f"run={run.path}", *choices])
    printed = capfd.readouterr().out
    assert "4/4 evaluating" in printed
    (path,) = (here / "outputs" / "comparisons").iterdir()
    assert str(path.name) in printed.replace("\n", "")
    rows = comparison(run, path.stem)
    assert [(r["sampler.num_steps"], r["output"], r["num_seeds"]) for r in rows] == [
        (steps, output, "2") for steps in "12" for output in ("mean", "sample", "degraded")
    ]
    for steps in "12":
        names = [f"sampler.num_steps={steps},module.evaluation_seed={s},callbacks.calibration=null" for s in range(2)]
        values = [result(run, name)["metrics"]["psnr/sample"] for name in names]
        (row,) = (r for r in rows if (r["sampler.num_steps"], r["output"]) == (steps, "sample"))
        assert float(row["psnr"]) == pytest.approx(statistics.mean(values))
        assert float(row["psnr_seed_std"]) == pytest.approx(statistics.stdev(values))
        assert len(set(values)) == 2
        assert row["overrides"] == "callbacks.calibration=null"
    evaluate.main(["-m", f"run={run.path}", *choices, "name=again"])  # nothing is evaluated twice
    printed = capfd.readouterr().out
    assert printed.count("evaluated before, not again") == 4
    assert "evaluating" not in printed
    assert comparison(run, "again") == rows


def test_comparison_of_two_runs(run: RunFolder, baseline: RunFolder, here: Path) -> None:
    both = f"run={run.path},'{baseline.path}'"
    evaluate.main(["--multirun", both, "degradation=block_mask", "name=both", "callbacks.calibration=null"])
    rows = {(r["run"], r["output"]): r for r in comparison(run, "both")}
    assert rows.keys() == {
        ("meanflow_dit", "sample"), ("meanflow_dit", "mean"), ("meanflow_dit", "degraded"),
        ("regression_dit", "mean"), ("regression_dit", "degraded"), ("regression_dit", "mean_colour"),
        ("regression_dit", "opencv"), ("regression_dit", "nearest_image"),
    }  # fmt: skip
    masks = [rows[name, "degraded"]["psnr_hole"] for name in ("meanflow_dit", "regression_dit")]
    assert masks[0] == masks[1] != ""  # the same holes in the same images
    assert rows["meanflow_dit", "sample"]["num_seeds"] == "1"
    with pytest.raises(UserError, match=r"only python evaluate.py -m takes more than one"):
        evaluate.main([f"run={run.path},{run.path}"])
    with pytest.raises(UserError, match=r"sampler.num_stepz is no key.*\(run=.*\)"):
        evaluate.main(["-m", both, "sampler.num_stepz=1,2"])


def test_runs_on_other_images_are_not_compared(run: RunFolder, baseline: RunFolder, tmp_path: Path, here: Path) -> None:
    other = copied(baseline, tmp_path / "other")
    record = read_json(other.record_path)
    record["data"]["fingerprint"] = "0123"
    write_json(other.record_path, record)
    config = baseline.config()
    config.degradation.steps.block.num_blocks = 2
    third = copied(baseline, tmp_path / "third")
    OmegaConf.save(config, third.path / ".hydra" / "config.yaml")
    for runs, message in (
        ((run, other), r"their data.fingerprint differs \(\w+ and 0123\): give the same data= override"),
        (
            (run, third),
            r"their degradation.steps.block.num_blocks differs \(1 and 2\): give the same degradation= override",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            evaluate.main(["-m", "run=" + ",".join(str(r.path) for r in runs), "callbacks.progress=null"])
        assert "\n" not in str(caught.value)
    assert not (run.path / "evaluations" / "callbacks.progress=null").exists()
    assert not (here / "outputs").exists()


def test_what_was_evaluated_before_an_error_stays(run: RunFolder, here: Path) -> None:
    with pytest.raises(UserError, match="classifier=/nowhere: there is no"):  # found where the judge is looked for
        evaluate.main(["-m", f"run={run.path}", "classifier=null,/nowhere", "callbacks.calibration=null"])
    assert result(run, "classifier=null,callbacks.calibration=null")["metrics"]
    assert not (here / "outputs").exists()


def test_slider_ends(run: RunFolder) -> None:
    evaluate.main([f"run={run.path}", "module.mean_weight=1.0", "name=slider"])
    metrics = result(run, "slider")["metrics"]
    assert metrics["psnr/sample"] == pytest.approx(metrics["psnr/mean"])


def test_generation_keeps_names_and_sizes(run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
    Image.fromarray(noise).save(source / "a.png")
    Image.fromarray(noise).convert("RGB").save(source / "sub" / "b.jpg")
    Image.fromarray(noise[:, :32]).save(source / "c.png")
    (source / "broken.png").write_text("no image")
    assert generate.main([f"run={run.path}", f"input={source}", f"output={target}", "batch_size=2"]) == 3
    printed = capfd.readouterr().err
    assert {p.relative_to(target).as_posix() for p in target.rglob("*.*")} == {"a.png", "sub/b.jpg", "c.png"}
    assert Image.open(target / "a.png").size == (40, 32)
    assert "2 images were restored in tiles of 32x32 at most" in printed
    assert "broken.png is left out: it is in no format that is read" in printed
    again = tmp_path / "again"
    generate.main([f"run={run.path}", f"input={source}", f"output={again}", "batch_size=4"])
    difference = np.asarray(Image.open(target / "a.png")).astype(int) - np.asarray(Image.open(again / "a.png"))
    assert abs(difference).max() <= 1  # the same draws in batches of another size


def test_generation_with_masks_keeps_known_pixels(
    run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("in", "masks"):
        (tmp_path / folder).mkdir()
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:16, 4:20] = 255
    Image.fromarray(image).save(tmp_path / "in" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    common = [f"run={run.path}", f"input={tmp_path / 'in'}", f"masks={tmp_path / 'masks'}"]
    generate.main([*common, f"output={tmp_path / 'out'}"])
    restored = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert (restored[mask == 0] == image[mask == 0]).all()
    Image.fromarray(255 - mask).save(tmp_path / "black.png")
    black = [f"masks={tmp_path / 'black.png'}", "hole=black"]
    generate.main([f"run={run.path}", f"input={tmp_path / 'in'}", *black, f"output={tmp_path / 'same'}"])
    assert "1 mask: black is missing" in capfd.readouterr().err
    assert (np.asarray(Image.open(tmp_path / "same" / "a.png")) == restored).all()
    Image.fromarray(image).save(tmp_path / "in" / "b.png")
    for bad, message in (
        (mask * 0, "b.png has no hole"),
        (mask[:, :20], r"b.png has 20x32 pixels and its image 32x32: give a mask of the image's own size"),
        (None, "has no mask named b.png"),
        ("no image", "b.png cannot be read as an image"),
    ):
        if bad is None:
            (tmp_path / "masks" / "b.png").unlink()
        elif isinstance(bad, str):
            (tmp_path / "masks" / "b.png").write_text(bad)
        else:
            Image.fromarray(bad).save(tmp_path / "masks" / "b.png")
        alone = [f"run={run.path}", f"input={tmp_path / 'in' / 'b.png'}", f"masks={tmp_path / 'masks' / '*.png'}"]
        with pytest.raises(UserError, match=message):
            generate.main([*alone, f"output={tmp_path / 'other'}"])
    assert not (tmp_path / "other").exists()
    assert generate.main([*common, f"output={tmp_path / 'other'}"]) == 3  # the first image, whose mask is fine
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["a.png"]


def test_whole_pictures_are_measured_file_by_file(
    run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    colour = np.random.default_rng(1).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    small = os.fsdecode(b"sub/b\xff.png")  # a name that is no text
    for name, pixels in (("a.png", noise), ("c.png", colour), (small, noise[:33, :32])):
        Image.fromarray(pixels).save(folder / name)
    sigma = ["degradation=noise_sigma", "degradation.steps.noise.sigma=15"]
    measured = [*sigma, "callbacks=[restore,fusion]"]
    assert not evaluate.main([f"run={run.path}", f"pictures={folder}", "name=set", "border=2", *measured])
    target = run.path / "evaluations" / "set"
    with (target / "pictures.csv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    small = r"sub/b\udcff.png"
    names = ["a.png", "c.png", small]
    assert list(rows) == [*names, "mean"]
    assert (rows["a.png"]["width"], rows["a.png"]["height"]) == ("70", "50")
    for output in ("degraded", "sample", "mean"):
        mean = np.mean([float(rows[name][f"psnr/{output}"]) for name in names])
        assert float(rows["mean"][f"psnr/{output}"]) == pytest.approx(mean, abs=1e-3)
    for name in ("a.png", "c.png"):
        # but for the clipping
        assert float(rows[name]["psnr/degraded"]) == pytest.approx(20 * np.log10(255 / 15), abs=0.5)
    content = read_json(target / "pictures.json")
    record = content["record"]
    assert (record["border"], record["pictures"], record["settings"]["overrides"]) == (2, 3, measured)
    assert record["evaluation_seed"] == run.config().module.evaluation_seed
    assert record["rounded"].startswith("restored and degraded pictures are rounded to 8 bits")
    assert float(rows["a.png"]["vif/mean"]) == pytest.approx(content["metrics"]["vif/mean"], abs=1e-3)
    assert not rows[small]["vif/mean"] + rows["c.png"]["vif/mean"]  # too small
    assert "entropy" in record["definitions"]
    generate.main(
        [f"run={run.path}", f"input={folder}", f"output={tmp_path / 'out'}", "result=mean", "degrade=true", *sigma]
    )
    for name, pixels in (("a.png", noise), ("c.png", colour)):  # what is measured is what is written, of 8 bits
        made = np.asarray(Image.open(tmp_path / "out" / name)).astype(float)
        mse = np.mean((made - pixels)[2:-2, 2:-2] ** 2)
        assert float(rows[name]["psnr/mean"]) == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)
    for arguments, message in (
        (["name=set"], "set holds another evaluation: choose another name"),
        (["name=rim", "border=x"], "border=x must be a whole number"),
        (["name=rim", "batch_size=0"], "batch_size=0 must be a whole number of at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main([f"run={run.path}", f"pictures={folder}", *arguments])
    for nowhere, message in (("/nowhere", "no such folder or file"), ("~nobody_of_this_name/x", "no such home folder")):
        with pytest.raises(UserError, match=f"pictures={nowhere}: there is {message}"):
            evaluate.main([f"run={run.path}", f"pictures={nowhere}"])
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:99])
    capfd.readouterr()
    assert evaluate.main([f"run={run.path}", f"pictures={folder}", "name=none", "tile=none", "border=16", *sigma]) == 3
    printed = capfd.readouterr().err
    assert r"sub/b\udcff.png is left out: border=16 leaves nothing of it" in printed
    record = read_json(run.path / "evaluations" / "none" / "pictures.json")["record"]
    assert (record["pictures"], record["tiles"]) == (2, "resized")
    assert sorted(record["left_out"]) == ["bad.png", small]
    for name in ("a.png", "c.png"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="none of the pictures could be measured"):
        evaluate.main([f"run={run.path}", f"pictures={folder}", "name=none_at_all", "border=16"])
    (target / "pictures.json").unlink()
    whole_pictures._check_target(target, {})  # one that was never ended keeps no other one from its name


def test_a_hole_does_not_shrink_with_the_image() -> None:
    missing = torch.zeros(65, 97, dtype=torch.bool)
    missing[20, 30] = missing[64, 96] = True
    hole = hole_at_size(missing, 16)
    assert hole.shape == (1, 16, 16)
    assert hole[0, 20 * 16 // 65, 30 * 16 // 97]
    assert hole[0, 15, 15]
    assert hole.sum() <= 8
    assert torch.equal(hole_at_size(torch.eye(16, dtype=torch.bool), 16)[0], torch.eye(16, dtype=torch.bool))


def test_generation_says_what_it_cannot_do_and_writes_nothing(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (32, 32)).save(tmp_path / "in" / "a.png")
    common = [f"run={run.path}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    for arguments, message in (
        (["result=decoded"], "result=decoded is no output of this run: choose one of sample, mean"),
        (["degrade=true", f"masks={tmp_path / 'in'}"], "leave out masks="),
        (["degrade=true", "~degradation"], "this run has no degradation"),
        (["degrade=maybe"], "true or false"),
        (["tile=64"], "tile=64 must be 32, which this network sees, or auto, or none"),
        (["tile=none", "overlap=4"], "leave out one of the two"),
        (["overlap=32"], "overlap=32 must be a whole number of pixels below the tile's side, 32"),
        (["hole=black"], "hole=black is about masks"),
        (["num_images=3"], "num_images=3 is for what draws, and this call restores"),
        (["steps=true"], "steps=true: this run restores in one step"),
        ([f"init={run.path}"], "init= says what a new run begins with"),
        (["hole=grey", f"masks={tmp_path / 'in'}"], "hole=grey must be one of auto, white, black, alpha"),
    ):
        with pytest.raises(UserError, match=message):
            generate.main([*common, *arguments])
    assert not (tmp_path / "out").exists()


def test_the_home_folder_is_meant_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = generate.read_folders(generate.DEFAULTS | {"input": "~/in", "output": "~/a b", "masks": "~"})
    assert list(folders.values()) == [tmp_path / "in", tmp_path / "a b", tmp_path]


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (lambda own: is_true(own, "overwrite"), {"overwrite": "yes"}, "overwrite=yes takes true or false"),
        (generate.read_folders, {"masks": ""}, "masks= is empty"),
        (generate.read_folders, {"input": "~nobody_of_this_name/m"}, "there is no such home folder"),
        (
            lambda own: generate.read_drawing(own, ["red"], ""),
            {"label_sets": "~nobody_of_this_name/m"},
            "label_sets=.* no such home folder",
        ),
        (lambda own: whole_number(own, "batch_size", 10), {"batch_size": "11"}, "batch_size=11 .* at most 10"),
        (lambda own: whole_number(own, "batch_size", 10), {"batch_size": "9" * 5000}, "batch_size=9+ must be"),
        (lambda own: whole_number(own, "batch_size", 10), {"batch_size": "0"}, "batch_size=0 .* at least 1"),
    ],
)
def test_values_of_generation_are_checked(read, value: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(generate.DEFAULTS | value)


@pytest.mark.parametrize("command", [generate.main, evaluate.main, report.report, export.main, compare.compare])
def test_a_run_in_the_home_folder_of_nobody_is_one_sentence(command) -> None:
    key = "runs" if command is compare.compare else "run"
    with pytest.raises(UserError, match=f"{key}=~nobody_of_this_name/m: there is no such home folder"):
        command([f"{key}=~nobody_of_this_name/m"])


def test_a_run_that_fills_holes_must_be_told_where(run: RunFolder) -> None:
    config = run.config()
    config.module._target_ = "lightning_modules.MaskGIT"
    config.module.task = "inpaint"
    with pytest.raises(UserError, match="masks=FOLDER.*degrade=true"):
        generate.read_degradation(config, generate.DEFAULTS)
    assert generate.read_degradation(config, generate.DEFAULTS | {"masks": "folder"}) is None
    assert generate.read_degradation(config, generate.DEFAULTS | {"degrade": "true"}) is not None
    config.module._target_ = "lightning_modules.VQGAN"
    with pytest.raises(UserError, match="fills no holes: leave out masks="):
        generate.read_degradation(config, generate.DEFAULTS | {"masks": "folder"})


BAD_ARGUMENTS = [
    ([], "experiment=NAME"),
    (["experiment=meanflow_dti"], "did you mean meanflow_dit"),
    (["experiment=meanflow_dit", "network.dims=64"], "did you mean dim?"),
    (["experiment=meanflow_dit", "data=mnits"], "did you mean mnist?"),
    (["experiment=meanflow_dit", "trainer.max_steps=many"], "trainer.max_steps=many must be a whole number"),
    (["experiment=meanflow_dit", "no override"], "is not of the form key=value"),
    (["resume=/nowhere"], "resume=/nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        checked_command(*arguments)
    assert "\n" not in str(caught.value)


BAD_SETTINGS = [
    (["network.patch_size=5"], r"network.patch_size=5 does not divide data.image_size=32"),
    (["data=image_folder", "data.root=/nowhere"], r"data.root"),
    (["data=mnist", "data.root=/nowhere/at/all", "data.num_train=64"], r"data.root"),
    (["sampler.num_steps=0"], r"sampler.num_steps=0"),
    (["degradation.steps.noise.std=[2,1]"], r"std"),
    (["callbacks.ema.decay=2"], r"callbacks.ema.decay=2"),
    (["module.mean_weight=2"], r"module.mean_weight=2"),
    (["trainer=ddp_cpu", "data.global_batch_size=7"], r"data.global_batch_size=7 is not divisible by the 2 ranks"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD_SETTINGS)
def test_bad_settings_stop_before_training_and_leave_no_folder(
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.download", offline)
    outputs = tmp_path / "outputs"
    start_here(monkeypatch, *tiny("meanflow_dit"), *overrides, f"paths.outputs={outputs}", code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"^error: .*{message}", error)
    assert not outputs.exists()


def test_a_refused_run_leaves_a_folder_of_ones_own_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    empty, job = tmp_path / "empty", tmp_path / "job"
    empty.mkdir()
    job.mkdir()
    (job / "job.json").write_text("{}")
    for folder, own in ((empty, []), (job, []), (tmp_path / "new", []), (tmp_path / "new", ["hydra.verbose=false"])):
        before = sorted(tmp_path.rglob("*"))
        start_here(monkeypatch, "network.patch_size=5", f"hydra.run.dir={folder}", *own, code=2)
        assert sorted(tmp_path.rglob("*")) == before

    def fail(*_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(training, "train", fail)
    start_here(monkeypatch, "seed=1", f"hydra.run.dir={tmp_path / 'new'}", code=2)
    log = Path(re.findall(r"the traceback is in (.*)\.$", capsys.readouterr().err.strip())[0])
    assert "a fault of ours" in log.read_text()
    assert not (tmp_path / "new").exists()


def start_here(monkeypatch: pytest.MonkeyPatch, *overrides: str, code: int) -> None:
    """Run ``train.py`` in this process until it exits."""
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=meanflow_dit", "compile=false", *overrides])
    with pytest.raises(SystemExit) as caught:
        training.start()
    assert caught.value.code == code


def offline(*_: object) -> None:
    raise RuntimeError("offline")


def test_errors_leave_a_clean_exit() -> None:
    output = finished(script("train.py", "experiment=meanflow_dti"), code=2)
    assert output.strip().startswith("error: experiment=meanflow_dti does not exist")
    assert "Traceback" not in output


def copied(run: RunFolder, folder: Path) -> RunFolder:
    shutil.copytree(run.path, folder)
    return RunFolder(folder)


def test_a_run_without_a_checkpoint(run: RunFolder, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "run")
    other.checkpoint.unlink()
    with pytest.raises(UserError, match="has no checkpoints/last.ckpt"):
        evaluate.main([f"run={other.path}"])


def test_a_checkpoint_of_another_network(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network\.dim=64 cannot be set"):
        evaluate.main([f"run={run.path}", "network.dim=64"])
    other, config = copied(run, tmp_path / "run"), run.config()
    config.network.dim = 64
    OmegaConf.save(config, other.config_path)
    with pytest.raises(UserError, match="is a checkpoint of another network"):
        evaluate.main([f"run={other.path}"])


def test_a_checkpoint_that_would_run_code_is_refused(run: RunFolder, tmp_path: Path) -> None:
    other, marker = copied(run, tmp_path / "run"), tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (marker,))

    torch.save({"state_dict": Attack()}, other.checkpoint)
    with pytest.raises(UserError, match="is refused"):
        evaluate.main([f"run={other.path}"])
    (tmp_path / "in").mkdir()
    Image.new("L", (32, 32)).save(tmp_path / "in" / "a.png")
    with pytest.raises(UserError, match="is refused"):
        generate.main([f"run={other.path}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"])
    assert not marker.exists()


def test_a_truncated_checkpoint_is_refused(run: RunFolder, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "run")
    other.checkpoint.write_bytes(other.checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="is refused"):
        evaluate.main([f"run={other.path}"])


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(run: RunFolder, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "run")
    shutil.copy(other.checkpoint, other.checkpoint.with_name("previous.ckpt"))
    other.checkpoint.write_bytes(other.checkpoint.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"previous\.ckpt of step \d+ is used instead"):
        evaluate.main([f"run={other.path}"])
    (tmp_path / "in").mkdir()
    Image.new("L", (32, 32)).save(tmp_path / "in" / "a.png")
    with pytest.warns(UserWarning, match=r"previous\.ckpt of step \d+ is used instead"):
        generate.main([f"run={other.path}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "a.png").exists()


def test_a_finished_run_needs_more_steps_to_go_on(run: RunFolder, tmp_path: Path) -> None:
    output = Run(tmp_path / "log", "train.py", f"resume={run.path}").finished(2)
    assert "set a larger trainer.max_steps" in output


def test_a_folder_in_use_is_not_shared(run: RunFolder, tmp_path: Path) -> None:
    with run.locked():
        assert run.is_locked()
        output = Run(tmp_path / "log", "train.py", f"resume={run.path}", "trainer.max_steps=9").finished(2)
    assert "is being written by another process" in output


def test_help_lists_every_experiment_with_a_line() -> None:
    text = help_text()
    for name in ("meanflow_dit", "regression_dit", "meanflow_bridge"):
        assert any(line.strip().startswith(name) and len(line.split()) > 3 for line in text.splitlines())
