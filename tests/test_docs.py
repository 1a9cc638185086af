"""README and docs/ are true: links lead somewhere, commands compose, the config page is that of conf/."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest
from helpers import ROOT

from launch.commands import COMMANDS
from launch.compose import compose_config

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PLACES = {"FOLDER": ".", "DIR": ".", "PHOTOS": ".", "OUTPUT": "."}


def slug(heading: str) -> str:
    """Return the anchor of a heading, as the site and code hosts make it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower().strip()))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: its headings, and the objects that the API reference shows on it."""
    text = FENCE.sub("", page.read_text())
    found = {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    for module in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        file = ROOT / module.replace(".", "/")
        tree = ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        found |= {module, *(f"{module}.{name}" for name in names)}
    return found


def commands(script: str) -> list[str]:
    """Return the words behind ``python SCRIPT.py`` wherever a page shows them, several lines of a command as one.

    Without results, which are of their commits, and without the recipes of extending.md, which a test of their own runs.
    """
    pages = [page for page in PAGES if "results" not in page.parts and page.name != "extending.md"]
    text = "\n".join(page.read_text().replace("\\\n", " ") for page in pages)
    shown = re.findall(rf"(?:python {script}\.py|triptych {script}) ([^`\n]+)", text)
    return sorted({re.split(r"\s+#", words)[0].strip() for words in shown})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in (first or second for first, second in LINK.findall(FENCE.sub("", page.read_text()))):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages == {
        name for name in re.findall(r": (\S+\.md)$", navigation, re.MULTILINE) if not name.startswith("benchmarks/")
    }


def test_the_config_page_is_that_of_conf() -> None:
    """Else: python docs/tools/config_page.py."""
    tool = runpy.run_path(str(ROOT / "docs" / "tools" / "config_page.py"))
    assert (ROOT / "docs" / "config.md").read_text() == tool["page"]()
    undescribed = [str(file) for files in tool["groups"]().values() for file in files if not tool["description"](file)]
    assert not undescribed


def test_commands_of_the_pages_compose() -> None:
    """Keys and options that the pages name exist; what a sweep lists is taken one by one."""
    shown = [words for words in commands("train") if "experiment=" in words and "experiment=..." not in words]
    assert len(shown) > 20
    seen: set[tuple[str, str]] = set()

    def place(match: re.Match[str]) -> str:
        return "=" + PLACES.get(match[1], match[1])

    for words in shown:
        parts = [part for part in shlex.split(words) if part not in ("-m", "...", "--help", "--cfg", "job")]
        overrides = [part for part in parts if not part.startswith(("hydra", "search=", "sweep=", "resume=", "OMP"))]
        first = [re.sub(r"=([^\[{]*?),.*", r"=\1", part) for part in overrides if "NAME" not in part]
        new = {(first[0], part) for part in first if not part.startswith("data.root")} - seen
        seen |= new
        if new:
            compose_config([re.sub("=([A-Z]+)$", place, part) for part in first])


def test_scripts_that_the_pages_call_are_commands() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    scripts = set(re.findall(r"python (\w+)\.py", text))
    assert scripts == set(COMMANDS)


def test_files_that_the_pages_name_exist() -> None:
    """All but those that a reader is to write or that are of another project."""
    pages = [
        page for page in PAGES if page.name not in ("extending.md", "CHANGELOG.md") and "results" not in page.parts
    ]
    named = {
        name for page in pages for name in re.findall(r"(?<![\w/.])((?:[a-z_]+/)+\w+\.(?:py|yaml))\b", page.read_text())
    }
    missing = {name for name in named if not (ROOT / name).exists()}
    assert missing == {"conf/network/mine.yaml", "scripts/run_cifar.py"}  # the second is of DDPM's authors
