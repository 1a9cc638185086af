"""A received run folder is data: nothing that it says runs, and nothing damaged in it stops another run."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import checked_command
from omegaconf import OmegaConf

from generative.networks import ContextUNet
from launch.build import build_module
from launch.commands import evaluate, export, generate
from launch.commands.compare import compare
from launch.compare.evaluations import read_job
from launch.compare.reading import read_runs
from launch.compose import compose_config
from launch.errors import UserError
from launch.former import FORMER, FORMER_KEYS, FORMER_OPTIONS, renewed, renewed_override
from launch.names import NAME_LENGTH, checked_name, file_name
from launch.options import experiments, groups
from launch.received import (
    TARGET,
    TYPED_VARIABLE,
    checked_config,
    checked_export,
    checked_overrides,
    note_typed,
    own,
    typed,
)
from launch.record_files import MAX_NODES, DamagedRecordError, read_json, read_metrics, read_yaml
from launch.run_folder import RunFolder, newest_unfinished
from launch.start import resumed_config
from launch.sweep.jobs import SweepJob, jobs_of
from launch.sweep.report import report
from launch.trained_parts import trained_classifier

OVERRIDES = ["experiment=meanflow_dit"]


@pytest.fixture(autouse=True)
def _nothing_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TYPED_VARIABLE, "[]")


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    content = OmegaConf.to_container(compose_config(OVERRIDES), resolve=False)
    assert isinstance(content, dict)
    return content


@pytest.fixture
def run(plain: dict[str, Any], tmp_path: Path) -> RunFolder:
    """A folder with everything that is read before a module is built."""
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": {}, "global_step": 1}, folder / "checkpoints" / "last.ckpt")
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(plain))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(OVERRIDES))
    (folder / "run.json").write_text(json.dumps({"name": "meanflow_dit", "overrides": OVERRIDES, "data": {}}))
    return RunFolder(folder)


def set_in(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(content))
    *parents, last = key.split(".")
    node = content
    for parent in parents:
        node = node[parent]
    node[last] = value
    return content


MARKER = "ran"
ATTACKS: list[tuple[str, Any]] = [
    ("callbacks.progress", {"_target_": "torch.load", "f": "${paths.run}/extra.pt", "weights_only": False}),
    ("network", {"_target_": "torch.hub.load", "repo_or_dir": "${paths.run}", "source": "local", "model": "m"}),
    ("callbacks.x", {"_target_": "numpy.load", "file": "${paths.run}/x.npy", "allow_pickle": True}),
    ("callbacks.x", {"_target_": "os.system", "command": f"touch {MARKER}"}),
    ("callbacks.x", {"_target_": "hydra.utils.call", "config": {"_target_": "os.system"}}),
    ("callbacks.x", {"_target_": "launch.loggers.os.system", "_args_": [f"touch {MARKER}"]}),
    ("callbacks.x", {"_target_": "generative.weights.weights_hash"}),
    ("callbacks.x", {"_target_": ["torch.load"]}),
    ("callbacks.x", {"_target_": "${note}"}),
    ("callbacks.x", "${oc.create:{_target_:torch.load,f:x}}"),
    ("callbacks.x", "${oc.create:${note}}"),
    ("callbacks.x", "${oc.decode:${note}}"),
    ("degradation.steps.noise", [{"deeper": [{"_target_": "builtins.exec"}]}]),
    ("module.network", {"_target_": "generative.networks.DiT", "_args_": [1]}),
    ("module._recursive_", False),
    ("module._partial_", "yes"),
    ("name", "${oc.env:HOME}"),
    ("optimizer.lr", "${oc.env:SECRET}"),
    ("optimizer.lr", "${oc.env:SECRET,1}"),
    ("optimizer.lr", "${a}${oc.env:SECRET}"),
    ("optimizer.lr", "${hydra:runtime.cwd}"),
    ("optimizer.lr", "${oc.env:TRIPTYCH_CACHE,1}"),
    ("hydra", {"run": {"dir": "/tmp/x"}, "job": {"env_set": {"LD_PRELOAD": "x.so"}}}),
    ("data", {"_target_": "datamodules.webdataset.WebDatasetDataModule", "train": f"pipe:touch {MARKER}"}),
    ("data.train", ["a.tar", f"pipe:touch {MARKER}"]),
    ("data.val", f"a.tar::pipe:touch {MARKER}"),
    ("data.test", f"p{{i,i}}pe:touch {MARKER}"),
    ("data.train", f"gs://bucket/';touch {MARKER};'"),
    ("data.train", "{a,gs}://bucket/a.tar"),
    ("data.train", "${note}"),
    ("note", f"pipe:touch {MARKER}"),
    ("logger", {"_target_": "launch.loggers.WandbRun", "folder": "x", "project": "p", "settings": {"base_url": "http://x"}}),
    ("logger", {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "x", "name": "../../x"}),
    ("logger", {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "x", "version": "/etc"}),
    ("logger", "${note}"),
    ("logger", {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "x", "name": "${note}"}),
    ("logger", {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "x", "name": "${name}"}),
    ("logger", {"_target_": "launch.loggers.WandbRun", "folder": "x", "tags": "${note}"}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ATTACKS)
def test_a_config_that_names_more_than_conf_does_is_refused(key: str, value: Any, plain: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^config\.yaml is refused: .*") as caught:
        checked_config(set_in(plain, key, value), "config.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "script",
    [
        lambda run: evaluate.main([f"run={run.path}"]),
        lambda run: evaluate.main(["-m", f"run={run.path}", "weights=ema,raw"]),
        lambda run: generate.main([f"run={run.path}", "input=x", "output=y"]),
        lambda run: export.main([f"run={run.path}"]),
        lambda run: checked_command(f"resume={run.path}") and run.config(),
    ],
    ids=["evaluate", "evaluate -m", "generate", "export", "resume"],
)
@pytest.mark.parametrize("attack", [0, 23, 12])
def test_no_script_runs_what_a_run_folder_says(
    script: Callable, attack: int, run: RunFolder, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path)
    (run.path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(set_in(plain, *ATTACKS[attack])))
    with pytest.raises(UserError, match=r"config\.yaml is refused"):
        script(run)
    assert not (run.path / MARKER).exists()


def test_comparing_leaves_such_a_run_out(run: RunFolder, plain: dict[str, Any]) -> None:
    (run.path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(set_in(plain, "optimizer.lr", "${oc.env:HOME}")))
    (run.path / "metrics.json").write_text(json.dumps({"metrics": {"psnr/mean": 1.0}, "record": {}}))
    found = read_runs([run.path])
    assert not found.measured
    assert os.environ["HOME"] not in str(found.left_out)
    assert any("is refused: optimizer.lr" in each.reason for each in found.left_out)


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.x._target_=torch.load",
        "+callbacks.x={_target_:torch.load,f:x}",
        "hydra.run.dir=/tmp/x",
        "+hydra.job.env_set.LD_PRELOAD=x",
        "hydra/launcher=basic",
        "hydra.searchpath=[file:///tmp]",
        "+experiment@hydra=x",
        "network=../../../tmp/evil",
        "data.train=pipe:touch ran",
        "name='${oc.env:HOME}'",
        "seed=1,2",
        "no override",
        "module._recursive_=false",
        "paths.cache_dir='${oc.env:TRIPTYCH_CACHE,null}'",
    ],
)
def test_recorded_overrides_say_no_more_than_a_config(override: str) -> None:
    with pytest.raises(UserError, match=r"^overrides\.yaml is refused: "):
        checked_overrides([*OVERRIDES, override], "overrides.yaml")


def test_every_experiment_passes() -> None:
    for name in experiments():
        config = OmegaConf.to_container(compose_config([f"experiment={name}", "logger=wandb"]), resolve=False)
        assert checked_config(config, "config.yaml") == config
    former = {"paths": {"cache_dir": "${oc.env:TRIPTYCH_CACHE,null}"}}  # what conf/ once said
    assert checked_config(former, "config.yaml") == {"paths": {"cache_dir": None}}
    lines = [
        "experiment=x",
        "network=null",
        "+a.b=[1,2]",
        "~degradation.steps.noise",
        "data.root=/x",
        "data.train=http://h/a.tar",
    ]
    assert checked_overrides(lines, "overrides.yaml") == lines
    assert checked_overrides(None, "overrides.yaml") == []
    assert {"torch.optim.AdamW", "lightning.Trainer"} <= own().arguments.keys()


def test_what_conf_once_named_is_what_it_names_now() -> None:
    for former, now in FORMER.items():
        assert checked_config({"part": {TARGET: former}}, "config.yaml") == {"part": {TARGET: now}}
        assert now is None or now in own().arguments, former


@pytest.mark.parametrize(("former", "now"), FORMER_KEYS.items())
def test_what_a_key_was_once_called_is_read_wherever_it_stands(former: str, now: str) -> None:
    group, _, key = former.partition(".")
    renamed = {group: {now.partition(".")[2]: {"x": 1}}}
    assert checked_config({group: {key: {"x": 1}}}, "config.yaml") == renamed
    export = {"module": {group: {key: {"x": 1}}}}  # an export has no references: each object stands where it is used
    assert checked_export(export, "config.yaml") == {"module": renamed}
    assert renewed_override(f"{former}.x=2") == f"{now}.x=2"


def test_a_run_of_the_first_release_is_read_and_goes_on(run: RunFolder) -> None:
    recorded = ["experiment=ddpm_iclevr_first", "network=unet_first_added", "network.base_channels=8", "data=scenes64"]
    config = Path(__file__).with_name("recorded_config.yaml").read_text()  # as Triptych 0.1.0 wrote it, with these
    (run.path / ".hydra" / "config.yaml").write_text(config)
    (run.path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(recorded))
    resumed = checked_command(f"resume={run.path}", "data.num_train=64")
    assert resumed.hydra.runtime.choices.experiment == "ddpm_iclevr_context_unet"
    in_force = resumed_config(run, [*run.overrides(), "guidance=null"])[0]
    assert type(build_module(in_force).network) is ContextUNet
    assert in_force.guidance is None


@pytest.mark.parametrize("former", FORMER_OPTIONS)
def test_a_former_option_that_is_typed_is_answered_with_its_name_now(former: str) -> None:
    now = renewed_override(former).partition("=")[2]
    assert now in groups()[former.partition("=")[0]]
    with pytest.raises(UserError, match=f"{former} does not exist: did you mean {now}"):
        compose_config([*OVERRIDES, former] if "experiment" not in former else [former])


def test_what_a_person_types_is_the_persons_own(plain: dict[str, Any]) -> None:
    foreign = set_in(plain, "network._target_", "mine.Network")
    command = set_in(set_in(plain, "data.train", "pipe:cat a.tar"), "data.val", "pipe:cat b.tar")
    note_typed(["network._target_=mine.Network", "data.train='pipe:cat a.tar'", "network=dit_tiny"])
    assert typed()[0] == "network._target_=mine.Network"
    assert checked_config(foreign, "config.yaml") == foreign
    with pytest.raises(UserError, match=r"data\.val='pipe:cat b\.tar' is fetched by a command"):
        checked_config(command, "config.yaml")
    assert checked_overrides(["data.train='pipe:cat a.tar'"], "overrides.yaml")
    with pytest.raises(UserError, match=r"none of the classes"):
        checked_config(set_in(plain, "network._target_", "mine.Other"), "config.yaml")


def test_a_logger_writes_to_its_run(plain: dict[str, Any]) -> None:
    logger = {"_target_": "launch.loggers.WandbRun", "folder": "/home/someone", "project": "p", "id": "x"}
    assert checked_config(set_in(plain, "logger", logger), "config.yaml")["logger"]["folder"] == "${paths.run}"


def test_a_config_that_holds_itself_is_bounded() -> None:
    """A checkpoint's containers may: pickle writes references."""
    inside: list[Any] = []
    inside += [inside, inside]
    wide: list[Any] = ["x"]
    for _ in range(40):
        wide = [wide, wide]
    for value, message in ((inside, "nested more than 50 deep"), (wide, "more than 50,000 values")):
        with pytest.raises(UserError, match=rf"^last\.ckpt is refused: .*{message}"):
            checked_config({"a": value}, "last.ckpt")


