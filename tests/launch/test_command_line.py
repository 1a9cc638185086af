"""What people type: paths of any name, dashes, options that are none; each is understood or is one sentence."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import checked_command, train_here
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from launch.build import build_trainer, plain_config
from launch.command_line import split_flags
from launch.commands import evaluate, export
from launch.commands import train as training
from launch.commands.compare import compare
from launch.compare.evaluations import read_job
from launch.compose import apply_overrides, compose_config, literal, parse, quoted, written_out
from launch.errors import UserError
from launch.loggers import build_loggers
from launch.options import groups, optional_groups
from launch.run_folder import RunFolder
from launch.start import is_plain

NASTY = [
    "o'brien", "two words", 'say "a"', "[a]", "a,b", "a=b", "héllo", "$HOME", "${x}", "a\\", "a\\'b", "{a: 1}", "(a)", "~",
    "#1", "a;b", "%d", "\\${x}", "''", "null",
]  # fmt: skip
NASTIEST = 'o\'brien "a" [b], c=d ${e} $f ü'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train_here(tmp_path_factory.mktemp("runs") / "run", "experiment=meanflow_dit", "callbacks.calibration=null")


@pytest.mark.parametrize("name", NASTY)
def test_any_text_is_quoted_so_that_it_is_read_back(name: str) -> None:
    key, value = parse(f"hydra.run.dir={quoted(name)}")
    assert key == "hydra.run.dir"
    assert OmegaConf.create({"dir": value})["dir"] == name
    assert OmegaConf.create({"dir": literal(name)})["dir"] == name


@pytest.mark.parametrize("name", [NASTIEST, "a\\"])
def test_a_run_in_a_folder_of_any_name_goes_on(name: str, run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(run.path, folder)
    config = checked_command(f"resume={folder}", "trainer.max_steps=9")
    assert config.hydra.run.dir == config.resume == str(folder)


def test_every_command_takes_a_run_in_a_folder_of_any_name(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / NASTIEST
    shutil.copytree(run.path, folder)
    monkeypatch.chdir(tmp_path)
    evaluate.main([f"run={folder}", "name=again"])
    assert (folder / "evaluations" / "again" / "metrics.json").exists()
    export.main([f"run={folder}"])
    assert (folder / "export" / "model.safetensors").exists()
    assert compare([f"runs={tmp_path}/o'brien*", "name=page"]).exists()


REFUSED = [
    (["--experiment", "meanflow_dit"], "--experiment is no option: .* as in experiment=meanflow_dit"),
    (["experiment=meanflow_dit", "--resume", "outputs/a"], "as in resume=outputs/a"),
    (["experiment=meanflow_dit", "--learning-rate=1"], "as in learning_rate=1"),
    (["experiment=meanflow_dit", "data=null"], "data=null: no run is without data=NAME: choose one of .*digits"),
    (["experiment=meanflow_dit", "~network"], "~network: no run is without network=NAME"),
    (["experiment=ddpm_scenes", "guidance=null", "guidance.scale=3"], "guidance.scale=3 .* the run has no guidance"),
    (["experiment=meanflow_dit", "bottleneck.num_codes=3"], "bottleneck is null in this run: choose bottleneck=fsq"),
    (["experiment=meanflow_dit", "+callbacks.sample.every=3"], "the run has no callbacks.sample"),
    (["experiment=ddpm_scenes", "+guidance=null"], "guidance is a group .*: write guidance=null"),
    (["experiment=meanflow_dit", "callbacks=[restore,null]"], r"callbacks=\[restore,null\] does not exist"),
    (["experiment=meanflow_dit", "hydra/launcher=null"], "hydra/launcher=null: leave it out"),
    (["experiment=meanflow_dit", "data=_base"], "data=_base does not exist"),
    (["-m", "experiment=meanflow_dit", "data=null,digits"], "data=null: no run is without data=NAME"),
    (["experiment=meanflow_dit", "trainer=3"], "trainer=3 does not exist: choose one of .*cpu"),
    (["experiment="], "experiment= does not exist"),
    (["experiment=meanflow_dit", "data.root=/home/o'brien"], r"is put in quotes: .*o.*brien"),
    (["experiment=meanflow_dit", "trainer.max_steps=-1", "+trainer.max_epochs=1"], "trainer.max_steps=-1 must be"),
    (["experiment=meanflow_dit", "+trainer.max_epochs=1"], "trainer.max_epochs=1 must be"),
    (["experiment=meanflow_dit", "module={objective:{weights:1}}"], r"module.objective.weights is no key .* weight\?"),
    (["experiment=meanflow_dit", "+seed.x=1"], 'seed={"x": 1} must be a whole number'),
    (["experiment=meanflow_dit", "+seed=1"], r"^\+seed=1: seed is a key .* already: write seed=1, without the \+\.$"),
    (["experiment=meanflow_dit", "+module.mean_weight=0.5"], r"module.mean_weight is a key .* already: write module"),
    (["experiment=meanflow_dit", "+degradation=blur"], r"degradation is a group .*: write degradation=blur, without"),
    (["experiment=meanflow_dit", "+experiment=ddpm_scenes"], r"experiment is a group .*: write experiment=ddpm_scenes"),
    (
        ["experiment=meanflow_dit", "++optimzer.lr=1e-4"],
        r"optimzer\.lr=1e-4: nothing reads optimzer\.lr: .* optimizer\b",
    ),
    (["experiment=meanflow_dit", "+paths.output=/big"], r"nothing reads paths\.output: did you mean outputs"),
    (["experiment=meanflow_dit", "++init.weigths=raw"], r"nothing reads init\.weigths: did you mean weights\?"),
    (["experiment=meanflow_dit", "+init={run: a, weigths: raw}"], r"nothing reads init\.weigths"),
    (["experiment=meanflow_dit", "+mine={a: {b: 1}}"], r"nothing reads mine\.a\.b"),
    (
        ["experiment=meanflow_dit", "++degradation.stpes.noise.std=0.5"],
        "degradation.stpes has no effect on degradation=",
    ),
    (["experiment=meanflow_dit", "optimzer.lr=1e-4"], r"optimzer\.lr is no key .* optimizer[^+]*$"),
    (["experiment=meanflow_dit", "~module.nothing"], r"module.nothing is no key of this config: .*[^)]$"),
    (["experiment=meanflow_dit", "~seed=3"], r"The value of 'seed' is 0 and not 3"),
]


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of each composition that is made, whoever asks for it."""
    made: list[list[str]] = []
    compose = ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, config_name: str, overrides: list[str], *args: Any, **kwargs: Any) -> Any:
        made.append(overrides)
        return compose(self, config_name, overrides, *args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    return made


def test_a_config_is_composed_once(
    run: RunFolder, compositions: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[RunFolder, dict[str, Any], list[str]]] = []

    def train(run: RunFolder, config: DictConfig, overrides: list[str], *_: Any) -> None:
        begun.append((run, plain_config(config), overrides))

    monkeypatch.setattr(training, "train", train)
    for arguments in (
        [
            "experiment=meanflow_dit",
            "compile=false",
            "objective=flow_matching",
            f"hydra.run.dir={tmp_path}/${{seed}}",
            "seed=7",
        ],
        [f"resume={run.path}", "trainer.max_steps=9", "optimizer.lr=0.1"],
    ):
        compositions.clear()
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        training.start()
        assert len(compositions) == 1
    (new, config, overrides), (again, resumed, _) = begun
    assert new.path == tmp_path / "7"
    assert (config["name"], config["paths"]["run"]) == ("meanflow_dit", str(new.path))
    assert overrides == ["experiment=meanflow_dit", "compile=false", "objective=flow_matching", "seed=7"]
    assert again.path == run.path
    assert (resumed["trainer"]["max_steps"], resumed["optimizer"]["lr"]) == (9, 0.1)
    compositions.clear()
    read_job([f"run={run.path}", "sampler.num_steps=3"], "")
    assert len(compositions) == 1


def test_a_sweep_is_checked_with_a_composition_for_each_file_of_conf(compositions: list[list[str]]) -> None:
    checked_command("-m", "experiment=meanflow_dit", "seed=1,2,3", "optimizer.lr=0.1,0.01")
    assert len(compositions) == 1
    checked_command("-m", "experiment=meanflow_dit", "seed=1,2,3", "objective=mean_flow,flow_matching")
    assert len(compositions) == 3


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_habits_of_other_tools_are_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        checked_command(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "added",
    [
        ["+mine.rate=1e-4", "optimizer.lr=${mine.rate}"],
        ["+mine={rate: 1e-4, other: 2}", "optimizer.lr=${mine.rate}", "optimizer.weight_decay=${mine.other}"],
        ["+place=x", "hydra.run.dir=outputs/${place}"],
        ["+callbacks.mine={_target_: callbacks.Throughput, every: 3}"],
        ["+optimizer.eps=1e-6", "++data.damaged=skip", "++init.weights=raw", "+trainer.max_time=00:01:00:00"],
        ["logger=wandb", "+logger.id=abc"],
    ],
)
def test_a_key_of_ones_own_is_taken_where_something_reads_it(added: list[str]) -> None:
    assert compose_config(["experiment=meanflow_dit", *added])


def test_the_home_folder_is_written_to_where_it_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = checked_command("experiment=meanflow_dit", "paths.outputs='~/big'")
    assert config.paths.outputs == f"{tmp_path}/big"
    assert written_out("paths.outputs=~/big") == f"paths.outputs={tmp_path}/big"
    assert written_out("hydra.run.dir='~/a b'") == f"hydra.run.dir='{tmp_path}/a b'"
    assert written_out("hydra.run.dir=a~/b") == "hydra.run.dir=a~/b"
    with pytest.raises(UserError, match="no such home folder"):
        written_out("paths.outputs=~nobody_of_this_name/x")


def test_paths_that_are_typed_for_an_evaluation_mean_the_same_in_every_folder(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = read_job([f"run={run.path}", "classifier=judges/a.ckpt", "sampler.num_steps=3"], "")
    assert job.identity()["overrides"] == [f"classifier='{tmp_path}/judges/a.ckpt'", "sampler.num_steps=3"]
    assert job.name == "classifier=judges_a.ckpt,sampler.num_steps=3"


def test_a_job_of_a_sweep_goes_on_though_its_folder_has_signs_of_hydra() -> None:
    assert is_plain(["resume=sweeps/0_seed=1,network=dit_small", "+trainer.max_steps=3", "hydra.run.dir=x"])
    assert not is_plain(["resume=sweeps/0_seed=1", "hydra/launcher=slurm"])


@pytest.mark.parametrize("group", [group for group in groups() if group != "hydra"])
def test_a_group_is_null_or_the_sentence_says_why_not(group: str) -> None:
    overrides = ["experiment=vqgan_scenes", f"{group}=null"]
    if group in optional_groups():
        assert compose_config(overrides).get(group) is None
        return
    with pytest.raises(UserError, match=f"{group}=null: no run is without {group}=NAME: choose one of"):
        compose_config(overrides)


def test_null_is_a_value_of_a_multirun(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["-m", "experiment=vqgan_scenes", "discriminator=null,patch", "perceptual=choice(null, vgg16)"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr(training, "main", lambda: None)
    training.start()
    assert sys.argv[3:5] == ["discriminator=none,patch", "perceptual=choice(none, vgg16)"]


def test_a_run_goes_on_and_is_evaluated_without_a_group(run: RunFolder) -> None:
    assert checked_command(f"resume={run.path}", "degradation=null").degradation is None
    fresh = apply_overrides(run.config(), run.overrides(), ["degradation=null", "logger=null"])
    assert fresh.degradation is None
    for group in ("experiment=ddpm_scenes", "search=meanflow"):
        with pytest.raises(UserError, match="cannot be changed on an existing run"):
            apply_overrides(run.config(), run.overrides(), [group])


def test_flags_of_hydra_are_handed_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=nope", "--cfg", "job"])
    with pytest.raises(SystemExit, match="2"):
        training.start()
    assert "experiment=nope does not exist" in capsys.readouterr().err
    assert split_flags(["experiment=a", "--cfg", "job", "-m", "b=1"]) == (
        ["--cfg", "job", "-m"],
        ["experiment=a", "b=1"],
    )


def test_what_this_machine_lacks_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config(["experiment=meanflow_dit", "trainer=gpu", "logger=tensorboard"])
    config.paths.run = str(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="trainer.accelerator=gpu: PyTorch finds no GPU .* trainer=cpu"):
        build_trainer(config, tmp_path, [], False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"logger=tensorboard is not installed: pip install 'triptych\[tensorboard\]'"):
        build_loggers(config, RunFolder(tmp_path), None)
