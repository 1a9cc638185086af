"""Hook of mkdocs.yml: links that work in the repository work on the site too.

Pages of ``benchmarks/`` become pages of the site. A link to any other file of the repository becomes plain text, since
the site has no copy of it; a link to nothing stays as it is, so that the strict build stops at it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
MEASURED = "benchmarks/"
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<target>[^)\s:]+)(?P<anchor>)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the results and records to the pages."""
    for file in sorted((ROOT / MEASURED).rglob("*")):
        if file.suffix in (".md", ".png"):
            source = file.relative_to(ROOT).as_posix()
            files.append(File(source, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page from places in the repository to places on the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(here if here.startswith(MEASURED) else f"docs/{here}")

    def place(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match["target"]))
        source = path.removeprefix("docs/") if not path.startswith(MEASURED) else path
        if files.get_file_from_path(source) is not None:
            mark = "!" if match[0].startswith("!") else ""
            link = posixpath.relpath(source, posixpath.dirname(here) or ".") + (match["anchor"] or "")
            return f"{mark}[{match['text']}]({link})"
        return match["text"] if (ROOT / path).exists() else match[0]

    return PICTURE.sub(place, LINK.sub(place, markdown))