NAMES = [
    "",
    " ",
    ".",
    "..",
    "../x",
    "a/b",
    "/abs/x",
    "a\\b",
    "a\nb",
    "a\0b",
    "\x1b[31m",
    " a",
    ".a",
    "x" * (NAME_LENGTH + 1),
    "é" * 100,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name(name: str) -> None:
    with pytest.raises(UserError, match=r"^name=.*choose a name of letters and digits") as caught:
        checked_name("name", name)
    assert "\n" not in str(caught.value)
    assert checked_name("name", "blur 4, raw=é") == "blur 4, raw=é"


def test_names_of_evaluations_are_names(run: RunFolder) -> None:
    for name in ("..", "../../x", "/abs/x", ""):
        with pytest.raises(UserError, match=r"^name=.*choose a name"):
            read_job([f"run={run.path}", f"name={name}"], "")
        with pytest.raises(UserError, match=r"^name=.*choose a name"):
            evaluate.main(["-m", f"run={run.path}", f"name={name}"])
        with pytest.raises(UserError, match=r"^name=.*choose a name"):
            compare([f"runs={run.path}", f"name={name}"])


def test_an_evaluation_keeps_its_name_and_its_place(run: RunFolder, tmp_path: Path) -> None:
    job = read_job([f"run={run.path}", "name=x"], "")
    job.check_folder()
    job.folder.mkdir(parents=True)
    job.metrics_path.write_text(json.dumps({"metrics": {}, "record": job.identity()}))
    job.check_folder()  # the same settings: measured anew
    other = replace(job, weights="raw")
    with pytest.raises(UserError, match=r"name=x is the name of another evaluation of this run \(weights=ema\)"):
        other.check_folder()
    job.metrics_path.write_text("")
    other.check_folder()
    (job.folder / "images").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"evaluations/x/images leads out of the run folder"):
        job.check_folder()


