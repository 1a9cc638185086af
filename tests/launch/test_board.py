"""compare.py on a study's folder: the board names a winner only beyond chance, says why, and judges the predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_compare import Page, fake_run

from files.single_images import write_single_images
from generative.metrics.by_image import ImageValues
from launch.by_image_csv import write_by_image
from launch.commands.compare import compare
from launch.study.record import Prediction, Side, Study, StudyRun

SIZE = 200
SEEDS = (0, 1)
TASKS = ("generate", "restore", "inpaint")
LEVELS = {"ddpm": 0.02, "meanflow": 0.04, "maskgit": 0.08}
OUTCOMES = ("came true", "failed", "cannot be told")
HARD = 0.05 * torch.rand(SIZE, generator=torch.Generator().manual_seed(9)).double()  # what makes an image hard for all


def values(mean: float, seed: int, weight: float = 1.0) -> ImageValues:
    own = 0.01 * torch.rand(SIZE, generator=torch.Generator().manual_seed(seed)).double()
    weights = torch.full((SIZE,), weight).double()
    return ImageValues(torch.arange(SIZE), (mean + HARD + own) * weights, weights)


def psnr(parts: ImageValues) -> float:
    return 10 * torch.log10(4 / parts.mean).item()


def filled(folder: Path, task: str, level: float, seed: int, run: dict[str, Any], converged: bool = True) -> None:
    """Give a run results: the smaller the level the better."""
    number = int(100 * level) + 7 * seed + 1000 * TASKS.index(task)
    sampling: dict[str, Any] = {"num_network_calls": {"sample": 4}, "seconds_per_image": {"sample": 0.01}}
    if task == "generate":
        by_image = {
            f"label_accuracy/{name}": values(0.95 - level, number + i, 3.0) for i, name in enumerate(("test", "new"))
        }
        metrics = {name: parts.mean.item() for name, parts in by_image.items()} | {"label_accuracy/real": 0.99}
        metrics["recall_label_classifier/sample"] = 0.5
        curve = ("val/label_accuracy/test", 0.9, 0.9 if converged else 0.93)
    else:
        kind = "mse_hole" if task == "inpaint" else "mse"
        key, energy = ("psnr_hole", "energy_score_hole") if task == "inpaint" else ("psnr_pooled", "energy_score")
        by_image = {f"{kind}/mean": values(level, number), f"{energy}/sample": values(level, number + 1)}
        by_image[f"{kind}/degraded"] = values(1.0, number)
        if level == LEVELS["maskgit"]:
            by_image[f"{kind}/composite"] = values(0.9 * level, number + 3)
        by_image["coverage_mean/sample"] = ImageValues(
            torch.arange(SIZE), (torch.arange(SIZE) % 5 < 4).double(), torch.ones(SIZE).double()
        )
        errors = {name.partition("/")[2]: parts for name, parts in by_image.items() if name.startswith(f"{kind}/")}
        metrics = {f"{key}/{output}": psnr(parts) for output, parts in errors.items()}
        metrics |= {name: by_image[name].mean.item() for name in (f"{energy}/sample", "coverage_mean/sample")}
        metrics["spread_ratio/sample"] = 0.5
        sampling["num_network_calls"] = {"mean": 1, "sample": 4}
        curve = (f"val/{key}/mean", 20.0, 20.0 if converged else 22.0)
    degradation = None if task == "generate" else {"steps": {task: {"std": 1}}}
    fake_run(folder, "x", seed, record={"degradation": degradation, "sampling": sampling, **run})
    (folder / "metrics.json").write_text(
        json.dumps({"metrics": metrics, "record": json.loads((folder / "metrics.json").read_text())["record"]})
    )
    write_by_image(folder, by_image)
    rows = [f"{step},{value}" for step, value in ((25, 10.0), (50, 15.0), (75, curve[1]), (100, curve[2]))]
    (folder / "metrics.csv").write_text("\n".join([f"step,{curve[0]}", *rows, ""]))
    images = {name: torch.rand(2, 3, 8, 8) * 2 - 1 for name in ("clean", "degraded", "sample")}
    write_single_images(folder / "images" / "test", images, [0, 1], {"sample": [20.0, 21.0]}, None, 100)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three paradigms the first is best in restoring and drawing, two are alike in holes; one run is missing."""
    root = tmp_path_factory.mktemp("home") / "somebody" / "scenes"
    runs = []
    for task, seed, paradigm in ((t, s, p) for t in TASKS for s in SEEDS for p in LEVELS):
        level = LEVELS[paradigm]
        place = f"runs/{paradigm}_{task}_{seed}"
        runs.append(StudyRun(paradigm, task, "cell", "scenes", seed, place, 60.0, 10.0, 100, 50.0, 1_600_000))
        if (paradigm, task) == ("maskgit", "generate"):
            continue
        if task == "inpaint" and paradigm == "meanflow":
            level = 0.02
        filled(root / place, task, level, seed, {"hardware": {"host": "their-machine"}}, paradigm != "meanflow")
    # The generator fills holes without training for it, at 17 dB.
    content = json.loads((root / "runs" / "ddpm_inpaint_0" / "metrics.json").read_text())
    free = root / "runs" / "ddpm_generate_0" / "evaluations" / "free"
    free.mkdir(parents=True)
    (free / "metrics.json").write_text(json.dumps(content | {"metrics": {"psnr_hole/sample": 17.0}}))
    runs.append(StudyRun("regression", "restore", "baseline", "scenes", 0, "runs/regression", 60.0))
    filled(root / "runs" / "regression", "restore", 0.015, 0, {})
    restored, filled_in = (
        {name: Side(name, task, output="mean") for name in LEVELS} for task in ("restore", "inpaint")
    )
    predictions = (
        Prediction("Diffusion restores better than flows", "psnr_pooled", restored["ddpm"], restored["meanflow"]),
        Prediction("Tokens fill holes best", "psnr_hole", filled_in["maskgit"], filled_in["ddpm"]),
        Prediction("Flows fill holes better", "psnr_hole", filled_in["meanflow"], filled_in["ddpm"]),
        Prediction("Tokens draw", "label_accuracy", Side("maskgit", "generate", output="test"), Side(value=0.5)),
        Prediction("Diffusion draws", "label_accuracy", Side("ddpm", "generate", output="new"), Side(value=0.5)),
    )
    Study("scenes", "coffee", SEEDS, 70.0, {}, tuple(runs), predictions).write(root)
    return compare([f"runs={root}", f"output={root.parent / 'pages'}"])


