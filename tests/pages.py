"""Pages as a reader sees them, and run folders written by hand to make some of."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "img", "link", "br", "wbr", "input", "hr"}


class Page(HTMLParser):
    """The page as a reader sees it: tables by section, texts, images and addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.values: list[float] = []
        self.sources: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text())
        assert self.open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        self.addresses += [values[key] or "" for key in ("src", "href") if key in values]
        if tag == "img":
            self.sources.append(values["src"] or "")
        if "data-value" in values:
            self.values.append(float(values["data-value"] or "nan"))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID and not self._is_drawing(tag):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._is_drawing(tag):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open) and self.tables:
            self.tables[-1][-1][-1] += data

    def _is_drawing(self, tag: str) -> bool:
        return tag in ("svg", "g", "path", "circle", "rect", "line", "text") or (tag == "title" and "body" in self.open)

    def row(self, *starts: str) -> list[str]:
        """Return the first row whose cells begin like this."""
        rows = (row for table in self.tables for row in table)
        return next(row for row in rows if len(row) >= len(starts) and all(map(str.startswith, row, starts)))


def fake_run(
    folder: Path,
    name: str = "meanflow_dit",
    seed: int = 0,
    psnr: float = 20.0,
    config: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder by hand."""
    (folder / ".hydra").mkdir(parents=True)
    content = {"network": {"dim": 8}, "trainer": {"max_steps": 100}, "data": {"global_batch_size": 4}, "callbacks": {},
               "paths": {"outputs": "outputs", "run": "x"}, "seed": seed, "name": name} | (config or {})  # fmt: skip
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(content))
    (folder / ".hydra" / "overrides.yaml").write_text("[]")
    started = {"started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:30:00+00:00"}
    (folder / "run.json").write_text(json.dumps({"name": name, "seed": seed, "finished": True, **started}))
    measured = {
        "evaluation": {"num_images": 10, "definitions": {"psnr": "a mean"}}, "weights": "ema", "step": 100,
        "sampling": {"num_network_calls": {"sample": 4}}, "seed": seed, "evaluation_seed": 0, "time": "2026",
        "data": {"name": "digits", "image_size": 16, "fingerprint": "f1", "evaluation_seed": 0}, "degradation": None,
    } | (record or {})  # fmt: skip
    metrics = {"psnr/sample": psnr, "psnr/degraded": 9.0, "label_accuracy/test": 0.5, "label_accuracy_std/test": 0.1}
    (folder / "metrics.json").write_text(json.dumps({"metrics": metrics, "record": measured}))
    (folder / "metrics.csv").write_text("step,train/loss,val/psnr/sample\n50,0.5,\n50,,15.0\n100,,18.5\n")
    return folder
