"""A run has one history: what a resume changes takes effect, is recorded with its step, and holds for all that follows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers import read_json, resume_here, train_here
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from callbacks.checkpoint import Interrupted
from launch import build
from launch.command_line import run_arguments, tell_choices
from launch.compare.reading import read_runs
from launch.compose import compose_config
from launch.errors import UserError
from launch.history import History, changes_of, unfinished_reason
from launch.record import images_seen
from launch.run_folder import RunFolder, write_json
from launch.settings import BEFORE
from launch.settled import check_use

QUIET = [f"callbacks.{name}=null" for name in ("calibration", "progress", "image_grid", "throughput")]
STEPS = 3


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("begun") / "run"
    return train_here(folder, "experiment=meanflow_dit", "optimizer=adamw", *QUIET, f"trainer.max_steps={STEPS}")


@pytest.fixture
def run(begun: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(begun.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


class Probe(Callback):
    """Notes the values in use at every step, and may end the run."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        self.batches: list[int] = []
        self.trainer: Any = None
        self.module: Any = None
        self.error: BaseException | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.error:
            raise self.error
        self.trainer, self.module = trainer, pl_module
        self.rates[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]
        self.batches.append(len(batch.image))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Probe]:
    found, own = Probe(), build.build_callbacks
    monkeypatch.setattr(build, "build_callbacks", lambda config: [*own(config), found])
    return found


# Of every group a key, its value, and where the value in use is found.
CHANGED: dict[str, tuple[Any, Any]] = {
    "optimizer.lr": (1e-4, lambda p: p.trainer.optimizers[0].param_groups[0]["initial_lr"]),
    "optimizer.weight_decay": (0.3, lambda p: p.trainer.optimizers[0].param_groups[0]["weight_decay"]),
    "optimizer.betas": ([0.5, 0.6], lambda p: list(p.trainer.optimizers[0].param_groups[0]["betas"])),
    "+optimizer.eps": (1e-6, lambda p: p.trainer.optimizers[0].param_groups[1]["eps"]),
    "learning_rate.final_share": (0.5, lambda p: p.module.learning_rate_factor.final_share),
    "callbacks.ema.decay": (0.25, lambda p: next(c for c in p.trainer.callbacks if type(c).__name__ == "EMA").decay),
    "callbacks.checkpoint.every_n_steps": (2, lambda p: p.trainer.checkpoint_callbacks[0].every_n_steps),
    "sampler.num_steps": (4, lambda p: p.module.sampler.num_steps),
    "objective.velocity_only_share": (0.25, lambda p: p.module.objective.velocity_only_share),
    "module.evaluation_seed": (7, lambda p: p.module.evaluation_seed),
    "data.global_batch_size": (4, lambda p: p.batches[-1]),
    "trainer.gradient_clip_val": (0.5, lambda p: p.trainer.gradient_clip_val),
    "trainer.accumulate_grad_batches": (2, lambda p: p.trainer.accumulate_grad_batches),
    "trainer.max_steps": (6, lambda p: p.trainer.max_steps),
    "seed": (11, lambda p: p.module.seed),
}


