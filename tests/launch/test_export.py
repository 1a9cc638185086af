"""Export and the way back: the same weights and images, a card that is true, and nothing that could run code."""

from __future__ import annotations

import errno
import getpass
import json
import os
import pickle
import re
import shutil
import socket
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, composed, read_json, tiny, train_here
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import triptych
from files.whole import WriteError
from generative.export import ExportError, load_network, network_bytes, read_network
from generative.networks.tokenizer import Tokenizer, load_tokenizer
from generative.types import Batch
from launch import build
from launch.command_line import run_config
from launch.commands import export, generate
from launch.errors import UserError
from launch.options import experiments
from launch.run_folder import RunFolder, write_json
from launch.use.export import export as export_run
from launch.use.export import export_config, export_part
from launch.use.load import Trained, load_export
from launch.use.model_card import write_card
from lightning_modules import GenerativeModule

SHORT = ["trainer.max_steps=3", "trainer.limit_val_batches=0"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def restorer(outputs: Path) -> RunFolder:
    return train_here(outputs / "meanflow_dit" / "run", "experiment=meanflow_dit", "callbacks.calibration=null", *SHORT)


@pytest.fixture(scope="module")
def runs(outputs: Path, restorer: RunFolder) -> dict[str, RunFolder]:
    """A run of each kind; the MaskGIT run finds the tokenizer."""
    names = ("vqgan_scenes", "maskgit_scenes", "ddpm_scenes")
    # on the digits, which are quicker to make than the scenes
    common = ["data=digits", f"paths.outputs={outputs}", *SHORT]
    others = {name: train_here(outputs / name / "run", f"experiment={name}", *common) for name in names}
    return {"meanflow_dit": restorer, **others}


EXPERIMENTS = sorted(
    set(experiments()) - {"pmrf", "meanflow_regression"}
)  # those need a regression, and have meanflow_dit's card


def shown(code: str, size: tuple[int, int]) -> dict[str, Any]:
    """Run the code of a card where its pictures lie, and return what it made."""
    Image.new("RGB", size, "red").save("photo.png")
    hole = Image.new("L", size)
    hole.paste(255, (3, 3, 12, 9))
    hole.save("hole.png")
    space: dict[str, Any] = {}
    exec(code, space)
    return space


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_code_of_every_card_runs(
    name: str, runs: dict[str, RunFolder], restorer: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_tokens = ["data=digits", "data.image_size=32", "++data.root=none", f"tokenizer={runs['vqgan_scenes'].path}"]
    own = of_tokens if name.startswith("maskgit") else []
    overrides = [f"experiment={name}", *tiny(name), *own, "classifier=null"]
    config = composed(tmp_path / "run", overrides)
    module = build.build_module(config).eval()
    plain = export_config(build.plain_config(config), type(module))
    plain["data"]["label_names"] = [str(number) for number in range(config.data.num_classes)]
    (code,) = re.findall(r"```python\n(.*?)```", write_card(restorer, plain, module, "ema", 3, None, None), re.DOTALL)
    asked: list[str] = []
    model = triptych.Model(module, config.data.image_size, config.data.channels, plain["data"]["label_names"])
    monkeypatch.setattr("triptych.load", lambda folder: asked.append(folder) or model)
    size = (config.data.image_size + 5, config.data.image_size)
    monkeypatch.chdir(tmp_path)
    space = shown(code, size)
    assert asked == ["."]
    if module.tasks == {"judge"}:
        assert torch.equal(space["probabilities"], module.network(space["images"]))
        assert space["probabilities"].shape == (4, config.data.num_classes)
        assert ((space["probabilities"] > 0) & (space["probabilities"] < 1)).all()
    elif "images" in space:
        assert [image.size for image in space["images"]] == [(config.data.image_size,) * 2] * 4
    else:
        made = [*space.get("samples", []), *(space[name] for name in ("mean", "image") if space.get(name))]
        assert {(image.size, image.mode) for image in made} == {(size, "RGB")}


def test_the_public_face_loads_runs_and_exports(restorer: RunFolder, exported: Path) -> None:
    averaged, raw, of_export = (
        triptych.load(restorer.path).module,
        triptych.load(restorer.path, "raw").module,
        triptych.load(exported).module,
    )
    assert isinstance(averaged, triptych.GenerativeModule)
    assert not averaged.training
    assert averaged.trained_steps == of_export.trained_steps == 3
    kept = triptych.load(restorer.path).examples
    assert [path.read_bytes() for path in kept[:3]] == [path.read_bytes() for path in triptych.load(exported).examples]
    for key, value in averaged.network.state_dict().items():
        assert torch.equal(of_export.network.state_dict()[key], value), key
    assert any(not torch.equal(a, b) for a, b in zip(averaged.parameters(), raw.parameters(), strict=True))
    with pytest.raises(triptych.UserError, match="leave out weights=raw"):
        triptych.load(exported, "raw")
    with pytest.raises(triptych.UserError, match="there is no such run folder"):
        triptych.load(exported / "none")
    assert triptych.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_python_gives_the_bytes_of_the_command_and_the_pages_tell_how(
    restorer: RunFolder, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "meanflow_dit").mkdir(parents=True)
    (tmp_path / "outputs" / "meanflow_dit" / "RUN").symlink_to(restorer.path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 53), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    for page in ("README.md", "docs/compare.md"):
        for code in PYTHON.findall((ROOT / page).read_text()):
            exec(code, {})
    assert Image.open("restored.png").size == (53, 40)
    Image.fromarray(pixels).save("photo.png")
    model, of_export = triptych.load(restorer.path), triptych.load(exported)
    for result in ("sample", "mean"):
        for seed in (None, 3):
            more = [] if seed is None else [f"evaluation_seed={seed}"]
            generate.main(
                [
                    f"run={restorer.path}",
                    "input=photo.png",
                    "output=made.png",
                    f"result={result}",
                    "overwrite=true",
                    *more,
                ]
            )
            made = np.asarray(Image.open("made.png"))
            for one in (model, of_export):
                samples, mean = one.restore("photo.png", 2, seed=seed)
                assert np.array_equal(np.asarray(samples[0] if result == "sample" else mean), made)
                assert not np.array_equal(np.asarray(samples[1]), np.asarray(samples[0]))
    four = []
    for source in (restorer.path, exported):
        generate.main([f"run={source}", "input=photo.png", "output=four.png", "overwrite=true", "sampler.num_steps=4"])
        four.append(np.asarray(Image.open("four.png")))
    assert np.array_equal(*four)
    assert not np.array_equal(four[0], np.asarray(model.restore("photo.png").samples[0]))
    for override in ("sampler=heun", "network.dims=3", "weights=raw"):
        with pytest.raises(triptych.UserError, match=override.split("=")[0]):
            generate.main([f"run={exported}", "input=photo.png", "output=four.png", "overwrite=true", override])
    exact = model.restore(pixels, 0, kind="torch")
    assert exact.samples == []
    assert (exact.mean.shape, exact.mean.dtype) == ((1, 40, 53), torch.float32)
    of_tensor = model.restore(torch.from_numpy(pixels)[None] / 127.5 - 1, 0, kind="torch")
    torch.testing.assert_close(of_tensor.mean, exact.mean, atol=1e-4, rtol=0)
    hole = np.zeros_like(pixels, dtype=bool)
    hole[5:20, 30:45] = True
    filled = model.fill(pixels, hole, kind="numpy").mean
    assert np.array_equal(filled[~hole], pixels[~hole])
    assert not np.array_equal(filled[hole], pixels[hole])
    for call, message in (
        (lambda: model.draw(), r"cannot draw: use fill\(picture, hole\), restore\(picture\)"),
        (lambda: model.reconstruct(pixels), "cannot reconstruct"),
        (lambda: model.restore("nowhere.png"), "nowhere.png cannot be used: No such file"),
        (lambda: model.restore(torch.zeros(4, 4)), r"shape \(4, 4\) is no picture"),
        (lambda: model.restore(pixels, tile=17), "tile=17 must be 32, which this network sees"),
        (lambda: model.fill(pixels, hole[:9]), "the hole has 53x9 pixels and the picture 53x40"),
        (lambda: model.fill(pixels, ~hole & hole), "somewhere it must be"),
        (lambda: model.fill(pixels, pixels, marked="grey"), "hole=grey must be one of auto, white, black, alpha"),
        (lambda: model.restore(pixels, kind="PIL"), "kind=PIL must be one of pil, numpy, torch"),
        (lambda: model.restore(pixels, -1), "ask for a whole number, 0 or more"),
    ):
        with pytest.raises(triptych.UserError, match=message):
            call()


@pytest.fixture
def exported(restorer: RunFolder, tmp_path: Path) -> Path:
    export.main([f"run={restorer.path}", "images=3", f"output={tmp_path / 'export'}"])
    return tmp_path / "export"


def trained(run: RunFolder, weights: str = "ema") -> GenerativeModule:
    """Build the module as ``evaluate.py`` does."""
    module = build.build_module(run_config(run))
    build.load_weights(module, run, run.load_checkpoint(), weights)
    return module.eval()


def outputs_of(module: GenerativeModule, run: RunFolder) -> dict[str, torch.Tensor]:
    data = run.config().data
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, data.channels, data.image_size, data.image_size, generator=generator) * 2 - 1
    validity = torch.ones_like(image[:, :1])
    validity[..., 8:20, 8:20] = 0
    labels = torch.eye(data.num_classes)[:2]
    batch = Batch(image, torch.arange(2), labels=labels, degraded=image * validity, validity=validity)
    with torch.no_grad():
        return module.sample(batch, module.evaluation_randomness(batch))


@pytest.mark.parametrize("name", ["meanflow_dit", "vqgan_scenes", "maskgit_scenes", "ddpm_scenes"])
def test_an_export_is_the_evaluated_network(
    name: str, runs: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs[name]
    export.main([f"run={run.path}"])
    folder = shutil.move(run.path / "export", tmp_path / "elsewhere")
    expected = trained(run)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "load_checkpoint", None)  # what is loaded comes from the export alone
        module = load_export(folder)
    assert not module.training
    assert module.trained_steps == 3
    for key, value in expected.network.state_dict().items():
        assert torch.equal(module.network.state_dict()[key], value), key
    for key, image in outputs_of(expected, run).items():
        assert torch.equal(outputs_of(module, run)[key], image), key

    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder)
    assert shown(code, (32, 32)).keys() & {"images", "mean", "image"}
    assert_head(card, run)
    assert_names_no_place(folder, tmp_path.parent.parent, run.path.parent.parent, ROOT, Path.home())


