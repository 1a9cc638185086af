"""The commands: ``triptych NAME ...``, and ``python NAME.py ...`` in a source tree."""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import PackageNotFoundError, version

COMMANDS = {
    "train": "train an experiment, continue a run, or sweep over settings",
    "evaluate": "evaluate a run again, also with other settings, or several side by side",
    "generate": "restore your own images, fill holes in them, or draw new ones with a run",
    "compare": "lay runs side by side on one page",
    "report": "report one run on one page: curves, metrics, images, settings",
    "study": "train all paradigms and tasks at equal budgets, on one page",
    "export": "write a run's network as a folder to hand around",
    "demo": "try trained runs on a page of this machine",
}


def main() -> None:
    """Run the command line of ``triptych``; each command is loaded when it is asked for."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        from launch.output import note_console_command

        note_console_command()
        sys.argv[1:] = arguments
        runpy.run_module(
            f"{__name__}.{name}", run_name="__main__", alter_sys=True
        )  # as python -m, also for further ranks
    elif name in ("-h", "--help"):
        print(_overview())
    elif name == "--version":
        print(f"triptych {_version()}")
    else:
        from launch.errors import UserError, near_matches, reported

        with reported():
            raise UserError(f"{name} is no command of triptych: {near_matches(name, COMMANDS)}")


def _overview() -> str:
    lines = [f"  {name:<{max(map(len, COMMANDS))}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: triptych COMMAND [key=VALUE ...]",
            "",
            "Commands (triptych COMMAND --help tells more):",
            *lines,
            "",
            "Also: triptych --version.",
        ]
    )


def _version() -> str:
    try:
        return version("triptych")
    except PackageNotFoundError:
        return "of a source tree that is not installed"
