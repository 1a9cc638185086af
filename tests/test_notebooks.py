"""The notebooks run from their first cell to their last, and are stored without outputs and without traces of a machine."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, TINY_DIT, train_here

import triptych
from launch.compose import compose_config

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BUDGETS: dict[str, dict[str, Any]] = {  # the cell of parameters says what these are
    "draw": {"NUM_IMAGES": 1, "SCALES": [0.0]},
    "fill": {"NUM_PICTURES": 2, "NUM_SAMPLES": 1},
    "paradigm": {"STEPS": 2, "NUM_TEST": 4, "SETTINGS": ["data=digits", "data.global_batch_size=4", *TINY_DIT]},
    "restore": {"NUM_PICTURES": 3, "NUM_SAMPLES": 2, "TRAINING": ["callbacks.calibration=null"]},
}


def cells_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def executed(path: Path, budget: dict[str, Any]) -> dict[str, Any]:
    """Run all cells in one namespace, the budget put in behind the cell of parameters; what the names then stand for."""
    space: dict[str, Any] = {"__name__": path.stem}
    for number, cell in enumerate(cells_of(path)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), space)
            if "parameters" in cell["metadata"].get("tags", []):
                assert budget.keys() <= space.keys()
                space |= {"stored": dict(space)} | budget
    return space


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_clean(path: Path) -> None:
    text, cells = path.read_text(encoding="utf-8"), cells_of(path)
    assert json.loads(text)["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert all(cell["metadata"] in ({}, {"tags": ["parameters"]}) for cell in cells)
    assert [bool(cell["metadata"]) for cell in code] == [True] + [False] * (len(code) - 1)
    assert [cells[0]["cell_type"], cells[-1]["cell_type"]] == ["markdown", "markdown"]
    assert not re.search(r"(?<![\w.)])/(home|root|work|tmp|Users)/", text)
    links = re.findall(r"\]\((?!https)([^)#]+)", text)
    assert links
    assert all((path.parent / link).exists() for link in links)


def test_restoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(experiment: str, overrides: list[str]) -> Path:
        return train_here(tmp_path / experiment / "run", f"experiment={experiment}", *overrides).path

    monkeypatch.setattr(triptych, "train", train)
    space = run_notebook("restore")
    compose_config(["experiment=meanflow_dit", *space["stored"]["TRAINING"]])
    figures = space["figures"]
    assert figures["mean"] > max(figures["a sample"], figures["noisy"] + 3)
    assert (tmp_path / "meanflow_dit" / "run" / "report.html").exists()


def test_drawing() -> None:
    space = run_notebook("draw")
    assert [len(space[name]) for name in ("drawings", "odd", "chosen")] == [1, 4, 8]


def test_filling() -> None:
    space = run_notebook("fill")
    assert space["figures"]["mean"] > space["figures"]["grey"] + 3


def test_a_paradigm_is_written_and_compared() -> None:
    figures = run_notebook("paradigm")["figures"]
    assert list(figures) == [
        "degraded",
        *(f"{n}, {k}" for n in ("direct iteration", "MeanFlow") for k in ("sample", "mean")),
    ]
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["MeanFlow, mean"] > figures["degraded"] + 3


def run_notebook(name: str) -> dict[str, Any]:
    assert {path.stem for path in NOTEBOOKS} == BUDGETS.keys()
    return executed(ROOT / "notebooks" / f"{name}.ipynb", BUDGETS[name])
