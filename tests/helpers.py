"""Small real runs for the tests: the entry scripts in this process or in one of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from datamodules.embedded import digits
from generative.randomness import generator_for
from generative.types import Batch
from launch.command_line import split_flags
from launch.compose import compose_config, without_hydra
from launch.paths import make_absolute
from launch.received import note_typed
from launch.run_folder import RunFolder, identity
from launch.start import composed_start, resumed_config
from launch.sweep.arguments import checked_sweep

digits.SIZES = {"train": 2000, "val": 500, "test": 500}  # 64,000 take longer to draw and hash than a small run takes
ROOT = Path(__file__).resolve().parent.parent
SMALL_RUN = [
    "data.num_train=64", "data.num_val=8", "data.num_test=10", "data.global_batch_size=8", "data.eval_batch_size=4",
    "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
]  # fmt: skip
TINY_DIT = ["network.dim=32", "network.depth=1", "network.num_heads=2"]
TINY = [
    *SMALL_RUN, *TINY_DIT, "callbacks.calibration.num_images=4", "callbacks.calibration.num_samples=2",
    "callbacks.image_grid.num_images=2",
]  # fmt: skip
SMALLER = [  # what is set where an experiment has the key
    *TINY_DIT, *TINY[len(SMALL_RUN) + len(TINY_DIT) :],
    "network.width=8", "network.base_channels=8", "network.num_blocks=1", "network.num_groups=4", "network.head_dim=4",
    "sampler.num_steps=2", "callbacks.steps_grid.every_n_steps=2", "callbacks.generation.num_images=4",
    "callbacks.generation.inception=null", "callbacks.restoration_distances.inception=null",
    "callbacks.label_accuracy.num_seeds=2",
]  # fmt: skip


@cache
def defaults(experiment: str, *choices: str) -> DictConfig:
    """Compose an experiment with some choices, to look at."""
    return compose_config([f"experiment={experiment}", *choices])


@cache
def tiny(experiment: str, *choices: str) -> list[str]:
    """Return the overrides that make two small steps of an experiment with some choices, whatever it is made of."""
    config = defaults(experiment, *choices)

    def has(override: str) -> bool:
        parent, _, key = override.partition("=")[0].rpartition(".")
        node = OmegaConf.select(config, parent)
        return node is not None and key in node and not (key == "num_steps" and node[key] == 1)

    smallest = ["network=autoencoder_tiny", "network.channels=[16,16]"] if "encoder_blocks" in config.network else []
    narrowest = ["network.widths=[4,8]"] if "widths" in config.network else []
    return [*SMALL_RUN, *smallest, *narrowest, *filter(has, SMALLER)]


def random_batch(config: DictConfig, size: int = 4) -> Batch:
    """Make random images of the kind that a config's data are, with random labels where those have labels."""
    generator = generator_for(0, "images")
    side, channels, classes = (config.data[key] for key in ("image_size", "channels", "num_classes"))
    image = torch.rand(size, channels, side, side, generator=generator) * 2 - 1
    labels = (torch.rand(size, classes, generator=generator) < 0.5).float() if classes else None
    return Batch(image, torch.arange(size), 0, labels, degraded=image * 0.5, validity=torch.ones_like(image[:, :1]))


def composed(folder: Path, overrides: list[str]) -> DictConfig:
    """Compose a run's config and lay its folder out as Hydra does, without the slow checks of a command line."""
    note_typed(overrides)
    config = compose_config(overrides)
    make_absolute(config)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    config.name = next(o.partition("=")[2] for o in overrides if o.startswith("experiment="))
    config.paths.run = str(folder)
    return config


def train_here(folder: Path, *overrides: str) -> RunFolder:
    """Train in this process."""
    from launch.commands.train import train

    run = RunFolder(folder.resolve())
    experiment = next(o.partition("=")[2] for o in overrides if o.startswith("experiment="))
    arguments = [*tiny(experiment, *(o for o in overrides if o.startswith("task="))), *overrides]
    train(run, composed(folder, arguments), identity(arguments))
    return run


def as_if_killed(whole: Path, folder: Path) -> None:
    """Copy a run as it would be, had it been killed after its checkpoint before the last."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("metrics.*", "evaluations", "export"))
    (folder / "checkpoints" / "previous.ckpt").replace(folder / "checkpoints" / "last.ckpt")


def resume_here(run: RunFolder, *overrides: str) -> None:
    """Continue with a run in this process, as ``train.py resume=`` does."""
    from launch.commands.train import train

    config = checked_command(f"resume={run.path}", *overrides)
    train(run, *resumed_config(run, list(overrides), without_hydra(config)))


def checked_command(*arguments: str) -> DictConfig:
    """Check a command line as ``train.py`` does; the config of the training, or Hydra's part of a sweep's."""
    flags, overrides = split_flags(list(arguments))
    return checked_sweep(overrides) if flags else composed_start(overrides)


def script(name: str, *arguments: str, **kwargs: Any) -> subprocess.Popen:
    """Start an entry script in a process group of its own; a variable of ``env`` that is None is taken away."""
    command = [sys.executable, str(ROOT / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    return subprocess.Popen(
        command,
        env={name: value for name, value in environment.items() if value is not None},
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **kwargs,
    )


def finished(process: subprocess.Popen, code: int = 0, timeout: float = 400) -> str:
    """Wait for a script and return what it printed."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output
    return output


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text())


def assert_same_state(a: Any, b: Any, where: str = "") -> None:
    """Assert that two nested states are equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}/{i}")
    else:
        assert a == b, where
