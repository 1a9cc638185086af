"""The house rules that a reader relies on."""

from __future__ import annotations

import ast
import functools
import glob
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from helpers import ROOT

LIGHTNING_SIDE = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb"}
FLOORS = [  # what stands lower knows nothing of what stands higher, nor of its neighbours on the same floor
    {"files"},
    {"generative"},
    {"lightning_modules", "datamodules"},
    {"callbacks"},
    {"launch"},
    {"launch.sweep", "launch.use", "launch.page"},
    {"launch.study"},
    {"launch.compare", "launch.report"},
    {"triptych"},
    {"triptych.demo"},
    {"launch.commands"},
    {"triptych.__main__", "train", "evaluate", "generate", "compare", "report", "export", "study", "demo"},
]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str | None:
    """Return the innermost room that a dotted name lies in; None where it is none of ours."""
    parts = module.split(".")
    return next((name for end in (2, 1) if (name := ".".join(parts[:end])) in ROOMS), None)


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    """(module, its syntax tree) of all code that ships."""
    paths = [path for name in ROOMS if "." not in name for path in (ROOT / name).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [(name, ast.parse(path.read_text())) for name, path in zip(names, paths, strict=True)]


def imports() -> Iterator[tuple[str, str]]:
    """Yield (module, imported module) of all code that ships, imports inside functions included."""
    for here, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((here, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((here, f"{node.module}.{alias.name}") for alias in node.names)


def test_generative_is_pure_pytorch() -> None:
    pure = [(here, name) for here, name in imports() if room_of(here) in ("generative", "files")]
    assert not [pair for pair in pure if pair[1].split(".")[0] in LIGHTNING_SIDE]


def test_a_file_has_at_most_350_lines() -> None:
    paths = [path for name in ROOMS if "." not in name for path in (ROOT / name).rglob("*.py")]
    assert not [str(path) for path in paths if len(path.read_text().splitlines()) > 350]


def test_imports_go_one_way() -> None:
    rooms = [(here, name, room_of(here), room_of(name)) for here, name in imports()]
    up = [(h, n) for h, n, own, other in rooms if own and other and own != other and ROOMS[other] >= ROOMS[own]]
    assert not up


def test_a_class_has_the_arguments_that_its_docstring_lists() -> None:
    """Ruff looks at functions only."""
    classes = [(here, node) for here, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    inits = [(here, c, f) for here, c in classes for f in c.body if getattr(f, "name", "") == "__init__"]
    assert inits
    for here, owner, init in inits:
        section = re.search(r"^Args:\n((?: +.*\n?|\n)*)", ast.get_docstring(owner) or "", re.MULTILINE)
        listed = re.findall(r"^ {4}\*{0,2}(\w+):", section.group(1), re.MULTILINE) if section else []
        known = {node.arg for node in ast.walk(init.args) if isinstance(node, ast.arg)}
        assert set(listed) <= known, f"{here}.{owner.name}"


def test_an_install_has_every_file_of_the_packages() -> None:
    """An editable one has them anyway, so that nobody else would notice one that is missing."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = [name.removesuffix("*") for name in setup["packages"]["find"]["include"]]
    try:
        listed = subprocess.run(["git", "ls-files", "-z", *rooms], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git, which knows what belongs to the packages, knows nothing of this folder")
    files = [name for name in listed.stdout.split("\0") if name and not name.endswith(".py")]
    if not files:
        pytest.skip("git, which knows what belongs to the packages, knows nothing of this folder")
    everywhere = setup["package-data"].pop("*")
    installed = {
        f"{folder}/{name}"
        for folder, patterns in ((key.replace(".", "/"), value) for key, value in setup["package-data"].items())
        for pattern in patterns
        for name in glob.glob(pattern, root_dir=ROOT / folder, recursive=True)  # noqa: PTH207  # as setuptools reads it
    }
    missing = [name for name in files if name not in installed and PurePosixPath(name).name not in everywhere]
    assert not missing


def test_no_room_but_its_own_knows_the_name_of_a_module() -> None:
    """Nor as a quoted class or experiment: others ask a module's class what it is."""
    home = ROOT / "lightning_modules"
    names = {
        node.name
        for path in home.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(line, ast.FunctionDef) and line.name == "loss" for line in node.body)
    } - {"TrainingModule"}
    assert {"DDPM", "MaskGIT", "LabelClassifierModule"} <= names
    pattern = re.compile(rf"(?<!\w)({'|'.join(sorted(names))})(?!\w)|lightning_modules\.[A-Z]\w*['\"]")
    others = [
        path
        for name in ("launch", "callbacks", "datamodules", "files", "triptych")
        for path in (ROOT / name).rglob("*.py")
    ]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*others, *ROOT.glob("*.py")]
        if path.name != "former.py"  # what recorded configs say that are older than a name
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    code = {  # in generative/ the names are those of papers, in words; as code there are none
        f"{path.relative_to(ROOT)}: {node.id}"
        for path in (ROOT / "generative").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id in names
    }
    assert not found
    assert not code