def test_every_override_of_a_resume_is_used_recorded_and_kept(
    run: RunFolder, probe: Probe, capsys: pytest.CaptureFixture
) -> None:
    before = compose_config([*run.overrides()])
    record = run.record
    record["history"][0]["hardware"]["threads"] = 64
    write_json(run.record_path, record)
    overrides = [f"{key}={value}" for key, (value, _) in CHANGED.items()]
    with pytest.warns(UserWarning, match=r"other conditions: .*hardware\.threads 64 -> ") as warned:
        resume_here(run, *overrides)
    assert sum("other conditions" in str(warning.message) for warning in warned) == 1

    recorded = OmegaConf.load(run.config_path)
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    entry = run.record["history"][1]
    for key, (value, used) in CHANGED.items():
        key = key.lstrip("+")
        assert used(probe) == value, key
        assert OmegaConf.select(recorded, key) == value, key
        assert OmegaConf.select(OmegaConf.create(checkpoint["config"]), key) == value, key
        old = OmegaConf.select(before, key)
        assert entry["changes"][key] == {
            "from": OmegaConf.to_object(old) if OmegaConf.is_config(old) else old,
            "to": value,
        }
    assert entry["step"] == STEPS
    assert len(entry["changes"]) == len(CHANGED)  # and what follows from them is none of them
    factor = probe.module.learning_rate_factor  # the composed config's: its cosine over the new number of steps
    assert factor.total_steps == 6
    assert probe.rates == {step: 1e-4 * factor(step) for step in (3, 4, 5)}
    assert len(probe.batches) == 6  # each step has its two batches
    line = capsys.readouterr().out
    assert "at step 3 of 6" in line
    assert "trainer.max_steps 3 -> 6" in line
    assert f"learning rate 2e-05 -> {1e-4 * factor(3):.3g}" in line
    assert run.record["overrides"] == record["overrides"]  # of the start: what resume=auto and sweeps know it by
    assert (run.record["finished"], run.record["stopped"]) == (True, None)
    assert images_seen(run.record, 4, 2, 6) == 3 * 8 + 3 * 4 * 2

    # evaluate, generate and export; compare; the next resume
    _, config, _, _ = run_arguments([f"run={run.path}"], {}, "")
    assert (config.sampler.num_steps, config.optimizer.lr) == (4, 1e-4)
    (measured,) = read_runs([run.path]).measured
    assert measured.trained["optimizer.lr"] == "0.0001"
    assert "optimizer.lr=0.001" in measured.trained[BEFORE]
    assert "until step 3" in measured.trained[BEFORE]
    with patch("torch.load", wraps=torch.load) as load:
        resume_here(run, "trainer.max_steps=7")
    files = [str(getattr(call.args[0], "name", call.args[0])) for call in load.call_args_list]
    assert files.count(str(run.checkpoint)) == 1  # what was checked is what the trainer continues from
    assert [entry["step"] for entry in run.record["history"]] == [0, 3, 6]
    assert run.record["history"][2]["changes"] == {"trainer.max_steps": {"from": 6, "to": 7}}
    assert (probe.module.sampler.num_steps, probe.batches[-1], probe.module.seed) == (4, 4, 11)
    assert probe.rates[6] == 1e-4 * probe.module.learning_rate_factor(6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.num_heads=4"], r"network\.num_heads=4 cannot be changed at resume=.*made with 2"),
        (["module.output=velocity"], r"module\.output=velocity cannot be changed"),
        (
            ["optimizer._target_=torch.optim.Adam"],
            r"optimizer\._target_=torch\.optim\.Adam cannot .*torch\.optim\.AdamW",
        ),
        (["+optimizer.amsgrad=true"], "cannot continue with the state .*max_exp_avg_sq"),
        (["trainer.max_steps=2"], r"trainer\.max_steps=2 lies before step 3"),
        (["trainer.max_steps=3"], "has finished at step 3"),
        (["hydra.run.dir=elsewhere"], "leave out hydra.run.dir="),
        (["experiment=regression_dit"], "leave out experiment="),
    ],
)
def test_a_refused_resume_says_why_and_leaves_no_trace(overrides: list[str], message: str, run: RunFolder) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    before, more = content(), [] if "trainer.max_steps" in overrides[0] else ["trainer.max_steps=9"]
    with pytest.raises(UserError, match=message):
        resume_here(run, *overrides, *more)
    assert content() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "module.output=velocity",
            r"^module\.output=velocity cannot be set .* with module\.output=image; leave it out",
        ),
        ("network.num_heads=4", r"^network\.num_heads=4 cannot be set .* trained with network\.num_heads=2"),
        ("+network.dropout=0.5", r"only training reads network\.dropout"),
        ("seed=5", r"^seed=5 has no effect here: only training reads seed; leave it out\.$"),
        ("module.seed=5", r"only training reads module\.seed"),
        ("optimizer.lr=1", r"only training reads optimizer\.lr"),
        ("optimizer=muon", r"only training reads optimizer"),
        ("+optimizer.eps=1e-6", r"only training reads optimizer\.eps"),
        ("learning_rate=constant", r"only training reads learning_rate"),
        ("objective=flow_matching", r"only training reads objective"),
        ("compile=true", r"only training reads compile"),
        ("trainer.max_steps=9", r"only training reads trainer\.max_steps"),
        ("data.global_batch_size=2", r"only training reads data\.global_batch_size"),
        ("callbacks.ema=null", r"callbacks\.ema takes part in training alone"),
        ("callbacks.ema.decay=0.3", r"callbacks\.ema\.decay takes part in training alone"),
    ],
)
def test_what_the_training_has_settled_is_refused_in_use(begun: RunFolder, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run_arguments([f"run={begun.path}", override], {}, "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["schedule=linear", "schedule.num_timesteps=100", "schedule.kind=linear"])
def test_weights_keep_their_noise_schedule(override: str) -> None:
    """A diffusion's network is told a time alone, and knows from training what noise it stands for."""
    given = ["experiment=ddpm_scenes"]
    with pytest.raises(UserError, match=f"^{override} cannot be set in the use of run: .*leave it out"):
        check_use(Path("run"), compose_config(given), compose_config([*given, override]), [override])


def test_what_the_use_of_a_run_may_set(begun: RunFolder) -> None:
    """Also values that are the run's own: what a script gives to all runs."""
    own = begun.config()
    for overrides in (
        ["sampler=heun", "sampler.num_steps=3", "degradation=block_mask", "module.reimpose_known=true"],
        [f"network.num_heads={own.network.num_heads}", f"seed={own.seed}", f"trainer.max_steps={STEPS}"],
        ["task=inpaint", "callbacks=[restore,likelihood]", "callbacks.image_grid=null", "module.labels=false"],
        ["data=gauss", "network=exact", "degradation=gaussian", "trainer=cpu", "trainer.limit_test_batches=1"],
        [
            "data.num_test=5",
            "data.eval_batch_size=2",
            "evaluation_seed=3",
            "module.evaluation_seed=2",
            "classifier=null",
        ],
    ):
        run_arguments([f"run={begun.path}", *overrides], {}, "")


def test_what_only_has_another_name_now_was_not_changed(run: RunFolder) -> None:
    path, checkpoint = run.newest_checkpoint()
    config = checkpoint["config"]
    config["data"]["_target_"] = "datamodules.digits.DigitsDataModule"
    for objective in (config["objective"], config["module"]["objective"]):
        objective["time_law"] = objective.pop("time_distribution") | {"_target_": "generative.schedules.TimeLaw"}
    history = History(run, run.config(), run.config(), run.overrides(), (path, checkpoint))
    assert history.changes == changes_of(run.newest_checkpoint()[1]["config"], run.config())


def test_a_checkpoint_alone_suffices(run: RunFolder, tmp_path: Path, probe: Probe) -> None:
    bare = RunFolder(tmp_path / "bare")
    bare.checkpoint.parent.mkdir(parents=True)
    shutil.copy(run.checkpoint, bare.checkpoint)
    _, config, _, _ = run_arguments([f"run={bare.path}", "sampler.num_steps=3"], {}, "")
    assert (config.name, config.sampler.num_steps) == ("meanflow_dit", 3)
    resume_here(bare, "trainer.max_steps=4")
    assert probe.module.learning_rate_factor.total_steps == 4
    assert bare.overrides() == [*(o for o in run.overrides() if "max_steps" not in o), "trainer.max_steps=4"]
    assert [entry["step"] for entry in bare.record["history"]] == [0, 3]
    assert bare.record["overrides"] == run.record["overrides"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Interrupted(15, " at step 3"), "Stopped by SIGTERM at step 3."),
        (RuntimeError("out\nof luck"), "RuntimeError: out of luck"),
    ],
)
def test_what_stopped_a_run_is_in_its_record(error: BaseException, reason: str, run: RunFolder, probe: Probe) -> None:
    probe.error = error
    with pytest.raises(type(error)):
        resume_here(run, "trainer.max_steps=6")
    assert not run.record["finished"]
    assert run.record["stopped"] == {"step": 3, "reason": reason}
    assert reason in read_runs([run.path]).left_out[0].reason


