"""Writes docs/config.md from conf/: the groups, their options, and what the first comment of each file says of it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "config.md"
HEAD = """# Config groups

Written by `python docs/tools/config_page.py` from `conf/`; a test compares. An experiment (`experiment=NAME`) chooses
an option of each group and sets keys; the command line changes both. `network=dit_small` takes another option,
`network.depth=4` sets a key, `+callbacks.mine._target_=...` adds one, `~degradation.steps.noise` takes one away.
`python train.py --help` lists experiments and useful overrides, `python train.py experiment=NAME --cfg job` prints a
whole config. **Bold** is what `conf/train.yaml` chooses where module and experiment do not.
"""


def plain(text: str) -> str:
    """Write a comment for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def description(file: Path) -> str:
    """Return the comment that a file begins with, in one line; empty where it has none."""
    lines = [line for line in file.read_text().splitlines() if line != "# @package _global_"]
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return plain(" ".join(comment))


def groups() -> dict[str, list[Path]]:
    """Return the files of each config group, those for other files (``_name.yaml``) left out."""
    folders = sorted({file.parent for file in CONF.rglob("*.yaml")} - {CONF})
    return {
        str(folder.relative_to(CONF)): sorted(file for file in folder.glob("*.yaml") if not file.name.startswith("_"))
        for folder in folders
    }


def keys(file: Path) -> list[str]:
    """Return the keys that an option has, those of its base files first; none where it sets keys of other groups."""
    text = file.read_text()
    if "@package" in text or file.parent.name == "callbacks":
        return []
    content = yaml.safe_load(text) or {}
    bases = [file.parent / f"{name}.yaml" for name in content.pop("defaults", []) if isinstance(name, str)]
    found = [key for base in bases if base.exists() for key in keys(base)]
    return list(dict.fromkeys([*found, *(key for key in content if not key.startswith("_"))]))


def table(group: str, files: list[Path], default: str | None) -> list[str]:
    """Return the lines of a group: its options, and the keys that all of them or one of them has."""
    own = {file: keys(file) for file in files}
    shared = [key for key in own[files[0]] if len(files) > 1 and all(key in names for names in own.values())]
    lines = [f"## {group}", ""]
    if shared:
        lines += [f"All options have the keys {', '.join(f'`{key}`' for key in shared)}.", ""]
    with_keys = any(set(names) - set(shared) for names in own.values())
    lines += ["| option | what | keys |", "|---|---|---|"] if with_keys else ["| option | what |", "|---|---|"]
    for file, names in own.items():
        mark = "**" if default == file.stem else ""
        line = f"| {mark}`{file.stem}`{mark} | {description(file)} |"
        more = ", ".join(f"`{key}`" for key in names if key not in shared)
        lines.append(f"{line} {more} |" if with_keys else line)
    return [*lines, ""]


def chosen() -> dict[str, str]:
    """Return the option of each group that the main config takes."""
    pairs = [
        entry for entry in yaml.safe_load((CONF / "train.yaml").read_text())["defaults"] if isinstance(entry, dict)
    ]
    return {str(group): str(option) for entry in pairs for group, option in entry.items() if option is not None}


def settings() -> list[tuple[str, str, str]]:
    """Return (key, value, comment before it) of the main config's own scalar settings."""
    rows, comment = [], ""
    for line in (CONF / "train.yaml").read_text().splitlines():
        if line.startswith("#"):
            comment = f"{comment} {line.removeprefix('#').strip()}".strip()
            continue
        match = re.fullmatch(r"(\w+): ([^#]+?)\s*(?:#\s*(.*))?", line)
        if match and match[1] not in groups():
            rows.append((match[1], match[2], plain(comment or match[3] or "")))
        comment = ""
    return [row for row in rows if not (CONF / row[0]).is_dir()]  # a group that is null stands in its own table


def page() -> str:
    """Return the whole page."""
    text, default = [HEAD], chosen()
    for group, files in groups().items():
        text += table(group, files, default.get(group))
    text.append("## Settings of the main config\n\n| key | value | what |\n|---|---|---|")
    text += [f"| `{key}` | `{value}` | {comment} |" for key, value, comment in settings()]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
