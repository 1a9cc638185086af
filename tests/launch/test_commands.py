"""The commands of an installed package: one table, and no module of theirs whose name could be somebody else's."""

from __future__ import annotations

import importlib
import sys
import tomllib
from importlib.metadata import version

import pytest
from helpers import ROOT
from setuptools import find_namespace_packages

from launch.commands import COMMANDS, main
from launch.output import CONSOLE_VARIABLE


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int | None = None) -> None:
    monkeypatch.setattr(sys, "argv", ["triptych", *arguments])
    monkeypatch.setenv(CONSOLE_VARIABLE, "")  # given back behind the test
    monkeypatch.delenv(CONSOLE_VARIABLE)
    if code is None:
        main()
        return
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    typed(monkeypatch, *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Usage: triptych COMMAND")
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


def test_the_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    typed(monkeypatch, "--version")
    assert capsys.readouterr().out == f"triptych {version('triptych')}\n"


def test_an_unknown_command_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    typed(monkeypatch, "trian", code=2)
    assert capsys.readouterr().err == "error: trian is no command of triptych: did you mean train?\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_script_too_and_is_named_as_it_was_typed(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module = importlib.import_module(f"launch.commands.{name}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.start()
    usage = capsys.readouterr().out
    assert usage.startswith(f"Usage: python {name}.py ")
    assert f"from launch.commands.{name} import start\n" in (ROOT / f"{name}.py").read_text()
    typed(monkeypatch, name, "--help", code=0)
    assert capsys.readouterr().out == usage.replace("python ", "triptych ").replace(".py", "")


def test_an_installed_package_has_no_module_of_a_common_word() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    settings = project["tool"]["setuptools"]
    packages = find_namespace_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    assert not (COMMANDS.keys() & {*settings["py-modules"], *packages})
    assert {"conf", "conf.experiment", "launch.commands", "triptych"} <= set(packages)
    assert "**/*.yaml" in settings["package-data"]["conf"]
    module, _, function = project["project"]["scripts"]["triptych"].partition(":")
    assert getattr(importlib.import_module(module), function) is main
