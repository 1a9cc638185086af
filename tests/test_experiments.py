"""Every experiment composes, builds, runs two steps, and leaves the run folder that docs/start.md describes."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, assert_same_state, composed, random_batch, read_json, train_here
from omegaconf import OmegaConf
from PIL import Image

from datamodules.labels import LABELS
from files.grids import read_grid
from generative.randomness import StepRandomness, generator_for
from generative.schedules.masking import MaskSchedule
from launch.build import build_module, tasks_of
from launch.checking import check_values
from launch.commands import generate
from launch.compare.evaluations import read_job
from launch.compose import compose_config
from launch.errors import UserError
from launch.options import experiments, groups
from launch.received import CONF_DIR
from launch.run_folder import RunFolder
from launch.trained_parts import trained_tokenizer

JUDGED = {
    "label_classifier": "ddpm_scenes",
    "label_classifier_iclevr": "ddpm_iclevr_lab",
}  # a judge, and what it judges
# What needs a run before it: test_cats_run_from_tokenizer_to_inpainting, tests/lightning_modules and tests/launch.
IN_TURN = [f"{kind}_{data}" for kind in ("vqgan", "autoencoder", "maskgit") for data in ("scenes", "cats")]
IN_TURN += ["pmrf", "meanflow_regression", "vqgan_cats_large", "maskgit_cats_large", "maskgit_cats_lab"]
ALONE = [name for name in experiments() if name not in (*IN_TURN, *JUDGED, *JUDGED.values())]


@pytest.fixture(scope="module")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Small data for the experiments whose own must be fetched, as overrides by experiment."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    names = [f"CLEVR_train_{scene:06d}_{frame}.png" for scene in range(40) for frame in range(3)]
    (folder / "images").mkdir()
    for name in names:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "images" / name)
    contents = {
        "objects.json": {label: number for number, label in enumerate(LABELS)},
        "train.json": {name: [LABELS[number % 24]] for number, name in enumerate(names)},
        "test.json": [["red cube"], ["blue sphere", "gray cube"]],
        "new_test.json": [["cyan cylinder", "blue sphere", "gray cube"]],
    }
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content))
    return {
        **{name: [f"data.root={folder}"] for name in experiments() if "iclevr" in name},
        **{
            name: [f"data.root={folder / 'images'}"]
            for name in ("ddpm_folder", "denoise_photos", "super_resolution_photos")
        },
        "ddpm_cifar10": ["data=scenes"],  # CIFAR-10 is read by torchvision, which knows the whole set alone
    }


def assert_run_folder(run: RunFolder) -> dict[str, float]:
    """Check what every run leaves and return its metrics."""
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert_grids(run)
    with (run.path / "metrics.csv").open() as file:
        assert any(row.get("train/loss") for row in csv.DictReader(file))
    assert run.record["finished"]
    assert {"seed", "versions", "git_revision", "config_hash", "hardware", "data"} <= run.record.keys()
    metrics = read_json(run.path / "metrics.json")["metrics"]
    assert all(map(math.isfinite, metrics.values())), metrics
    return metrics


def assert_grids(run: RunFolder) -> None:
    """Check that grids of images have a row for each output, under what was given, and that this is no plain colour."""
    config, given = run.config(), {"clean", "degraded"} if tasks_of(run.config()) & {"restore", "inpaint"} else {"data"}
    outputs = read_json(run.path / "metrics.json")["record"]["sampling"].get("num_network_calls", {}).keys()
    whole = {OmegaConf.select(config, "callbacks.image_grid.key"), "test"}
    for path in run.path.glob("images/*/step=*.png"):
        rows = read_grid(path)
        assert rows
        assert all(rows.values())
        if path.parent.name in whole:
            assert rows.keys() >= given | outputs
            assert all(len(set(picture.getdata())) > 1 for picture, _ in rows[min(given)])


@pytest.mark.parametrize("name", ALONE)
def test_an_experiment_runs_two_steps(name: str, tmp_path: Path, data_of: dict[str, list[str]]) -> None:
    run = train_here(tmp_path / "run", f"experiment={name}", f"paths.outputs={tmp_path}", *data_of.get(name, []))
    assert_pictures_and_metrics(run)


def assert_pictures_and_metrics(run: RunFolder) -> dict[str, float]:
    """Check what a run leaves that makes images, and return its metrics."""
    metrics, config = assert_run_folder(run), run.config()
    outputs = read_json(run.path / "metrics.json")["record"]["sampling"]["num_network_calls"].keys()
    assert {path.name for path in (run.path / "images").iterdir()} >= {config.callbacks.image_grid.key, "test"}
    tasks = tasks_of(config)
    told = config.callbacks.progress.metrics[0]
    logged = told if told == "val/loss" or "restore" in tasks else "train/loss"
    with (run.path / "metrics.csv").open() as file:
        assert any(row.get(logged) for row in csv.DictReader(file))
    if "restore" in tasks:
        assert {f"psnr/{output}" for output in {*outputs, "degraded"}} <= metrics.keys()
        assert {f"ssim/{output}" for output in outputs} <= metrics.keys()
    elif "steps_grid" in config.callbacks:
        assert {path.name for path in (run.path / "images").iterdir()} >= {"steps", "steps_test"}
    return metrics


def test_cats_run_from_tokenizer_to_inpainting(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in {"train": 70, "val": 12}.items():
        (tmp_path / "cats" / split).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            image.save(tmp_path / "cats" / split / f"{number}.png")
    data = [f"data.root={tmp_path / 'cats'}", f"paths.outputs={tmp_path}"]
    # The last ones find the newest tokenizer; maskgit_cats_lab is maskgit_cats_large with a lab's settings.
    for name in ("vqgan_cats_large", "vqgan_cats", "autoencoder_cats", "maskgit_cats", "maskgit_cats_lab"):
        run = train_here(tmp_path / name / "run", f"experiment={name}", *data)
        assert_run_folder(run)
    assert run.record["parts"]["tokenizer"]["path"] == str(
        tmp_path / "vqgan_cats" / "run" / "checkpoints" / "last.ckpt"
    )
    assert_hand_in(run, tmp_path)


def assert_hand_in(run: RunFolder, folder: Path) -> None:
    """Fill holes as docs/labs.md says, and find exactly the files that it names."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    (folder / "masks").mkdir()
    names = [f"{number}.png" for number in range(3)]
    (folder / "in").mkdir()
    for name in names:
        mask.save(folder / "masks" / name)
        shutil.copy(folder / "cats" / "val" / name, folder / "in" / name)
    common = [f"run={run.path}", f"input={folder / 'in'}", f"masks={folder / 'masks'}", f"output={folder / 'filled'}"]
    schedules = ["linear", "square"]
    steps = ["sampler.num_steps=6", "sampler.stop_at_step=null", "steps=true", "frame_ms=50"]
    assert generate.main([*common, *steps, f"vary=sampler.schedule={','.join(schedules)}"]) == 0
    files = {str(path.relative_to(folder / "filled")) for path in (folder / "filled").rglob("*") if path.is_file()}
    masks = {f"steps/masks/{name}_{step:02d}.png" for name in schedules for step in range(7)}
    assert files == {*names, "steps/steps.png", *(f"steps/{name}.gif" for name in schedules), *masks}
    for name in schedules:
        shares = []
        for step in range(7):
            pixels = np.asarray(Image.open(folder / "filled" / "steps" / "masks" / f"{name}_{step:02d}.png"))
            assert set(np.unique(pixels)) <= {0, 255}
            shares.append((pixels == 255).sum())
        start = torch.tensor([shares[0] // 16])  # tokens of 4x4 pixels
        expected = MaskSchedule(name).masked_after_steps(6, start)[:, 0].tolist()
        assert [share // 16 for share in shares[1:]] == expected
    with pytest.raises(UserError, match="vary=sampler must be a setting and its values"):
        generate.main([*common, *steps, "overwrite=true", "vary=sampler"])
    with pytest.raises(UserError, match="add steps=true"):
        generate.main([*common, "overwrite=true", "vary=sampler.schedule=linear"])


@pytest.mark.parametrize(("judge", "name"), JUDGED.items())
def test_classifier_judges_a_diffusion_run(
    judge: str, name: str, tmp_path: Path, data_of: dict[str, list[str]]
) -> None:
    settings = [f"paths.outputs={tmp_path}", *data_of.get(name, [])]
    classifier = train_here(tmp_path / judge / "run", f"experiment={judge}", *settings)
    assert 0 <= assert_run_folder(classifier)["label_accuracy/heldout"] <= 1
    run = train_here(tmp_path / name / "run", f"experiment={name}", *settings)  # classifier=auto finds it
    metrics = assert_pictures_and_metrics(run)
    for metric in ("label_accuracy", "label_accuracy_std", "label_accuracy_per_image"):
        assert {f"{metric}/test", f"{metric}/new_test"} <= metrics.keys()
    assert "label_accuracy/real" in metrics
    assert "fd_label_classifier/sample" in metrics
    assert not any(metric.startswith("fid") for metric in metrics)
    with (run.path / "metrics.csv").open() as file:
        assert any(row.get("val/label_accuracy/test") for row in csv.DictReader(file))
    if name == "ddpm_iclevr_lab":
        assert_drawn_hand_in(run, Path(data_of[name][0].partition("=")[2]) / "test.json", tmp_path / "images")


def assert_drawn_hand_in(run: RunFolder, label_sets: Path, output: Path) -> None:
    """Draw label sets as docs/labs.md says, with the raw weights of a run that has no others, and find the files."""
    typed = ["labels=red sphere, cyan cylinder, cyan cube", "steps=true"]
    assert generate.main([f"run={run.path}", f"label_sets={label_sets}", f"output={output}", *typed]) == 0
    names = {"00.png", "01.png", "grid.png", "grid_plain.png", "steps.png", "steps.gif"}
    assert {path.name for path in output.iterdir()} == names
    assert read_job([f"run={run.path}"], "").identity() == {"name": "default", "overrides": [], "weights": "raw"}
    assert read_job([f"run={run.path}", "weights=ema"], "").name == "weights=ema"


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_has_a_smoke_run(name: str) -> None:
    for option in groups()["debug"] if name in ("vqgan_scenes", "ddpm_scenes") else ["smoke"]:
        config = compose_config([f"experiment={name}", f"debug={option}"])
        check_values(config)
        assert config.debug == option
        assert all(node is None or "_target_" in node for node in config.callbacks.values())


def test_a_smoke_run_does_all_that_a_run_does_and_serves_no_other(tmp_path: Path) -> None:
    from launch.commands.train import train

    overrides = ["experiment=vqgan_scenes", "debug=smoke", "trainer.accelerator=cpu", "network.channels=[16,16]"]
    run = RunFolder(tmp_path / "run")
    train(run, composed(run.path, [*overrides, f"paths.outputs={tmp_path}"]), overrides)
    assert_run_folder(run)
    assert {path.name for path in (run.path / "images" / "reconstruction").iterdir()} >= {"step=00000001.png"}
    with (run.path / "metrics.csv").open() as file:
        assert any(row.get("val/psnr/reconstruction") for row in csv.DictReader(file))
    assert trained_tokenizer("auto", str(tmp_path), "scenes", 32) is None
    assert trained_tokenizer(str(run.path), str(tmp_path), "scenes", 32) == str(run.checkpoint)


def test_options_that_a_sentence_names_are_options() -> None:
    root, wrong = CONF_DIR.parent, []
    named = re.compile(rf"(?<![\w.@/+])({'|'.join(groups())})=([a-z]\w*)\b(?![./:(=*{{])")
    rooms = ("generative", "datamodules", "lightning_modules", "callbacks", "launch", "conf", "docs")
    for path in [root / "README.md", *(path for room in rooms for path in (root / room).rglob("*.*"))]:
        if path.suffix not in (".py", ".yaml", ".yml", ".md") or path.name in ("former.py", "extending.md"):
            continue
        text = path.read_text()
        if path.suffix == ".py":
            nodes = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
            text = "\n".join(value for value in nodes if isinstance(value, str))
        wrong += [
            f"{path.relative_to(root)}: {group}={option}"
            for group, option in named.findall(text)
            if option not in {*groups()[group], "auto", "null", "none"}
        ]
    assert not wrong


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={option}"
        for group in (
            "objective", "sampler", "network", "degradation", "data", "schedule", "guidance",
            "bottleneck", "discriminator", "perceptual",
        )
        for option in groups()[group]
    ],
)  # fmt: skip
def test_every_option_composes(override: str) -> None:
    group = override.partition("=")[0]
    reads = {
        "schedule": "ddpm",
        "guidance": "ddpm",
        "bottleneck": "vqgan",
        "discriminator": "vqgan",
        "perceptual": "vqgan",
    }
    config = compose_config([f"experiment={reads.get(group, 'meanflow')}_scenes", override])
    assert "_target_" in config[group]


@pytest.mark.parametrize(
    ("override", "chosen"),
    [
        ("objective=alpha_flow", "AlphaFlow"),
        ("objective=mean_flow", "MeanFlow"),
        ("objective=flow_matching sampler=euler", "FlowMatching"),
        ("objective=lsd", "LagrangianSelfDistillation"),
        ("objective=psd", "ProgressiveSelfDistillation"),
        ("objective.derivative=exact", "ImprovedMeanFlow"),
        ("sampler=heun", "Heun"),
    ],
)
def test_objectives_and_samplers_are_exchangeable(override: str, chosen: str) -> None:
    config = compose_config(["experiment=meanflow_dit", *TINY, *override.split(), "module.output=velocity"])
    module, batch = build_module(config), random_batch(config)
    assert chosen in (type(module.objective).__name__, type(module.sampler).__name__)
    module.loss(batch, StepRandomness(generator_for(0, "objective"), len(batch.image))).loss.backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    with torch.no_grad():
        images = module.eval().sample(batch, module.evaluation_randomness(batch))
    assert images.keys() == {"sample", "mean"}
    assert all(image.shape == batch.image.shape and image.isfinite().all() for image in images.values())


def test_a_run_in_mixed_precision_finishes(tmp_path: Path) -> None:
    run = train_here(
        tmp_path / "run", "experiment=meanflow_dit", "trainer.precision=bf16-mixed", "module.output=velocity",
        "module.known_in_path=true", "sampler.num_steps=2",
    )  # fmt: skip
    assert run.record["finished"]


def test_weights_do_not_depend_on_global_randomness() -> None:
    config = compose_config(["experiment=meanflow_dit", *TINY])
    torch.manual_seed(1)
    a = build_module(config).state_dict()
    torch.manual_seed(2)
    b = build_module(config).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_dropout_does_not_depend_on_global_randomness(tmp_path: Path, data_of: dict[str, list[str]]) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        run = train_here(tmp_path / str(seed), "experiment=ddpm_cifar10", *data_of["ddpm_cifar10"])
        assert run.config().network.dropout == 0.1
        states.append(torch.load(run.checkpoint, weights_only=True)["state_dict"])
    assert_same_state(*states)