# An absolute path in a text: what begins with a slash and is none of a web address, a closing tag or a division.
ABSOLUTE = re.compile(rb"(?<![\w./:<~)])~?(?:/[\w.@+-]+){2,}|file:/|\b[A-Z]:\\\\\w")


def assert_names_no_place(folder: Path, *places: Path) -> None:
    texts = {
        path: path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".md", ".yaml", ".json", ".html")
    }
    texts |= {path: json.dumps(read_network(path)[1]).encode() for path in folder.rglob("*.safetensors")}
    assert texts
    for path, content in texts.items():
        assert not ABSOLUTE.findall(content), path
        for name in (*map(str, places), socket.gethostname(), getpass.getuser()):
            # "root" is a key of the config, too
            assert name == "root" or not re.search(rf"(?<!\w){re.escape(name)}(?!\w)".encode(), content), (path, name)


def assert_head(card: str, run: RunFolder) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card).data
    assert data.library_name == "triptych"
    assert data.license is None
    metrics = read_json(run.path / "metrics.json")["metrics"]
    assert {result.metric_type: result.metric_value for result in data.eval_results or []} == metrics
    table = dict(re.findall(r"^\| (.+) \| (.+) \|$", card, re.MULTILINE))
    assert run.record["data"]["fingerprint"] in table["data"]
    assert table["weights"] == "exponential moving average, after 3 steps"
    assert table["images seen"] == "24"
    assert table["seed"] == "0"
    assert table["git revision"] == str(run.record["git_revision"])


