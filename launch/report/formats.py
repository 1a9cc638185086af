"""A report as a page, as tables for a text, and printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from files.whole import whole_file
from launch.errors import UserError
from launch.page import html
from launch.page.html import Panels
from launch.record import now
from launch.report.content import Report

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PRINT_SECONDS = 60
START_HEADINGS = ["from step", "time", "settings changed", "revision", "machine"]
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", **{c: f"\\{c}" for c in "&%$#_{}"},
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "…": r"\ldots{}", "—": "---",
    "<": "$<$", ">": "$>$", "|": "$|$", "·": r"$\cdot$",
}  # fmt: skip

Tables = Iterator[tuple[str, list[str], list[list[str]]]]


def page(report: Report) -> str:
    """Lay the report out as one HTML file that needs no network."""
    return html.render(
        HERE / "report.html.j2",
        report=report,
        training=Panels.of(report.training, explains_single_lines=False),
        validation=Panels.of(report.validation, explains_single_lines=False),
        minor=Panels.of(report.minor, explains_single_lines=False),
        plots=[Panels.of(evaluation.plots) for evaluation in report.evaluations],
        start_headings=START_HEADINGS,
        own_style=Markup((HERE / "report.css").read_text()),
        script=Markup((HERE / "report.js").read_text()),
        made=f"Made {datetime.fromisoformat(now()):%d %B %Y, %H:%M} UTC",
    )


def _tables(report: Report) -> Tables:  # as title, headings and rows
    yield "Run", ["", ""], [["state", report.state], *map(list, report.facts)]
    for evaluation in report.evaluations:
        for table in evaluation.tables:
            yield f"{evaluation.title}: {table.title}", [h.replace("\n", " ") for h in table.headings], table.rows
        yield f"{evaluation.title}: how it was measured", ["", ""], [list(pair) for pair in evaluation.facts]
    definitions = {k: v for evaluation in report.evaluations for k, v in evaluation.definitions.items()}
    for title, headings, pairs in (
        ("Definitions", ["metric", "definition"], list(definitions.items())),
        ("Data", ["", ""], report.data),
        ("Settings", ["key", "value"], report.settings),
        ("Machine", ["", ""], report.machine),
    ):
        yield title, headings, [list(pair) for pair in pairs]
    yield "Checkpoints", *report.checkpoints
    yield "Starts", START_HEADINGS, report.starts


def markdown(report: Report) -> str:
    """Write the tables in GitHub's Markdown."""

    def text(value: str) -> str:
        return re.sub(r"([|\\<>*_`])", r"\\\1", value.replace("\n", " "))

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(text, cells)) + " |"

    parts = [f"# {text(report.title)}"]
    for title, headings, rows in _tables(report):
        if rows:
            rule = "|" + "|".join(["---"] * len(headings)) + "|"
            parts.append("\n".join([f"## {text(title)}", "", line(headings), rule, *map(line, rows)]))
    return "\n\n".join([*parts, *map(text, report.missing)]) + "\n"


def latex(report: Report) -> str:
    """Write the tables for LaTeX, a ``tabular`` each; they need no package."""

    def text(value: str) -> str:
        return "".join(_LATEX.get(character, character) for character in value.replace("\n", " "))

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(text, cells)) + r" \\"

    parts = [f"% {report.title}: report of a run"]
    for title, headings, rows in _tables(report):
        if not rows:
            continue
        long = max(len(row[-1]) for row in rows) > 60
        columns = "l" * (len(headings) - 1) + ("p{0.6\\linewidth}" if long else "r" if len(headings) > 2 else "l")
        head = [line(headings), r"\hline"] if any(headings) else []
        parts.append(
            "\n".join(
                [rf"\paragraph{{{text(title)}}}", "", rf"\noindent\begin{{tabular}}{{{columns}}}", r"\hline", *head,
                 *map(line, rows), r"\hline", r"\end{tabular}"]
            )
        )  # fmt: skip
    return "\n\n".join(parts) + "\n"


def printed(report: Report) -> bytes:
    """Print the page with a browser of this machine.

    Returns:
        The content of a PDF file.

    Raises:
        UserError: There is no browser that can, or it fails.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(
            "format=pdf prints the page with Chromium or Chrome, and none is installed: install one, or take format=html and "
            "print it in your browser."
        )
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "report.html", Path(name) / "report.pdf"
        source.write_text(page(report), encoding="utf-8")
        alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium asks of the superuser
        command = [browser, "--headless", *alone, "--disable-gpu", "--no-first-run", f"--user-data-dir={name}/profile",
                   "--no-pdf-header-footer", f"--print-to-pdf={target}", source.as_uri()]  # fmt: skip
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=PRINT_SECONDS)
            return target.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(f"format=pdf: {browser} did not print the page; take format=html and print it.") from error


FORMATS: dict[str, tuple[str, Callable[[Report], str | bytes]]] = {
    "html": ("report.html", page),
    "md": ("report.md", markdown),
    "latex": ("report.tex", latex),
    "pdf": ("report.pdf", printed),
}


def write_report(report: Report, kind: str, target: Path) -> None:
    """Write a report, whole or not at all.

    Args:
        kind: One of ``FORMATS``.
        target: File to write.
    """
    content = FORMATS[kind][1](report)
    with whole_file(target, "wb" if isinstance(content, bytes) else "w") as file:
        file.write(content)