@pytest.mark.parametrize("override", ["name=../x", "name=/x", "name=..", "sweep=../x", "name=''", "name=null"])
def test_names_of_trainings_are_names(override: str) -> None:
    with pytest.raises(UserError, match=r"^(name|sweep)=.* choose a name"):
        checked_command(*OVERRIDES, override)
    with pytest.raises(UserError, match=r"^(name|sweep)=.* choose a name"):
        checked_command("-m", *OVERRIDES, override)


def test_made_names_are_names() -> None:
    for parts in (["..", "a"], [".."], ["é" * 200], ["\ud800" * 3], ["a/b\n"]):
        assert checked_name("name", file_name(parts))


def bomb(levels: int) -> str:
    return "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, levels))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb(30).encode(), f"more than {MAX_NODES:,} values"),
        (b"a: &a [*a]", r"alias \*a stands for nothing"),
        (b"a: " + b"[" * 200 + b"]" * 200, "nested more than"),
        (b"a: " + b"[" * 200_000, "is damaged"),
        (b"x" * 600_000, "more than 500,000 bytes"),
        (b"a: !!python/object/apply:os.system [touch ran]", "could not determine a constructor"),
        (b"a: \xff", "utf-8"),
        (b"a: ${", "is damaged"),
        (b"a: 1\na: 2", "duplicate"),
    ],
)  # fmt: skip
def test_yaml_is_bounded(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(DamagedRecordError, match=r"(?s)config\.yaml is damaged.*") as caught:
        read_yaml(path)
    assert re.search(message, str(caught.value))


def test_records_with_a_mark_and_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b'\xef\xbb\xbf{"name": "x"}')
    assert read_json(tmp_path / "run.json") == {"name": "x"}
    (tmp_path / "config.yaml").write_bytes(b"\xef\xbb\xbfa: &a {b: 1e-3}\nc: *a\nd: ${a}\n")
    assert read_yaml(tmp_path / "config.yaml") == {"a": {"b": 0.001}, "c": {"b": 0.001}, "d": "${a}"}


