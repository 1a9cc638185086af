"""The record of a run's scalars: one ``metrics.csv`` that a resumed run continues without doubled rows.

Own code rather than Lightning's ``CSVLogger``, which deletes the earlier file of a folder when a run is resumed.
"""

from __future__ import annotations

import csv
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from files.held import FolderGoneError
from files.whole import WriteError, whole_file
from launch.errors import one_line
from launch.record_files import DamagedRecordError

FILE_NAME = "metrics.csv"
FLUSH_SECONDS = 5.0  # the file is also written before each checkpoint, so that a kill loses no row before it


class MetricsCSV(Logger):
    """Writes one row per logged step, a column per scalar, to ``<run>/metrics.csv``.

    Args:
        save_dir: Run folder.
        resume_step: Rows of steps beyond this one are dropped: a resumed run logs them again. None starts a new file.
    """

    def __init__(self, save_dir: str, resume_step: int | None = None) -> None:
        super().__init__()
        self.path = Path(save_dir) / FILE_NAME
        self._rows: dict[int, dict[str, str]] = {}
        if resume_step is not None and self.path.exists():
            for row in read_rows(self.path.parent):
                step = int(row.pop("step"))
                if step <= resume_step:
                    self._rows[step] = {name: value for name, value in row.items() if value}
        self._changed = False
        self._last_write = 0.0

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """One file a run: there are no versions."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add scalars to the row of a step.

        Args:
            metrics: Scalars by name.
            step: Optimiser step.
        """
        values = {name: f"{float(value):.6g}" for name, value in metrics.items() if name != "epoch"}
        if values:
            self._rows.setdefault(step or 0, {}).update(values)
            self._changed = True
        if time.monotonic() - self._last_write > FLUSH_SECONDS:
            self.save()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the config is in ``.hydra``."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file whole and move it into place."""
        if not self._changed:
            return
        columns = sorted({name for row in self._rows.values() for name in row})
        with whole_file(self.path, "w") as file:
            writer = csv.DictWriter(file, ["step", *columns])
            writer.writeheader()
            writer.writerows({"step": step, **self._rows[step]} for step in sorted(self._rows))
        self._changed = False
        self._last_write = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left.

        Args:
            status: How the run ended; one that failed is not to end with an error of this file instead of its own.
        """
        with suppress(*([WriteError, FolderGoneError] if status == "failed" else [])):
            self.save()


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Read the rows of a run's ``metrics.csv``.

    Args:
        folder: Run folder.

    Returns:
        Numbers by name, as written, or empty; no rows where there is no file.

    Raises:
        DamagedRecordError: It cannot be read, or holds something else than steps and numbers.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    try:
        return _parsed(path)
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise DamagedRecordError(path, f"{type(error).__name__}: {one_line(error)}") from error


def _parsed(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
    if reader.fieldnames and "step" not in reader.fieldnames:
        raise ValueError("it has no steps")
    for row in rows:
        if int(row["step"]) < 0 or None in row or None in row.values():
            raise ValueError(f"a row of step {row['step']} has not one value for each column")
        for value in filter(None, row.values()):
            float(value)
    return rows


def last_values(folder: Path) -> dict[str, float]:
    """Read the last value of each scalar of a run.

    Args:
        folder: Run folder.

    Returns:
        Values by name, in the order of the names; empty where nothing was logged.
    """
    rows = read_rows(folder)
    names = list(rows[0]) if rows else []
    found = {name: next((row[name] for row in reversed(rows) if row[name]), None) for name in names if name != "step"}
    return {name: float(value) for name, value in found.items() if value is not None}
