"""Numbers on the command line: each is refused in one sentence that names its key, or trains."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from helpers import tiny, train_here
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from round_trips import LEFT_OUT

from generative.checks import hints_of, restricts
from launch.checking import argument_checks, check_kinds, check_values
from launch.commands.train import train
from launch.compose import compose_config, parse
from launch.errors import UserError, exit_code, explained
from launch.options import experiments, groups, targets
from launch.received import own
from launch.run_folder import RunFolder

VALUES = (0, -1, math.nan, 2.5, "word")
SAMPLE = 40
OWN_ROOMS = ("generative", "datamodules", "lightning_modules", "callbacks")
PARTS = 8
SAMPLED = ("meanflow_dit", "ddpm_scenes", "vqgan_scenes", "maskgit_scenes")
OTHER_DATA = {
    "ddpm_cifar10": "scenes",
    "ddpm_iclevr": "scenes64",
    "ddpm_iclevr_context_unet": "scenes64",
    "ddpm_iclevr_large": "scenes64",
    "label_classifier_iclevr": "scenes64",
}  # no download
OPTIONS = {  # that no experiment uses, with one that can
    "meanflow_dit": [
        "objective=alpha_flow", "objective=mean_flow", "objective=flow_matching sampler=heun", "objective=lsd", "objective=psd",
        "sampler=euler", "sampler=heun", "degradation=blur", "degradation=jpeg", "degradation=super_resolution",
    ],
    "ddpm_scenes": ["sampler=ancestral", "sampler=ddim", "schedule=linear"],
    "vqgan_scenes": ["bottleneck=fsq", "bottleneck=simvq", "bottleneck=kl"],
    "maskgit_scenes": ["objective=masked_tokens", "sampler=halton"],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A value for a number of a config.

    Attributes:
        overrides: What the config is composed of, the experiment first.
        key: The number's key.
        value: The value that is tried.
    """

    overrides: tuple[str, ...]
    key: str
    value: Any

    def __str__(self) -> str:
        return f"{'+'.join(o.partition('=')[2] for o in self.overrides)}-{self.key}={self.value}"


@cache
def base(overrides: tuple[str, ...]) -> DictConfig:
    """Compose a small run of an experiment."""
    experiment = overrides[0].partition("=")[2]
    return compose_config([*overrides, *tiny(experiment), "classifier=null"])