@pytest.mark.parametrize(
    ("settings", "step", "reason"),
    [
        ({"max_steps": 5}, 5, None),
        ({"max_steps": 5, "max_time": "00:00:00:02"}, 5, None),
        ({"max_steps": 5, "max_time": "00:00:00:02"}, 4, "trainer.max_time=00:00:00:02"),
        (
            {"max_steps": 5, "max_epochs": 1, "limit_train_batches": 2},
            2,
            "max_epochs=1 or trainer.limit_train_batches=2",
        ),
        ({"max_steps": 0}, 0, "trainer.max_steps=0 asks for no steps"),
        ({"max_steps": 1, "fast_dev_run": True}, 1, "trainer.fast_dev_run=True"),
        ({"max_steps": 5}, 4, "a callback ended it"),
    ],
)
def test_only_a_run_that_made_its_steps_is_finished(settings: dict[str, Any], step: int, reason: str | None) -> None:
    trainer: Any = SimpleNamespace(fast_dev_run=settings.get("fast_dev_run", False), global_step=step)
    found = unfinished_reason(OmegaConf.create({"trainer": settings}), trainer)
    assert found is None if reason is None else reason in str(found)


def test_a_trial_run_is_stopped_and_nobodys_tokenizer(run: RunFolder, capsys: pytest.CaptureFixture) -> None:
    resume_here(run, "trainer.max_steps=5", "+trainer.max_time=00:00:00:00")
    record = read_json(run.record_path)
    assert not record["finished"]
    assert "max_time" in record["stopped"]["reason"]
    assert f"stopped at step {record['step']} of 5: trainer.max_time" in capsys.readouterr().out


