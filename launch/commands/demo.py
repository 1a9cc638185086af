"""Try trained runs on a page of this machine: ``python demo.py [run=RUN[,RUN...]] [port=PORT]``."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from threading import Event

import triptych
from launch.command_line import show_help, split_flags, taken, whole_number
from launch.errors import UserError, reported
from launch.paths import is_there, typed_path
from launch.run_folder import RunFolder
from launch.use.load import MODEL
from triptych.demo import SHIPPED

USAGE = """Usage: python demo.py [run=RUN[,RUN...]] [port=PORT]

Shows a page on this machine: drop a picture and have it restored, draw a hole and have it filled, choose what is drawn. All
runs that can do something answer beside each other; RUN is a run's folder or an export. Without run= it shows small trained
models that come with the package. Needs pip install -e '.[demo]'.

  port=7860           where on this machine; by default the first free one from 7860 on"""
MAX_PORT = 65535


def main(arguments: list[str]) -> None:
    """Show the page until it is interrupted.

    Raises:
        UserError: A run cannot be used, or Gradio is missing.
    """
    from triptych.demo.page import served

    show_help(arguments, lambda: USAGE)
    split_flags(arguments, {})
    named, arguments = taken(arguments, "run")
    port, arguments = taken(arguments, "port")
    if arguments:
        raise UserError(f"{arguments[0]} is nothing that python demo.py takes: it has run= and port=.")
    models: dict[str, triptych.Model] = {}
    for folder in [str(path) for path in SHIPPED] if named is None else _folders(named):
        if not (typed_path("run", folder) / MODEL).exists():
            RunFolder.existing(folder, "run")  # says run=, which triptych.load does not know of
        model = triptych.load(folder)
        if not model.tasks & {"restore", "inpaint", "generate"}:
            raise UserError(f"run={folder} makes no images to look at: name one that restores, fills holes or draws.")
        models[_name(typed_path("run", folder), models)] = model
    with (
        suppress(KeyboardInterrupt),
        served(models, None if port is None else whole_number({"port": port}, "port", MAX_PORT)) as url,
    ):
        print(f"The page is at {url} (Ctrl-C ends it)", flush=True)
        Event().wait()


def _folders(named: str) -> list[str]:
    """Split what ``run=`` names at its commas, but for those in the names of folders, as jobs of a sweep have them."""
    parts, folders = named.split(","), []
    while parts:
        starts = {number: ",".join(parts[:number]) for number in range(len(parts), 0, -1)}
        number = next((number for number, start in starts.items() if is_there("run", start)), 1)
        folders.append(starts[number])
        parts = parts[number:]
    return folders


def _name(folder: Path, taken_names: dict[str, triptych.Model]) -> str:
    """Name a run on the page: a run's folder is called by its time, so that of its experiment stands before it."""
    parts = folder.resolve().parts
    name = parts[-1] if (folder / MODEL).exists() else "/".join(parts[-2:])
    return name if name not in taken_names else f"{name} ({len(taken_names) + 1})"


def start() -> None:
    """Run the command line of this process."""
    with reported():
        main(sys.argv[1:])


if __name__ == "__main__":
    start()