def test_raw_weights_and_unfinished_runs_say_so(restorer: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(restorer.path, tmp_path / "run"))
    write_json(run.record_path, {**run.record, "finished": False})
    export.main([f"run={run.path}", "weights=raw"])
    raw, network = trained(run, "raw").network.state_dict(), load_export(run.path / "export").network
    assert all(torch.equal(value, raw[key]) for key, value in network.state_dict().items())
    assert any(not torch.equal(value, raw[key]) for key, value in trained(run).network.state_dict().items())
    card = (run.path / "export" / "README.md").read_text()
    assert "raw, after 3 steps |" in card
    assert "**The run had not finished: 3 steps were planned.**" in card
    assert "There are no test figures for these weights." in card
    # The grid is of the test of the averaged ones.
    assert "![Test images]" not in card
    assert not (run.path / "export" / "test.png").exists()
    result = read_json(run.path / "metrics.json")
    result["record"]["sampling"] |= {"assisted": True, "classifier_guidance": 2.0}
    for path, is_there in ((restorer.path / "metrics.json", True), (run.path / "metrics.json", False)):
        write_json(run.path / "metrics.json", read_json(path) if is_there else result)
        export.main([f"run={run.path}"])
        assert (run.path / "export" / "test.png").exists() == is_there
        card = (run.path / "export" / "README.md").read_text()
        assert ("![Test images]" in card, "no test figures" in card) == (is_there, not is_there)