def numbers(node: DictConfig, target: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and taking class of what is a number in a config, a list of numbers, or may be one and is null."""
    target = node.get("_target_") or target
    for name in map(str, node):
        raw = node._get_node(name)
        if raw._is_interpolation():
            continue
        if isinstance(raw, DictConfig) and not raw._is_none():
            yield from numbers(raw, target)
            continue
        value = OmegaConf.to_container(raw) if OmegaConf.is_list(raw) else raw._value()
        values = value if isinstance(value, list) and value else [value]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) or (
            value is None and target and takes_numbers(argument_checks(target).get(name))
        ):
            yield raw._get_full_key(None), value, target


def takes_numbers(check: Callable[[Any], str | None] | None) -> bool:
    return check is not None and check("word") is not None and None in (check(1), check([1]))


def walk(configs: Iterable[tuple[str, ...]]) -> list[Case]:
    """Return all values for all numbers of some configs, each number once for each class that takes it."""
    seen, cases = set(), []
    for overrides in configs:
        for key, default, target in numbers(base(overrides)):
            if (key, target) not in seen:
                seen.add((key, target))
                tried = [[value, *default[1:]] if isinstance(default, list) else value for value in VALUES]
                cases += [Case(overrides, key, value) for value in tried]
    return cases


def all_configs() -> list[tuple[str, ...]]:
    alone = [(f"experiment={e}", *([f"data={OTHER_DATA[e]}"] if e in OTHER_DATA else [])) for e in experiments()]
    chosen = [(experiment, option.split()) for experiment, own in OPTIONS.items() for option in own]
    return alone + [(f"experiment={experiment}", *options) for experiment, options in chosen]


@pytest.fixture(scope="module")
def parts(tokenizer: Path) -> dict[str, Any]:
    """A tokenizer of the scenes, and what needs more beside its config as a function of the experiment."""
    return {"maskgit_scenes": str(tokenizer)}


@pytest.fixture(scope="module")
def all_parts(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, Any]) -> dict[str, Any]:
    """The tokenizers of both data sets, and a folder of images."""
    folder = tmp_path_factory.mktemp("all_parts")
    rng = np.random.default_rng(0)
    for split, count in {"train": 70, "val": 12}.items():
        (folder / "images" / split).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            image.save(folder / "images" / split / f"{number}.png")
    data = [f"paths.outputs={folder}", f"data.root={folder}/images"]
    cats = train_here(folder / "vqgan_cats_large" / "run", "experiment=vqgan_cats_large", *data)
    return {**parts, "root": str(folder / "images"), "maskgit_cats": str(cats.path)}


def assert_a_sentence_or_steps(case: Case, folder: Path, parts: dict[str, Any], left_out: Iterable[str] = ()) -> str:
    """Try a value, without the callbacks that are left out unless it is one of theirs."""
    config = base(case.overrides).copy()
    for name in left_out:
        if name in config.callbacks and not case.key.startswith(f"callbacks.{name}."):
            config.callbacks[name] = None
    config.name = case.overrides[0].partition("=")[2]
    config.paths.run = str(folder)
    config.tokenizer = parts.get(config.name)
    if "root" in config.data:
        config.data.root = parts["root"]
    OmegaConf.update(config, case.key, case.value)
    folder.mkdir()
    if error := failure(RunFolder(folder), config, case):
        assert exit_code(error) in (2, 3), f"{case}: {type(error).__name__}: {error}"
        assert case.key.rpartition(".")[2] in str(error), f"{case}: {error}"
        return f"{'NET ' if 'traceback' in str(error) else ''}{error}"
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert losses
    assert all(map(math.isfinite, losses)), f"{case}: {losses}"
    return f"{len(losses)} steps"


def failure(run: RunFolder, config: DictConfig, case: Case) -> Exception | None:
    try:
        check_values(config)
        with explained(run.path, [f"{case.key}={case.value}"]):
            train(run, config, [f"{case.key}={case.value}"])
    except Exception as error:
        return error
    return None


@pytest.mark.slow
def test_a_sample_of_numbers(tmp_path: Path, parts: dict[str, Any]) -> None:
    cases = walk([(f"experiment={name}",) for name in SAMPLED])
    for number, case in enumerate(cases[:: len(cases) // SAMPLE]):
        assert_a_sentence_or_steps(case, tmp_path / str(number), parts, LEFT_OUT)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_all_numbers(part: int, tmp_path: Path, all_parts: dict[str, Any]) -> None:
    failed = []
    for number, case in enumerate(walk(all_configs())[part::PARTS]):
        try:
            assert_a_sentence_or_steps(case, tmp_path / str(number), all_parts)
        except AssertionError as error:
            failed.append(str(error).splitlines()[0])
    assert not failed, "\n".join(failed)


def test_every_class_of_the_config_is_checked() -> None:
    for target in own().arguments:
        assert argument_checks(target) is not None, target


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.num_steps=2.5", "sampler.num_steps=2.5 must be a whole number"),
        ("callbacks.checkpoint.every_n_steps=1.5", "callbacks.checkpoint.every_n_steps=1.5 must be a whole number"),
        ("seed=word", "seed=word must be a whole number"),  # where it is set, not where it is used
        ("optimizer.lr=nan", "optimizer.lr=nan must be a finite number"),
        ("optimizer.lr=-1", "optimizer.lr=-1 must be greater than 0"),
        ("optimizer.betas=[0.9,1]", r"optimizer.betas=\[0.9, 1\] item 1 must be less than 1"),
        ("data.resident=1", "data.resident=1 must be true or false"),
        ("data.label_factors=[2,x]", "data.label_factors=.*item 1 must be a whole number"),
        ("trainer.max_steps=-1", "trainer.max_steps=-1 must be greater than or equal to 1"),
        ("trainer.val_check_interval=0.5", "trainer.val_check_interval=0.5 must be a whole number"),
        ("trainer.val_check_interval=1.0", "trainer.val_check_interval=1.0 must be a whole number"),
        ("trainer.precision=64-true", "trainer.precision=64-true must be 'auto', '32-true'"),
        ("degradation.steps.block.num_blocks=true", "num_blocks=true must be a whole number"),
    ],
)
def test_values_are_of_the_annotated_kind(override: str, message: str) -> None:
    config = base(("experiment=meanflow_dit",)).copy()
    key, value = parse(override)
    OmegaConf.update(config, key, value)
    with pytest.raises(UserError, match=message):
        check_values(config)


@pytest.mark.parametrize("module", groups()["module"])
def test_a_module_chooses_its_parts_and_refuses_those_of_another(module: str) -> None:
    config = compose_config(["experiment=meanflow_dit", f"module={module}"])
    check_kinds(config.module, config)
    for group in ("network", "objective", "sampler", "schedule"):
        if OmegaConf.to_container(config.module, resolve=False).get(group) != f"${{{group}}}":
            continue
        fitting, refusals = [], set()
        for option, made in {**targets(group), "null": None}.items():
            tried = config.copy()
            tried[group] = made and {"_target_": made[0], "_partial_": made[1]}
            try:
                check_kinds(tried.module, tried)
                fitting.append(option)
            except UserError as error:
                refusals.add(str(error).partition(f": choose {group}=")[2])
        (listed,) = refusals
        assert sorted(re.split(", | or ", listed.rstrip("."))) == fitting


def test_what_conf_names_checks_its_options_and_ranges_whoever_builds_it() -> None:
    for target in own().arguments:
        for owner in getattr(get_object(target), "__mro__", ()):
            own_room = owner.__module__.partition(".")[0] in OWN_ROOMS
            if own_room and not is_dataclass(owner):  # hints_of resolves those wholly
                get_type_hints(owner.__init__)  # one that names what is not there would take its checks away
        if target.partition(".")[0] in OWN_ROOMS and any(map(restricts, hints_of(get_object(target)).values())):
            assert hasattr(get_object(target).__init__, "__wrapped__"), f"{target} is not marked as checked"
