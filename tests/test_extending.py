"""docs/extending.md is true: its files, written into a copy of the tree, are used as it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

PAGE = ROOT / "docs" / "extending.md"
PACKAGES = ("files", "generative", "lightning_modules", "datamodules", "callbacks", "launch", "triptych", "conf")


def blocks() -> dict[str, str]:
    """Return the files of the page, by their names."""
    found = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(dict(found)) == len(found)
    return dict(found)


def test_what_the_page_shows_is_all_that_it_takes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("composing.py", "helpers.py", "round_trips.py", "extended_tree.py"):
        (tree / "tests").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tree / "tests" / name)
    paradigm = [name for name in blocks() if "rectified_flow" in name]
    assert len(paradigm) == 3
    for name, content in blocks().items():
        assert not (tree / name).exists(), f"{name} is there already"
        (tree / name).write_text(content)
    process = subprocess.run(
        [sys.executable, "tests/extended_tree.py", str(tmp_path / "out")],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-6000:]