def test_an_export_does_not_lose_the_classifier_in_the_loop_silently(runs: dict[str, RunFolder]) -> None:
    run = runs["ddpm_scenes"]
    plain = build.plain_config(run_config(run))
    kind = type(trained(run))
    assert export_config(plain, kind)["module"]["classifier_guidance"] == 0
    plain["module"]["classifier_guidance"] = 2.0
    with pytest.raises(UserError, match=r"module\.classifier_guidance=2\.0 draws with a label classifier, .* or set"):
        export_config(plain, kind)
    export.main([f"run={run.path}", "module.classifier_guidance=0"])
    with pytest.raises(ExportError, match=r"module\.classifier_guidance=2 draws with a label classifier"):
        Trained.of_export(run.path / "export", ["module.classifier_guidance=2"]).load(None)


def test_an_earlier_export_is_replaced_and_nothing_else(restorer: RunFolder, exported: Path, tmp_path: Path) -> None:
    (exported / "README.md").write_text("old")
    export.main([f"run={restorer.path}", f"output={exported}"])
    assert (exported / "README.md").read_text() != "old"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"output=.*other exists and is no export: choose another folder"):
        export.main([f"run={restorer.path}", f"output={other}"])
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_wrong_command_lines_are_one_sentence(restorer: RunFolder) -> None:
    with pytest.raises(UserError, match=r"exported as it was trained: leave out sampler.num_steps=4"):
        export.main([f"run={restorer.path}", "sampler.num_steps=4"])
    with pytest.raises(UserError, match=r"weights=best is unknown: choose ema or raw"):
        export.main([f"run={restorer.path}", "weights=best"])