def test_an_automatic_choice_is_told_once_with_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    overrides = ["experiment=vqgan_scenes", f"paths.outputs={tmp_path}"]
    run = RunFolder(tmp_path / "vqgan_scenes" / "run")
    run.checkpoint.parent.mkdir(parents=True)
    run.checkpoint.touch()
    run.write_config(compose_config(overrides), overrides)
    record = {"data": {"name": "scenes", "image_size": 32}, "ended": "2026-01-01", "step": 1500}
    config = compose_config(["experiment=maskgit_scenes", f"paths.outputs={tmp_path}"])
    for finished in (False, True):
        write_json(run.record_path, {**record, "finished": finished})
        tell_choices(config)
        tell_choices(config)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tokenizer=")]
    assert lines == [
        "tokenizer=auto: no finished run fits; none is used",
        f"tokenizer=auto: {run.checkpoint} (1,500 steps)",
    ]


def test_recorded_overrides_that_conf_has_no_key_for_stay_in_the_record(tmp_path: Path) -> None:
    """``conf/train.yaml`` once chose a sampler and an objective for every run; a regression is without them now."""
    run = train_here(tmp_path / "run", "experiment=regression_dit", "callbacks.checkpoint.every_n_steps=2")
    config, gone = run.config(), ["sampler.num_steps=2", "objective.weight.power=0.5"]
    config.sampler = compose_config(["experiment=meanflow_dit", gone[0]]).sampler
    run.write_config(config, [*run.overrides(), *gone])
    run_arguments([f"run={run.path}"], {}, "")
    with pytest.raises(UserError, match="sampler is null in this run"):  # what is typed is refused as ever
        run_arguments([f"run={run.path}", "sampler.num_steps=4"], {}, "")
    with pytest.raises(UserError, match="sampler is null in this run"):
        resume_here(run, "sampler.num_steps=4", "trainer.max_steps=3")
    resume_here(run, "trainer.max_steps=3")
    assert run.record["finished"]
    assert run.record["step"] == 3
    assert set(gone) <= set(run.overrides())
    assert run.config().sampler.num_steps == 2
