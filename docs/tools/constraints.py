"""Writes constraints.txt: the versions of all packages that the project and its extras have in this environment."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "constraints.txt"
HEAD = """# Versions that the tests of this revision ran with, on Python {python}; written by `make constraints`.
# For those who want these and no newer ones: pip install -c constraints.txt -e '.[dev]'
"""


def stated() -> list[str]:
    """Return the requirements of the project and of all its extras, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    return [text for text in [*project["dependencies"], *extras] if Requirement(text).name != project["name"]]


def closure(requirements: list[str]) -> dict[str, str]:
    """Return name and version of everything installed that the requirements ask for, and that these ask for."""
    found: dict[str, str] = {}
    waiting = [(Requirement(text), frozenset[str]()) for text in requirements]
    seen = set()
    while waiting:
        required, asked = waiting.pop()
        name, extras = canonicalize_name(required.name), frozenset(required.extras)
        wanted = required.marker is None or any(required.marker.evaluate({"extra": extra}) for extra in asked or {""})
        if not wanted or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another system or another version of Python
            continue
        found[name] = package.version.partition("+")[0]  # +cpu and +cu130 are builds of one version
        waiting += [(Requirement(text), extras) for text in package.requires or ()]
    return dict(sorted(found.items()))


def main() -> None:
    """Write the file."""
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [f"{name}=={version}" for name, version in closure(stated()).items()]
    TARGET.write_text(HEAD.format(python=python) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
