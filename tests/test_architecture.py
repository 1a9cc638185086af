"""The house rules that a reader relies on."""

from __future__ import annotations

import ast

import pytest
from helpers import ROOT

LIGHTNING_SIDE = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb"}
ABOVE = {
    "files": {"generative", "lightning_modules", "datamodules", "callbacks", "launch"},
    "generative": {
        "lightning_modules",
        "datamodules",
        "callbacks",
        "launch",
        "train",
        "evaluate",
        "generate",
        "export",
    },
    "lightning_modules": {"datamodules", "callbacks", "launch", "train", "evaluate", "generate", "export"},
    "datamodules": {"lightning_modules", "callbacks", "launch", "train", "evaluate", "generate", "export"},
    "callbacks": {"launch", "train", "evaluate", "generate", "export"},
    "launch": {"train", "evaluate", "generate", "export"},
}


def imported_packages(package: str) -> set[str]:
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


def test_generative_is_pure_pytorch() -> None:
    assert not (imported_packages("generative") | imported_packages("files")) & LIGHTNING_SIDE


@pytest.mark.parametrize("package", ABOVE)
def test_imports_go_one_way(package: str) -> None:
    assert not imported_packages(package) & ABOVE[package]
