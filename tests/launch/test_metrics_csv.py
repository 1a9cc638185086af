"""The CSV record."""

from __future__ import annotations

import csv
from pathlib import Path

from launch.metrics_csv import MetricsCSV


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_resumed_run_goes_on_without_doubled_rows(tmp_path: Path) -> None:
    first = MetricsCSV(str(tmp_path))
    for step in (0, 50, 100, 150):
        first.log_metrics({"train/loss": 1.0 / (step + 1), "epoch": 0}, step)
    first.log_metrics({"val/psnr/mean": 20.0}, 100)
    first.save()
    second = MetricsCSV(str(tmp_path), resume_step=100)
    second.log_metrics({"train/loss": 0.5, "new": 1.0}, 150)
    second.finalize("success")
    assert [r["step"] for r in rows(tmp_path)] == ["0", "50", "100", "150"]
    assert rows(tmp_path)[2]["val/psnr/mean"] == "20"
    assert rows(tmp_path)[3]["train/loss"] == "0.5"
    assert rows(tmp_path)[0]["new"] == ""


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        logger = MetricsCSV(str(tmp_path))
        logger.log_metrics({"x": value}, 0)
        logger.finalize("success")
    assert [r["x"] for r in rows(tmp_path)] == ["2"]