def test_an_export_has_nothing_of_others(restorer: RunFolder, tmp_path: Path) -> None:
    """Names in a record are text on the card, links of the run folder stay where they are, and what was killed goes."""
    run = RunFolder(shutil.copytree(restorer.path, tmp_path / "run"))
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for grid in (run.path / "images" / "test").glob("step=*.png"):
        grid.unlink()
        grid.symlink_to(secret)
    name = "<script>alert(1)</script> | ![x](http://h/p.png) `x`\n# Heading"
    write_json(run.record_path, {**run.record, "name": name, "started": name})
    result = read_json(run.path / "metrics.json")
    result["record"]["evaluation"] |= {"definitions": {name: name}, name: name}
    write_json(run.path / "metrics.json", result)
    left, other = run.path / ".export.abc.exporting", run.path / ".export.def.exporting"
    (left / "export").mkdir(parents=True)
    other.symlink_to(tmp_path)
    export.main([f"run={run.path}"])
    assert not left.exists()
    assert other.exists()
    folder = run.path / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    card = (folder / "README.md").read_text()
    assert "secret" not in card
    body = card.split("---\n", 2)[2]
    assert "<script>" not in body
    assert "![x](" not in body
    assert not re.search(r"^# Heading", body, re.MULTILINE)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| \\!\\[x\\](http" in body


def test_a_killed_export_loses_no_earlier_one(restorer: RunFolder, exported: Path) -> None:
    """It was killed after it had set the earlier one aside and before the new one was in its place."""
    left = exported.parent / ".export.abc.exporting"
    left.mkdir()
    exported.rename(left / "earlier")
    with pytest.raises(UserError, match="weights=best is unknown"):
        export.main([f"run={restorer.path}", f"output={exported}", "weights=best"])
    export.main([f"run={restorer.path}", f"output={exported}"])
    assert [path.name for path in exported.parent.iterdir()] == ["export"]


def test_what_the_disk_does_not_take_is_named(
    restorer: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("files.whole._own", full)
        with pytest.raises(WriteError, match=r"model\.safetensors could not be written: No space left .* MB are free"):
            export.main([f"run={restorer.path}", f"output={tmp_path / 'new'}"])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output=.*file/new cannot be written .*: choose another folder"):
        export.main([f"run={restorer.path}", f"output={tmp_path / 'file' / 'new'}"])


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a file has run')",)


def test_a_checkpoint_that_would_run_code_is_refused(restorer: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(restorer.path, tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt")))
    torch.save({"state_dict": {}, "global_step": 3, "config": Malicious()}, run.path / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt is refused"):
        export.main([f"run={run.path}"])
    (run.path / "checkpoints" / "last.ckpt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=r"last.ckpt is refused"):
        export.main([f"run={run.path}"])
    assert not (run.path / "export").exists()


def change_config(folder: Path, key: str, value: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    node = config
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    "target", ["os.system", "generative.weight_files.os.system", "generative.weights.weights_hash", "builtins.eval", 3]
)
def test_a_config_that_would_run_code_is_refused(exported: Path, target: Any) -> None:
    change_config(exported, "module.sampler._target_", target)
    with pytest.raises(
        ExportError, match=r"config.yaml is refused: .* is none of the classes that Triptych's conf/ names"
    ):
        load_export(exported)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("module._partial_", True),
        ("module._target_", "lightning_modules.VQGAN"),
        ("module._target_", "torch.optim.AdamW"),
        ("module._target_", ["lightning_modules.MeanFlow"]),
        ("module.tokenizer", {"path": "x"}),
        ("module.tokenizer", "../../../../etc/passwd"),
        ("module.tokenizer", "tokenizer/model.safetensors"),
        ("module.network", None),
        ("module.network", {"_target_": "torch.optim.AdamW"}),
        ("module.network.dim", 2**20),  # terabytes, were it built
        ("module.network.dim", "wide"),
        ("module.network._args_", [1]),
        ("module.sampler", {"_target_": "lightning.Trainer"}),
        ("module", {}),
    ],
)
def test_whatever_a_config_says_is_an_export_error(exported: Path, key: str, value: Any) -> None:
    change_config(exported, key, value)
    with pytest.raises(ExportError, match=r"(config\.yaml|model\.safetensors|passwd) (is|describes)"):
        load_export(exported)


@pytest.mark.parametrize("step", [None, "x", "-1", "²", ""])
def test_metadata_without_a_number_of_steps(exported: Path, step: str | None) -> None:
    tensors, metadata = read_network(exported / "model.safetensors")
    metadata = {name: value for name, value in metadata.items() if name != "step"} | ({"step": step} if step else {})
    save_file(tensors, exported / "model.safetensors", metadata)
    with pytest.raises(ExportError, match=r"its metadata have no number of steps"):
        load_export(exported)


def test_links_do_not_leave_an_export(exported: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "model.safetensors"):
        (exported / name).rename(tmp_path / name)
        (exported / name).symlink_to(tmp_path / name)
        with pytest.raises(ExportError, match=rf"{name} is refused: it leaves the folder"):
            load_export(exported)
        (exported / name).unlink()
        (tmp_path / name).rename(exported / name)


def test_damaged_and_wrong_files_are_one_sentence(exported: Path, tmp_path: Path) -> None:
    model = exported / "model.safetensors"
    content = model.read_bytes()
    for damaged, message in (
        (content[:-1] + bytes([content[-1] ^ 1]), "its weights are not those that were written"),
        (content[: len(content) // 2], "is damaged or no safetensors file"),
        (b"", "is damaged or no safetensors file"),
        (content.replace(b'"version":"1"', b'"version":"9"'), "is of version 9 of the format"),
    ):
        model.write_bytes(damaged)
        with pytest.raises(ExportError, match=message):
            load_export(exported)
    save_file({"weight": torch.zeros(1)}, model)
    with pytest.raises(ExportError, match=r"holds weights of another program"):
        load_export(exported)
    model.unlink()
    with pytest.raises(ExportError, match=r"model.safetensors does not exist: name the folder"):
        load_export(exported)
    model.write_bytes(content)
    change_config(exported, "module.network.dim", 64)
    with pytest.raises(ExportError, match=r"is of another network than its config.yaml"):
        load_export(exported)
    change_config(exported, "module.network.dim", "${oc.env:HOME}")
    with pytest.raises(ExportError, match=r"is no value"):
        load_export(exported)
    (exported / "config.yaml").write_text("module: [")
    with pytest.raises(ExportError, match=r"config.yaml is damaged"):
        load_export(exported)
    with pytest.raises(ExportError, match=r"is no export: it has no config.yaml"):
        load_export(tmp_path)


def test_an_export_names_no_place_of_its_machine(restorer: RunFolder, tmp_path: Path) -> None:
    """Whatever a record names: typed paths, files of other runs, the folder of the images, addresses with a login."""
    run = RunFolder(shutil.copytree(restorer.path, tmp_path / "run"))
    places = ["/home/somebody/photos", "~/photos", "~somebody/a", "file:///srv/x", "pipe:cat /srv/x", r"C:\Users\me\x"]
    record, result = run.record, read_json(run.path / "metrics.json")
    typed = [f"data.root={place}" for place in places] + ["paths.outputs=/srv/out", "tokenizer=../runs/one", "seed=0"]
    record["overrides"] = [*record["overrides"], *typed]
    record["data"] |= {"source": f"images of {places[0]}", "folders": {"root": places[0]}}
    write_json(run.record_path, record)
    result["record"]["evaluation"] |= {f"path{i}": place for i, place in enumerate(places)}
    result["record"]["evaluation"]["sets"] = f"{places[0]}/a.json, {places[0]}/b.json"
    write_json(run.path / "metrics.json", result)
    config = run_config(run)
    for key, place in zip(("train_root", "val_root", "test_root", "one", "two"), places[1:], strict=True):
        OmegaConf.update(config, f"data.{key}", [place], force_add=True)
    exported = export_run(run, config, "ema", tmp_path / "export")
    assert_names_no_place(exported, tmp_path)
    card = (exported / "README.md").read_text()
    for name in ("somebody", "srv", "Users"):
        assert name not in card + (exported / "config.yaml").read_text()
    assert "| command | python train.py experiment=meanflow_dit " in card
    assert "data.root=PATH" in card
    assert "tokenizer=PATH" in card


def size_of_tensors(file: Path) -> int:
    content = file.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")  # what a small file says of itself is most of it


@pytest.mark.parametrize(("precision", "share", "error"), [("float16", 0.52, 0.01), ("int8", 0.35, 0.1)])
def test_rounded_weights_take_less_and_make_nearly_the_same(
    precision: str, share: float, error: float, runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    run = runs["vqgan_scenes"]
    for kind in ("float32", precision):
        export.main([f"run={run.path}", f"precision={kind}", f"output={tmp_path / kind}"])
    sizes = [size_of_tensors(tmp_path / kind / "model.safetensors") for kind in ("float32", precision)]
    assert sizes[1] < share * sizes[0]
    whole, rounded = (load_export(tmp_path / kind) for kind in ("float32", precision))
    assert {value.dtype for value in rounded.network.parameters()} == {torch.float32}
    a, b = (outputs_of(module, run)["reconstruction"] for module in (whole, rounded))
    assert 0 < (a - b).abs().mean() < error
    card = (tmp_path / precision / "README.md").read_text()
    assert f"after 3 steps, rounded to {precision} |" in card
    assert f"How they were measured, before the weights were rounded to {precision}:" in card
    tokenizer = load_tokenizer(tmp_path / precision / "model.safetensors")  # also where it is a part of another export
    assert torch.equal(tokenizer.network.last_layer, rounded.network.last_layer)


def test_numbers_beyond_a_precision_are_refused() -> None:
    large = nn.Linear(1, 1)
    nn.init.constant_(large.weight, 1e6)
    with pytest.raises(ExportError, match="weight has numbers that float16 does not hold"):
        network_bytes(large, {}, "float16")
    with pytest.raises(UserError, match="precision=half must be one of float32, float16, int8"):
        export_run(None, None, "ema", Path("nowhere"), "half")


def test_patches_that_take_long_to_paint_are_kept(
    runs: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = trained(runs["maskgit_scenes"])
    assert not module.parts()["tokenizer"].beside
    module.pixel_std = 0.1
    export_part(module.parts()["tokenizer"], tmp_path)
    again, exported = load_tokenizer(module.tokenizer.path), load_tokenizer(tmp_path / "model.safetensors")
    expected = module.tokenizer._painted()
    monkeypatch.setattr(Tokenizer, "_painted", None)  # neither an export nor a run paints them again
    assert torch.equal(exported.patches, expected)
    assert torch.equal(again.patches, expected)
    assert exported.hash == module.tokenizer.hash


def test_tied_weights_and_views_survive(tmp_path: Path) -> None:
    def network() -> nn.Module:
        layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        layers[1].weight = layers[0].weight
        layers.register_buffer("view", torch.arange(6.0).reshape(2, 3).T)
        return layers

    first, second = network(), network()
    (tmp_path / "model.safetensors").write_bytes(network_bytes(first, {"note": json.dumps("ü")}))
    assert load_network(second, tmp_path / "model.safetensors")["note"] == json.dumps("ü")
    assert second[1].weight is second[0].weight
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