def test_a_winner_is_named_only_beyond_chance_and_says_why(study: Path) -> None:
    text = " ".join(study.read_text().split())
    assert "PSNR, pooled, dB: ddpm is ahead with" in text
    assert "Label accuracy: ddpm is ahead with" in text
    assert "PSNR in hole, dB: no winner, " in text
    assert "maskgit bounded: its composite itself reaches" in text
    assert "meanflow not converged: in the last quarter of training validation still gained 2.00 dB" in text
    assert "maskgit scatters too little: spread over error 0.50, and 1 is right" in text
    assert text.count('class="cell ahead"') == 2
    assert text.count('<article class="cell') == 9
    assert "not begun" in text
    assert ">calibrated<" in text
    assert study.name == "scenes.html"
    # In the table the baseline competes, too; its one seed is compared with each of theirs.
    assert 'class="n best"' in text.partition("regression · restore</b></th>")[2][:40]


def test_what_needs_no_training_is_a_line_over_the_minutes_of_those_that_do(study: Path) -> None:
    text = study.read_text()
    (chart,) = [part for part in text.split("<svg") if "PSNR in hole, dB against minutes of training" in part]
    assert "ddpm · generate sample</text>" in chart
    assert "runs/" not in text.partition("<details><summary>Run folders")[0]


def test_predictions_came_true_failed_or_cannot_be_told(study: Path) -> None:
    page = Page(study)
    outcomes = {row[0]: row[1] for table in page.tables for row in table if row[1:2] and row[1] in OUTCOMES}
    assert outcomes == {
        "Diffusion restores better than flows": "came true",
        "Tokens fill holes best": "failed",
        "Flows fill holes better": "cannot be told",
        "Tokens draw": "cannot be told",
        "Diffusion draws": "came true",
    }


def test_page_and_table_name_no_machine(study: Path) -> None:
    for path in (study, study.with_suffix(".csv")):
        text = path.read_text()
        for private in ("somebody", "their-machine", str(study.parent.parent)):
            assert private not in text, path