def damaged() -> Iterator[bytes]:
    yield from (b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"a":' * 100_000)


@pytest.mark.parametrize("content", damaged())
def test_a_damaged_record_stops_no_other_run(content: bytes, run: RunFolder, tmp_path: Path) -> None:
    other = shutil.copytree(run.path, tmp_path / "other")
    (other / "run.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"other is passed over: .*run\.json is damaged"):
        assert newest_unfinished(tmp_path, OVERRIDES) == run
    with pytest.warns(UserWarning, match=r"other is passed over: .*run\.json is damaged"):
        assert trained_classifier("auto", str(tmp_path), "digits", 32) is None
    with pytest.raises(UserError, match=r"run\.json is damaged .*remove it to continue"):
        read_job([f"run={other}"], "")


def test_a_folder_in_the_place_of_a_record(run: RunFolder) -> None:
    run.record_path.unlink()
    run.record_path.mkdir()
    with pytest.raises(DamagedRecordError, match="no regular file"):
        assert run.record
    os.mkfifo(run.path / "metrics.json")
    with pytest.raises(DamagedRecordError, match="no regular file"):
        read_metrics(run.path / "metrics.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"number": "x", "overrides": [], "attempts": []}',
        b'{"number": 1, "overrides": [1], "attempts": []}',
    ],
)
def test_a_damaged_job_stops_no_sweep(
    content: bytes, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = SweepJob(0, run, OVERRIDES)
    whole.write([{"started": "now", "ended": None, "exit_code": 1}])
    other = tmp_path / "other"
    other.mkdir()
    (other / "job.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"other is passed over: .*job\.json is damaged"):
        assert jobs_of(tmp_path) == [whole]
    with pytest.warns(UserWarning, match="job 1"):
        assert SweepJob(1, RunFolder(other), OVERRIDES).attempts == []
    run.record_path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"run\.json is damaged"):
        report(tmp_path)
    assert "sweep of 1 job: 1 failed" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["abc", None, [1.0], {"a": 1}, True])
def test_a_metric_is_a_number(value: Any, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": {"psnr/mean": value}, "record": {}}))
    with pytest.raises(DamagedRecordError, match=r"metrics\.json is damaged \(psnr/mean is .*evaluate the run again"):
        read_metrics(tmp_path / "metrics.json")


def test_what_came_later_beside_an_argument_does_in_old_configs_as_was_done_without_it() -> None:
    old = {"_target_": "datamodules.image_folder.ImageFolderDataModule", "horizontal_flip": True}
    assert renewed({"data": old})["data"] == {**old, "quarter_turns": False}
    assert renewed(old | {"quarter_turns": True})["quarter_turns"]
    assert "quarter_turns" not in renewed(old | {"_target_": "mine.Photographs"})
