"""Reads what W&B really wrote offline: the ``.wandb`` file, a log of protocol-buffer records in LevelDB's log format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
FILE_HEADER, RECORD_HEADER = 7, 7  # bytes: ident and version; checksum, length and kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # a record that crosses a block lies in pieces


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a ``.wandb`` file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, pieces = FILE_HEADER, b""
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:  # padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + RECORD_HEADER])
        piece = data[position + RECORD_HEADER : position + RECORD_HEADER + length]
        position += RECORD_HEADER + length
        if kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        pieces += piece
        if kind in (FULL, LAST):
            yield Record.FromString(pieces)
            pieces = b""


def items(update: Any) -> dict[str, Any]:
    """Return the values of a config, history or summary record by their names."""
    result: dict[str, Any] = {}
    for item in update:
        *parents, name = item.nested_key or [item.key]
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = json.loads(item.value_json)
    return result


class WandbRun:
    """The content of one offline folder ``wandb/offline-run-*``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (path,) = folder.glob("run-*.wandb")
        self.run, self.exit_code, self.preempting = None, None, False
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.step_metrics: dict[str, str] = {}
        self.artifact_files: list[Path] = []
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = self.run or record.run
                self.config |= items(record.run.config.update)
            elif kind == "config":
                self.config |= items(record.config.update)
            elif kind == "history":
                self.history.append(items(record.history.item))
            elif kind == "summary":
                self.summary |= items(record.summary.update)
            elif kind == "metric":
                self.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            elif kind == "artifact":
                self.artifact_files += [Path(entry.local_path) for entry in record.artifact.manifest.contents]
            elif kind == "preempting":
                self.preempting = True
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
        assert self.run is not None

    def series(self, name: str, x: str = "trainer/global_step") -> list[tuple[int, Any]]:
        """Return what the history holds of a name, with the step that it is drawn at."""
        return [(row[x], row[name]) for row in self.history if name in row]


def offline_runs(run_folder: Path) -> list[WandbRun]:
    """Read the offline folders of a run in the order in which they were written."""
    wandb.teardown()  # waits until W&B's own process has written all that it was told
    return [WandbRun(path) for path in sorted(run_folder.glob("wandb/offline-run-*"))]
