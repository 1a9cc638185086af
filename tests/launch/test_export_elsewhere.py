"""What is done with an export elsewhere: evaluated as its run, run by other programs, kept on the Hugging Face hub."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import composed, read_json, tiny, train_here
from PIL import Image
from safetensors.torch import load_file, save_file
from test_export import ABSOLUTE, assert_names_no_place

import triptych
from generative.export import ExportError, read_network
from launch import build
from launch.commands import compare, evaluate, export
from launch.errors import EXIT_USER_ERROR, UserError, exit_code
from launch.run_folder import RunFolder
from launch.use.exported import ExportFolder
from launch.use.tensor_network import TensorNetwork, tensor_file, tensor_network


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    left_out = [f"callbacks.{name}=null" for name in ("calibration", "steps_grid")]
    folder = tmp_path_factory.mktemp("outputs") / "meanflow_dit" / "run"
    return train_here(folder, "experiment=meanflow_dit", *left_out, "trainer.limit_val_batches=0")


@pytest.fixture(scope="module")
def exported(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "export"
    export.main([f"run={run.path}", "images=1", "format=torch_export", f"output={folder}"])
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(folder: Path) -> dict[str, float]:
    return read_json(folder / "metrics.json")["metrics"]


def test_an_export_is_evaluated_as_its_run(run: RunFolder, exported: Path, here: Path) -> None:
    before = sorted(exported.rglob("*"))
    evaluate.main([f"run={exported}"])
    place = here / "outputs" / "evaluations" / ExportFolder(exported).name
    assert metrics(place / "default") == metrics(run.path)
    assert read_json(place / "default" / "metrics.json")["record"]["step"] == 2
    others = ["degradation=block_mask", "evaluation_seed=2", "module.evaluation_seed=1", "sampler.num_steps=2"]
    evaluate.main(["-m", f"run={run.path},{exported}", *others, "name=both"])
    assert len((here / "outputs" / "comparisons" / "both.csv").read_text().splitlines()) >= 3
    (name,) = {path.name for path in place.iterdir()} - {"default"}
    assert metrics(place / name) == metrics(run.path / "evaluations" / name) != metrics(run.path)
    for folder in (run.path, exported):
        evaluate.main([f"run={folder}", f"pictures={exported / 'images'}", "name=pictures"])
    of_run, of_export = (read_json(path / "pictures" / "pictures.json") for path in (run.path / "evaluations", place))
    assert of_run["metrics"] == of_export["metrics"]
    for given, message in (
        (place, "holds evaluations without a run, as those of an export"),
        (exported, "is an export, not"),
    ):
        with pytest.raises(UserError, match=message):
            compare.compare([f"runs={given}"])
    assert sorted(exported.rglob("*")) == before  # nothing is added to what is handed around


def test_what_an_export_cannot_do_is_one_sentence(exported: Path, here: Path) -> None:
    assert exit_code(ExportError("an export is damaged")) == EXIT_USER_ERROR  # a sentence, no traceback
    for override, message in (
        ("weights=raw", "is an export of the weights ema: leave out weights=raw"),
        ("tokenizer=none", "tokenizer= is settled in .*, which is an export"),
        ("network.dim=64", "network.dim=64 cannot be set in the use of .*: its weights were trained with network.dim="),
        ("network.num_heads=1", "network.num_heads=1 cannot be set"),  # its weights would fit
        ("optimizer.lr=1", "only training reads optimizer.lr"),
        ("experiment=ddpm_scenes", "experiment= cannot be changed"),
    ):
        with pytest.raises((UserError, ExportError), match=message):
            evaluate.main([f"run={exported}", override])
    assert not (here / "outputs").exists()


def told(exported: Path, folder: Path, **changed: str) -> ExportFolder:
    """Copy an export, whose weights say something else."""
    folder.mkdir()
    (folder / "config.yaml").write_bytes((exported / "config.yaml").read_bytes())
    model = exported / "model.safetensors"
    metadata = {**read_network(model)[1], **changed}
    save_file(load_file(model), folder / "model.safetensors", {k: v for k, v in metadata.items() if v})
    return ExportFolder(folder)


def test_images_of_a_folder_are_named_again(exported: Path, tmp_path: Path) -> None:
    said = '["experiment=denoise_photos", "data.root=PATH", "space=PATH"]'
    of_folder = told(exported, tmp_path / "folder", overrides=said)
    with pytest.raises(UserError, match="names no folder of the machine .* with data.root=PATH, or choose"):
        of_folder.check_data(["sampler.num_steps=2"])
    of_folder.check_data(["data.root=photos"])
    of_folder.check_data(["data=digits"])
    with pytest.raises(UserError, match="is refused"):
        told(exported, tmp_path / "hydra", overrides='["hydra.run.dir=x"]').config([])
    damaged = told(exported, tmp_path / "damaged", overrides="[", data="[")
    for read in (
        lambda: damaged.overrides,
        lambda: damaged.record,
        lambda: told(exported, tmp_path / "x", step="x").step,
    ):
        with pytest.raises(ExportError, match="is damaged"):
            read()
    earlier = told(exported, tmp_path / "earlier", overrides="", data="")
    assert earlier.overrides == ["experiment=meanflow_dit"]
    assert earlier.record["data"] == {}
    unknown = told(exported, tmp_path / "unknown", overrides="", experiment="mine")
    assert unknown.config(["sampler.num_steps=2"]).sampler.num_steps == 2

    values = yaml.safe_load((unknown.path / "config.yaml").read_text())
    (unknown.path / "config.yaml").write_text(yaml.safe_dump(values | {"callbacks": {}}))
    with pytest.raises(UserError, match="does not say what it uses classifier= for: leave it out"):
        unknown.config(["classifier=FILE"])


DEMO = Path(triptych.__file__).parent / "demo" / "models"
KINDS = {  # a network of each kind, written as one or the other
    "ddpm_scenes": ("torch_export",),
    "maskgit_scenes": ("torch_export", f"tokenizer={DEMO / 'maskgit_scenes' / 'tokenizer' / 'model.safetensors'}"),
    "vqgan_scenes": ("torch_export",),
    "autoencoder_scenes": ("torch_export",),
    "label_classifier": ("onnx",),
    "denoise_photos": ("torch_export", "network=dncnn", "network.depth=3", "data.root=none", "data.image_size=16"),
}


def network_of(name: str, folder: Path, *overrides: str) -> TensorNetwork:
    """Build the network of an experiment with weights at which all parts of it matter."""
    config = composed(folder / "run", [f"experiment={name}", *tiny(name, *overrides[:1]), *overrides])
    module = build.build_module(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return tensor_network(module, build.plain_config(config))


@pytest.mark.parametrize("name", KINDS)
def test_other_programs_run_the_network(name: str, here: Path) -> None:
    kind, *overrides = KINDS[name]
    if kind == "onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("needs the extra onnx")
    network = network_of(name, here, *overrides, "classifier=null")
    file = tensor_file(network, kind)  # compared with the network there
    (here / file.name).write_bytes(file.content)
    assert not re.search(rb"/site-packages/|" + re.escape(str(Path.cwd()).encode()), file.content)
    runs_as_told(file.card)
    assert not ABSOLUTE.search(file.card.encode())
    assert ("any height H and width W" in file.card) == (name == "denoise_photos")


def runs_as_told(card: str) -> None:
    """Run the code of a card on four images."""
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]
    space: dict[str, Any] = {}
    exec(code, space)
    outputs = re.findall(r"`(\w+)`", re.findall(r"tensors out \((.*?)\)", card)[0])
    assert {len(space[name]) for name in outputs} == {4}
    inputs = re.findall(r"^\| `(\w+)` \|", card, re.MULTILINE)
    assert set(inputs) < space.keys()
    assert inputs
    assert "see the network's documentation" not in card


def test_the_export_has_the_file_and_says_how_it_is_run(
    run: RunFolder, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_names_no_place(exported, run.path.parent.parent)
    card = (exported / "README.md").read_text()
    assert card.count("```python") == 2
    assert {path.name for path in exported.glob("network.*")} == {"network.pt2"}
    monkeypatch.chdir(exported)
    runs_as_told(card)


def test_what_cannot_be_written_is_one_sentence(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slippery(torch.nn.Module):
        calls = 0

        def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return image_BCHW + (0 if torch.compiler.is_compiling() else 1)

    class Looking(torch.nn.Module):
        def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            return image_BCHW * (2 if image_BCHW.sum() > 0 else 1)

    image = {"image_BCHW": torch.rand(2, 1, 4, 4)}
    with pytest.raises(UserError, match="output of 1 images differs from the network's by .*: use format=weights"):
        tensor_file(TensorNetwork(Slippery(), image), "torch_export")
    with pytest.raises(UserError, match="format=torch_export: Looking cannot be written so: "):
        tensor_file(TensorNetwork(Looking(), image), "torch_export")
    if find_spec("onnx") is None:
        monkeypatch.setitem(sys.modules, "onnx", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "onnxscript", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"format=onnx needs onnxruntime: pip install 'triptych\[onnx\]'"):
        tensor_file(TensorNetwork(torch.nn.Identity(), {"input": torch.rand(2, 1)}), "onnx")


def test_the_hub_keeps_what_was_loaded(
    run: RunFolder, exported: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))

    def drawn(model: triptych.Model) -> list[bytes]:
        samples, mean = model.restore(picture, 2, seed=1)
        return [image.tobytes() for image in (*samples, mean)]

    model = triptych.load(run.path)
    expected = drawn(model)
    for number, source in enumerate((model, triptych.load(exported))):
        source.save_pretrained(f"saved{number}")
        source.save_pretrained(f"saved{number}")  # takes the place of the earlier one
        again = triptych.Model.from_pretrained(f"saved{number}")
        assert isinstance(again, triptych.Model)
        assert drawn(again) == expected
        assert_names_no_place(here / f"saved{number}", run.path.parent.parent, exported.parent)
    other = here / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    for source in (model, triptych.load(exported)):
        with pytest.raises(UserError, match="other exists and is no export"):
            source.save_pretrained(other)
    assert [path.name for path in other.iterdir()] == ["config.json"]
    monkeypatch.setenv("HOME", str(here))
    model.save_pretrained("~/of home")
    assert (here / "of home" / "config.json").exists()
    card = hub.ModelCard.load("saved0/README.md").data
    assert card.library_name == "triptych"
    assert {"triptych", "meanflow", "model_hub_mixin"} <= set(card.tags)

    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            sent["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
            sent["made"] = repo_id
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
            sent.update(options, files=sorted(path.name for path in Path(folder_path).iterdir()))
            return "address"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert model.push_to_hub("me/digits", token="secret", private=True) == "address"
    assert {"README.md", "config.yaml", "model.safetensors", "config.json"} <= set(sent["files"])
    assert (sent["repo_id"], sent["token"]) == ("me/digits", "secret")

    cache = here / "models--me--digits"  # as the hub's cache lays a snapshot out
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "1").mkdir(parents=True)
    for path in (here / "saved0").glob("*.*"):
        path.rename(cache / "blobs" / path.name)
        (cache / "snapshots" / "1" / path.name).symlink_to(cache / "blobs" / path.name)
    with pytest.raises(UserError, match="is no folder and no model of the hub"):
        triptych.Model.from_pretrained("no such/model/here")
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda *a, **k: str(cache / "blobs/config.json"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(cache / "snapshots" / "1"))
    monkeypatch.setattr("triptych.hub._mixin", __import__("triptych.hub", fromlist=["_"])._mixin.__wrapped__)
    assert drawn(triptych.Model.from_pretrained("me/digits", revision="1")) == expected

    with torch.no_grad():
        next(model.module.network.parameters()).add_(1)
    with pytest.raises(UserError, match="the weights are not those of .* any more"):
        model.save_pretrained("changed")
    sent.clear()
    with pytest.raises(UserError, match="the weights are not those of .* any more"):
        model.push_to_hub("me/changed")
    assert "made" not in sent  # no empty repository is left
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub: pip install 'triptych\[hub\]'"):
        model.push_to_hub("me/digits")
