"""compare.py: what stands on the page and in the CSV file is what the runs measured."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import socket
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import read_json, train_here
from pages import Page, fake_run
from PIL import Image

from generative.metrics.by_image import ImageValues
from generative.metrics.catalogue import metric_of
from launch.by_image_csv import write_by_image
from launch.commands.compare import compare
from launch.compare.intervals import differences
from launch.compare.plane import plane_charts
from launch.compare.reading import read_runs, run_folders
from launch.compare.rows import tables_of
from launch.compare.series import cost_charts, trade_charts
from launch.compare.tables import case_grids
from launch.compare.trainings import training_cost
from launch.errors import UserError
from launch.page.charts import Chart, Line, Point, nice_ticks, render
from launch.paths import without_folders
from launch.sampling_time import time_record


def page_of(tmp_path: Path, *arguments: str) -> tuple[Page, list[dict[str, str]]]:
    path = compare([f"output={tmp_path / 'pages'}", "name=page", *arguments])
    with path.with_suffix(".csv").open() as file:
        return Page(path), list(csv.DictReader(file))


def test_rows_are_means_over_training_seeds(tmp_path: Path) -> None:
    for seed, psnr in enumerate((20.0, 21.0, 25.0)):
        fake_run(tmp_path / "runs" / str(seed), seed=seed, psnr=psnr)
    page, rows = page_of(tmp_path, f"runs={tmp_path}/runs/**")
    (row,) = [row for row in rows if row["output"] == "sample"]
    assert float(row["psnr"]) == pytest.approx(22.0)
    assert float(row["psnr_seed_std"]) == pytest.approx(statistics.stdev([20, 21, 25]))
    assert (row["num_training_seeds"], row["num_network_calls"]) == ("3", "4.0")
    # Metrics stand first, then calls, milliseconds and seeds.
    assert page.row("meanflow_dit")[1].split() == ["22.00", "±", "2.65"]
    assert page.row("meanflow_dit")[2:] == ["4", "", "3"]
    assert page.row("degraded input")[1] == "9.00"
    # One evaluation's own spread is no spread over seeds.
    assert page.row("meanflow_dit", "0.500")[1].split() == ["0.500", "±", "0.000"]


def test_error_stands_against_likeness_with_the_bound_of_a_perfect_restorer(tmp_path: Path) -> None:
    calls = {"sampling": {"num_network_calls": {"sample": 4, "mean": 1}}}
    measured = {"pmrf": ((20.5, 3.0), (23.0, 9.0)), "meanflow_dit": ((19.0, 4.0), (22.0, 8.0))}
    for name, ((sample, near), (mean, far)) in measured.items():
        folder = fake_run(tmp_path / "runs" / name, name, record=calls)
        content = read_json(folder / "metrics.json")
        distance = "fd_label_classifier_paired"
        content["metrics"] |= {"psnr_pooled/sample": sample, "psnr_pooled/mean": mean}
        content["metrics"] |= {f"{distance}/sample": near, f"{distance}/mean": far}
        (folder / "metrics.json").write_text(json.dumps(content))
    found = read_runs(run_folders(str(tmp_path / "runs")))
    tables, _ = tables_of(found.measured, [])
    (chart,) = plane_charts(tables[0])
    assert {line.label: [(p.x, p.y) for p in line.points] for line in chart.lines} == {
        "pmrf": [(3.0, 20.5), (9.0, 23.0)], "meanflow_dit": [(4.0, 19.0), (8.0, 22.0)],
    }  # fmt: skip
    assert chart.references == {"3.01 dB below the best": pytest.approx(23 - 3.0103, abs=1e-4)}
    assert chart.x_label.startswith("FD to clean")
    page_of(tmp_path, f"runs={tmp_path}/runs/**")
    assert "Error against likeness" in (tmp_path / "pages" / "page.html").read_text()


def test_a_metric_that_nobody_listed_is_shown_plainly(tmp_path: Path) -> None:
    for seed, value in enumerate((2.0, 4.0)):
        folder = fake_run(tmp_path / "runs" / str(seed), psnr=11.0, config={"network": {"dim": 8 + seed}})
        content = read_json(folder / "metrics.json")
        content["metrics"] |= {
            "edge_error/sample": value,
            "edge_error_std/sample": 0.5,
            "alone": 7.0,
            "psnr/sample": 11 + seed,
        }
        (folder / "metrics.json").write_text(json.dumps(content))
    page, rows = page_of(tmp_path, f"runs={tmp_path}/runs/**")
    headings = next(table[0] for table in page.tables if any("PSNR" in cell for cell in table[0]))
    shown = dict(zip(headings, page.row("meanflow_dit network.dim=9"), strict=True))
    assert shown["Edge error"].split() == ["4", "±", "0.5"]  # without a direction: no arrow, no best
    assert shown["PSNR, dB ↑"] == "12.00"
    assert [row["edge_error_std"] for row in rows if row["output"] == "sample"] == ["0.5", "0.5"]
    assert [row["alone"] for row in rows if row["output"] == ""] == ["7.0", "7.0"]
    _, rows = page_of(tmp_path, f"runs={tmp_path}/runs/**", "metrics=edge_error")
    assert "<figcaption>Edge error" not in (tmp_path / "pages" / "page.html").read_text()  # all points at one place


def test_rows_differ_in_settings_and_the_best_beyond_chance_is_marked(tmp_path: Path) -> None:
    fake_run(tmp_path / "runs" / "a", psnr=20.0)
    fake_run(tmp_path / "runs" / "b", psnr=23.0, config={"network": {"dim": 16}})
    fake_run(tmp_path / "runs" / "c", psnr=25.0, seed=1, config={"network": {"dim": 16}})
    page_of(tmp_path, f"runs={tmp_path}/runs")
    text = (tmp_path / "pages" / "page.html").read_text()
    assert 'class="n best"' not in text
    assert "Nothing is underlined beside meanflow_dit network.dim=16, meanflow_dit network.dim=8" in text
    noise = torch.linspace(-1, 1, 50).double()
    for name, level in (("a", 20.0), ("b", 23.0), ("c", 25.0)):
        by_image = {"psnr/sample": ImageValues(torch.arange(50), level + noise, torch.ones(50).double())}
        write_by_image(tmp_path / "runs" / name, by_image)
    _, rows = page_of(tmp_path, f"runs={tmp_path}/runs/a,{tmp_path}/runs/b,{tmp_path}/runs/c")
    values = {row["network.dim"]: row["psnr"] for row in rows if row["output"] == "sample"}
    assert values == {"8": "20.0", "16": "24.0"}
    text = (tmp_path / "pages" / "page.html").read_text()
    assert text.count('class="n best"') == 2  # in the table, and in that of all metrics
    assert "Nothing is underlined" not in text
    assert 'class="n best" data-value="24.0"' in text
    _, rows = page_of(tmp_path, f"runs={tmp_path}/runs", "by=trainer.max_steps")
    assert [row["num_evaluations"] for row in rows if row["output"] == "sample"] == ["3"]
    assert "rows are also means over network.dim" in (tmp_path / "pages" / "page.html").read_text()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"evaluation": {"num_images": 99}}, "number of images differs"),
        ({"weights": "raw"}, "weights differs"),
        ({"degradation": {"steps": {"noise": {"std": 0.5}}}}, "degradation differs"),
        ({"data": {"name": "digits", "image_size": 16, "fingerprint": "f2"}}, "images differs"),
        (
            {"data": {"name": "digits", "image_size": 16, "fingerprint": "f2", "fingerprints": {"train": "t2"}}},
            "training images differs",
        ),
    ],
)
def test_what_cannot_be_compared_stands_in_tables_of_its_own(
    tmp_path: Path, record: dict[str, Any], words: str
) -> None:
    fake_run(tmp_path / "runs" / "a")
    fake_run(tmp_path / "runs" / "b", seed=1, record=record)
    tables, _ = tables_of(read_runs(run_folders(str(tmp_path / "runs"))).measured, [])
    assert [len(table.rows) for table in tables] == [1, 1]
    page_of(tmp_path, f"runs={tmp_path}/runs")
    assert words in (tmp_path / "pages" / "page.html").read_text()


def judged(blake2: str) -> dict[str, Any]:
    return {"label_accuracy": {"definitions": {"label_accuracy": "words"}, "classifier": {"blake2": blake2}}}


def test_what_different_classifiers_judged_stands_in_tables_of_its_own(tmp_path: Path) -> None:
    for number, (name, judge) in enumerate((("a", "1234"), ("b", "5678"), ("c", "5678"), ("d", None))):
        record = {"data": {"name": "digits", "image_size": 16, "fingerprints": {"label_sets": "s"}}}
        folder = fake_run(tmp_path / "runs" / name, name, seed=0, record=record | (judged(judge) if judge else {}))
        values = ImageValues(torch.arange(9), torch.linspace(0, 0.1, 9).double() + number, torch.ones(9).double())
        write_by_image(folder, {"label_accuracy/test": values, "psnr/sample": values})
    entries = read_runs(run_folders(str(tmp_path / "runs"))).measured
    tables, _ = tables_of(entries, [])
    assert [sorted(row.name for row in table.rows) for table in tables] == [["a", "d"], ["b", "c"]]
    assert ["judge 1234" in table.title for table in tables] == [True, False]
    a, b, c, _ = ([entry] for entry in entries)
    assert differences(b, c, "label_accuracy/test")
    assert differences(a, b, "psnr/sample")
    assert not differences(a, b, "label_accuracy/test")
    page_of(tmp_path, f"runs={tmp_path}/runs")
    assert "Not comparable with the first table: judge differs." in (tmp_path / "pages" / "page.html").read_text()


def test_an_evaluation_of_fewer_steps_is_none_of_the_run(tmp_path: Path) -> None:
    for name, own in (
        ("longer", {"finished": True, "step": 150}),
        ("stopped", {"finished": False, "step": 150}),
        ("resumed", {"finished": False, "history": [{"step": 0}, {"step": 100}]}),
        ("same", {"finished": True, "step": 100}),
    ):
        folder = fake_run(tmp_path / "runs" / name, name)
        (folder / "run.json").write_text(json.dumps(read_json(folder / "run.json") | own))
        later = folder / "evaluations" / "later"
        later.mkdir(parents=True)
        content = read_json(folder / "metrics.json")
        content["record"] |= {"step": own.get("step", 120), "time": "2027"}
        (later / "metrics.json").write_text(json.dumps(content))
        chosen = folder / "evaluations" / "chosen"
        chosen.mkdir()
        content["record"] |= {"step": 50, "checkpoint": "best.ckpt"}
        (chosen / "metrics.json").write_text(json.dumps(content))
    found = read_runs(run_folders(str(tmp_path / "runs")))
    kept = {(entry.run.path.name, entry.folder.name) for entry in found.measured}
    assert kept == {
        *((name, kind) for name in ("longer", "stopped", "resumed", "same") for kind in ("later", "chosen")),
        ("same", "same"),
    }
    reasons = {each.folder.name: each.reason for each in found.left_out if each.state == "not used"}
    assert "measured at step 100, the run is at step 150: evaluate again with python evaluate.py" in reasons["longer"]
    assert reasons.keys() == {"longer", "stopped", "resumed"}


def test_a_range_for_training_does_not_bear_on_comparability(tmp_path: Path) -> None:
    for name, train in (("a", [0.1, 0.2]), ("b", [0.1, 0.9])):
        steps = {"noise": {"std": {"train": train, "evaluation": 0.5}}}
        fake_run(tmp_path / "runs" / name, seed=ord(name), record={"degradation": {"steps": steps}})
    tables, _ = tables_of(read_runs(run_folders(str(tmp_path / "runs"))).measured, [])
    assert len(tables) == 1


def test_an_evaluation_that_repeats_another_counts_once(tmp_path: Path) -> None:
    fake_run(tmp_path / "runs" / "a", psnr=20.0)
    fake_run(tmp_path / "runs" / "b", psnr=30.0, record={"time": "2027"})
    page, rows = page_of(tmp_path, f"runs={tmp_path}/runs")
    assert [(row["psnr"], row["num_evaluations"]) for row in rows if row["output"] == "sample"] == [("30.0", "1")]
    assert "evaluated later" in page.row("meanflow_dit", "not used")[-1]


def test_unfinished_and_failed_runs_are_listed_with_step_and_reason(tmp_path: Path) -> None:
    fake_run(tmp_path / "runs" / "a")
    for name in ("killed", "failed", "interrupted"):
        folder = fake_run(tmp_path / "runs" / name)
        (folder / "metrics.json").unlink()
        (folder / "run.json").write_text(json.dumps({"name": name, "finished": False}))
    (tmp_path / "runs" / "failed" / "train.log").write_text("step 1\nerror: the loss became nan at step 60.\n\n")
    attempts = [{"started": "now", "exit_code": 143}]
    (tmp_path / "runs" / "interrupted" / "job.json").write_text(json.dumps({"attempts": attempts}))
    (tmp_path / "runs" / "interrupted" / "train.log").write_text("step 3  loss 0.5\n")
    (tmp_path / "runs" / "never").mkdir()
    (tmp_path / "runs" / "never" / "train.log").write_text("error: data.root=x does not exist.")
    page, _ = page_of(tmp_path, f"runs={tmp_path}/runs/**")
    failed = page.row("failed", "failed")
    assert failed[2] == "100 of 100"
    assert failed[3].startswith("error: the loss became nan at step 60.")
    assert "psnr/sample 18.5" in failed[3]
    assert "no checkpoint" in page.row("killed", "unfinished")[3]
    assert "no checkpoint" in page.row("interrupted", "unfinished")[3]
    assert page.row("runs", "failed")[3] == "error: data.root=x does not exist."
    assert "2 runs failed, 2 runs unfinished" in (tmp_path / "pages" / "page.html").read_text()


def test_page_and_table_say_nothing_of_the_machine(tmp_path: Path) -> None:
    home = tmp_path / "home" / "somebody"
    config = {"data": {"global_batch_size": 4, "root": f"{home}/photos"}, "callbacks": {"x": "~somebody/weights.pt"}}
    fake_run(home / "runs" / "a", config=config)
    fake_run(home / "runs" / "b", psnr=21.0, config={"data": {"global_batch_size": 4, "root": f"{home}/others"}})
    folder = fake_run(home / "runs" / "c", record={"hardware": {"host": "their-machine"}})
    (folder / "metrics.json").unlink()
    (folder / "run.json").write_text(json.dumps({"name": "c", "finished": False}))
    (folder / "train.log").write_text(f"error: {home}/photos/1.png cannot be read.")
    page_of(tmp_path, f"runs={home}/runs/**")
    for path in (tmp_path / "pages").iterdir():
        text = path.read_text()
        assert "photos" in text or path.suffix == ".csv"
        for private in ("somebody", str(tmp_path), "their-machine", socket.gethostname()):
            assert private not in text, path
        body = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>|data:[^\"]*", " ", text, flags=re.DOTALL)
        assert without_folders(body) == body


def test_a_chart_has_points_at_two_places(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "runs" / "a")
    page_of(tmp_path, f"runs={tmp_path}/runs")
    drawn = (tmp_path / "pages" / "page.html").read_text()
    assert "<h4>Validation over training images</h4>" in drawn
    assert "<h4>Loss</h4>" not in drawn  # logged once
    (folder / "metrics.csv").write_text(
        "step,train/loss,throughput/images_per_second,val/psnr/sample\n50,0.5,2,\n75,0.4,2,\n100,,1,18.5\n"
    )
    page_of(tmp_path, f"runs={tmp_path}/runs")
    drawn = (tmp_path / "pages" / "page.html").read_text()
    assert "<h4>Validation over training images</h4>" not in drawn
    assert "<figcaption>Loss of meanflow_dit</figcaption>" in drawn
    (entry,) = read_runs(run_folders(f"{tmp_path}/runs")).measured
    cost = training_cost(entry, in_minutes=True)
    assert cost is not None  # 200 images at 2 a second, 100 at 2, 100 at 1
    assert [cost(step) * 60 for step in (50, 75, 100)] == pytest.approx([100, 150, 250])


def test_curves_over_steps_and_over_guidance_are_drawn_apart_and_draws_stand_in_one_table(tmp_path: Path) -> None:
    drawn, tokens = {"num_images": 9}, {"num_images": 50, "split": "test"}
    records = {
        "ddpm": {"generation": drawn, "evaluation": None},
        "maskgit": {"generation": drawn, "evaluation": tokens},
    }
    settings = [(scale, steps) for scale, steps in ((1, 4), (2, 4), (3, 4), (1, 2))]
    measured = []
    for name, record in records.items():
        (found,) = read_runs([fake_run(tmp_path / name, name, record=record)]).measured
        for number, (scale, steps) in enumerate(settings):
            metrics = {
                "label_accuracy/test": 0.5 + scale / 10,
                "recall_label_classifier/sample": (0.6, 0.8, 0.2)[scale - 1],
            }
            own = {"guidance.scale": str(scale), "sampler.num_steps": str(steps)}
            calls = found.record | {"sampling": {"num_network_calls": {"sample": steps * scale}}}
            folder = found.folder if number == 0 else found.folder / str(number)
            measured.append(replace(found, folder=folder, settings=found.settings | own, metrics=metrics, record=calls))
    (table,), _ = tables_of(measured, [])
    assert table.conditions["images"] == "9 images"
    metric = metric_of("label_accuracy")
    (by_calls,) = cost_charts(case_grids(table), [metric], "network calls per image")
    assert {line.label: [p.x for p in line.points] for line in by_calls.lines} == {
        f"{name} guidance.scale=1 · test": [2, 4] for name in records
    }
    (trade,) = trade_charts(table, [metric])
    assert {line.label: [(p.x, p.y) for p in line.points] for line in trade.lines} == {
        f"{name} · test": [(0.6, 0.6), (0.8, 0.7), (0.2, 0.8)] for name in records
    }


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>&\"<img src=http://x>"
    fake_run(tmp_path / "runs" / "a", name=name)
    page, _ = page_of(tmp_path, f"runs={tmp_path}/runs")
    assert page.row(name)
    assert page.tags.count("script") == 1
    assert page.addresses == [a for a in page.addresses if a.startswith("#")]


def test_values_that_are_no_numbers_are_shown_and_never_the_best(tmp_path: Path) -> None:
    fake_run(tmp_path / "runs" / "a", psnr=math.nan)
    fake_run(tmp_path / "runs" / "b", psnr=20.0, config={"network": {"dim": 16}})
    page, _ = page_of(tmp_path, f"runs={tmp_path}/runs")
    assert page.row("meanflow_dit network.dim=8")[1] == "nan"
    assert "NaN" not in (tmp_path / "pages" / "page.html").read_text()


def test_runs_that_diverged_are_left_out_of_charts_and_stop_no_page(tmp_path: Path) -> None:
    for number, value in enumerate((math.nan, 20.0, 21.0, math.inf)):
        calls = {"num_network_calls": {"sample": 4 + number, "mean": 1}}
        ranks = {"rank_histograms": {"pixels/sample": [value / 100] * 5}}
        record = {"sampling": calls, "calibration": ranks}
        folder = fake_run(tmp_path / "runs" / str(number), f"run{number}", psnr=value, record=record)
        content = read_json(folder / "metrics.json")
        for output in ("sample", "mean"):
            content["metrics"] |= {f"psnr_pooled/{output}": value, f"fd_label_classifier_paired/{output}": value / 5}
        (folder / "metrics.json").write_text(json.dumps(content))
    page_of(tmp_path, f"runs={tmp_path}/runs/**")
    charts = re.findall(r'<svg class="chart".*?</svg>', (tmp_path / "pages" / "page.html").read_text())
    assert not any(re.search(r"\b(nan|inf)\b", chart) for chart in charts)
    for words in ("below the best", "rank of the truth"):
        (chart,) = [chart for chart in charts if words in chart]
        assert set(re.findall(r"run\d", chart)) == {"run1", "run2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"runs='outputs/\*\*'"),
        (["runs=nothing/**"], r"runs=nothing/\*\*: no run folder"),
        (["runs={runs}", "metrics=psnrr"], "metrics=psnrr was not measured.*psnr"),
        (["runs={runs}", "by=netwrk"], "by=netwrk is no config key.*network"),
        (["runs={runs}", "nme=x"], "nme=x is no argument.*name"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, arguments: list[str], message: str) -> None:
    fake_run(tmp_path / "runs" / "a")
    with pytest.raises(UserError, match=message):
        compare([a.format(runs=tmp_path / "runs") for a in arguments])


def test_long_lists_of_folders_and_signs_of_patterns_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [fake_run(tmp_path / "runs" / name, name) for name in ("a[1]", "a1", "b,c")]
    several = [*folders[:2], *[folders[0]] * (5000 // len(str(tmp_path)))]
    assert set(run_folders(",".join(map(str, several)))) == set(folders[:2])
    assert run_folders(str(folders[0])) == folders[:1]
    assert run_folders(str(folders[2])) == folders[2:]
    monkeypatch.setenv("HOME", str(tmp_path))
    path = compare([f"runs={','.join(map(str, several))}", "output=~/pages", "name=page"])
    assert path == tmp_path / "pages" / "page.html"


DAMAGED: list[tuple[str, Any]] = [
    ("run.json", '{"metrics": {'),
    ("run.json", ""),
    ("run.json", {"seed": "x"}),
    ("run.json", {"hardware": []}),
    ("run.json", {"parts": {"tokenizer": "x"}}),
    ("metrics.json", '{"metrics": {'),
    ("metrics.json", []),
    ("metrics.json", {"metrics": {"psnr/sample": "abc"}, "record": {}}),
    ("metrics.json", {"metrics": {"psnr/sample": {"a": 1}}, "record": {}}),
    ("metrics.json", {"metrics": {"psnr/sample": 1.0}, "record": {"data": "digits"}}),
    ("metrics.json", {"metrics": {"psnr/sample": 1.0}, "record": {"sampling": {"num_network_calls": [1]}}}),
    ("metrics.json", {"metrics": {"psnr/sample": 1.0}, "record": {"step": None}}),
    ("metrics.csv", "step,val/psnr/sample\nx,1\n"),
    ("metrics.csv", "step,val/psnr/sample\n1,abc\n"),
    ("metrics.csv", "a\0b"),
    (".hydra/config.yaml", ""),
    (".hydra/config.yaml", "a: [*b]"),
    (".hydra/config.yaml", {"data": {"global_batch_size": "lots"}, "paths": {}}),
    (".hydra/config.yaml", {"data": {"_target_": "os.system"}, "paths": {}}),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_a_damaged_run_is_named_and_left_out(tmp_path: Path, name: str, content: Any) -> None:
    fake_run(tmp_path / "runs" / "a")
    folder = fake_run(tmp_path / "runs" / "b", psnr=21.0)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    path = compare([f"runs={tmp_path}/runs", f"output={tmp_path}", "name=page"])
    (row,) = [row for row in csv.DictReader(path.with_suffix(".csv").open()) if row["output"] == "sample"]
    assert (row["psnr"], row["num_evaluations"]) == ("20.0", "1")
    (left,) = read_runs(run_folders(f"{tmp_path}/runs")).left_out
    assert (left.state, left.folder) == ("damaged", folder)
    assert Path(name).name in left.reason or "global_batch_size" in left.reason


def test_metrics_that_are_no_numbers_to_compare(tmp_path: Path) -> None:
    fake_run(tmp_path / "runs" / "a", psnr=math.nan)
    fake_run(tmp_path / "runs" / "b", psnr=math.inf, seed=1)
    fake_run(tmp_path / "runs" / "c", name="other")
    page, rows = page_of(tmp_path, f"runs={tmp_path}/runs")
    assert "nan" in {row["psnr"] for row in rows}
    assert page.row("meanflow_dit")


def test_a_page_shows_records_as_text_and_no_links(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\"' onload='x"
    folder = fake_run(
        tmp_path / "runs" / "a", name=name, config={"network": {"dim": name}}, record={"degradation": None}
    )
    fake_run(tmp_path / "runs" / "b", name=name, config={"network": {"dim": 9}}, psnr=21.0)
    (tmp_path / "secret").write_text("the secret")
    images = folder / "images" / "test"
    (images / "sample").mkdir(parents=True)
    for path in (images / "step=0000001.png", images / "sample" / "000000.png"):
        path.symlink_to(tmp_path / "secret")
    (images / "images.json").write_text(
        json.dumps({"index": [0], "outputs": ["sample", "../../../../secret"], "psnr": {}})
    )
    page, _ = page_of(tmp_path, f"runs={tmp_path}/runs")
    assert page.tags.count("script") == 1
    assert page.row(name)
    assert page.sources == []


def test_runs_without_results_are_an_error_with_the_reason(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "runs" / "a")
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"none of the 1 runs has results.*python evaluate\.py run="):
        compare([f"runs={tmp_path}/runs"])


def test_charts_place_points_and_ticks() -> None:
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(20.1, 20.9) == pytest.approx([20.2, 20.4, 20.6, 20.8])
    line = Line("a & b", [Point(1, 10, 1.0), Point(10, 20, None), Point(100, 30, None)], 0)
    drawing = render(Chart("<PSNR>", "calls", [line], is_logarithmic=True))
    assert "&lt;PSNR&gt;" in drawing
    assert "a &amp; b" in drawing
    xs = [float(part.split('"')[1]) for part in drawing.split("<circle")[1:] for part in [part.split("cx=")[1]]]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)  # a decade each


def test_the_time_of_sampling_is_that_of_whole_batches_shared_by_network_calls() -> None:
    times = [(4, 9.0), (4, 4.0), (2, 0.5), (4, 4.0)]  # 9 s of warming up, 4 s, a smaller batch, 4 s
    record = time_record(times, {"sample": 3, "mean": 1})
    assert record["seconds_per_image"] == {"sample": 0.75, "mean": 0.25}
    assert (record["seconds_measured"]["batch_size"], record["seconds_measured"]["num_batches"]) == (4, 2)
    assert time_record(times, {}) == {}
    assert time_record([], {"sample": 3}) == {}


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three modules on the same scenes, one of them with two seeds and a second number of steps."""
    from launch.commands.evaluate import evaluate
    from launch.compare.evaluations import read_job

    root = tmp_path_factory.mktemp("outputs")
    # A curve has two points at least.
    common = [f"paths.outputs={root}", "callbacks.image_grid.first_step=-1", "trainer.val_check_interval=1"]
    restoring = ["data=scenes", "degradation=holes", "callbacks.calibration=null", *common]
    for seed in (0, 1):
        train_here(root / "meanflow_dit" / str(seed), "experiment=meanflow_dit", f"seed={seed}", *restoring)
        evaluate(read_job([f"run={root}/meanflow_dit/{seed}", "sampler.num_steps=3"], ""))
    train_here(root / "regression_dit" / "run", "experiment=regression_dit", *restoring)
    no_classifier = ["classifier=null", "callbacks.steps_grid=null"]
    train_here(root / "ddpm_scenes" / "run", "experiment=ddpm_scenes", *common, *no_classifier)
    return root


@pytest.fixture(scope="module")
def real_page(real_runs: Path) -> Path:
    return compare([f"runs={real_runs}/**", f"output={real_runs / 'comparisons'}", "name=three"])


@pytest.mark.slow
def test_three_modules_on_one_page(real_runs: Path, real_page: Path) -> None:
    page = Page(real_page)
    contents = [read_json(real_runs / "meanflow_dit" / str(seed) / "metrics.json") for seed in (0, 1)]
    values = [content["metrics"]["psnr/sample"] for content in contents]
    shown = page.row("meanflow_dit sampler.num_steps=1", f"{statistics.fmean(values):.2f}")
    assert f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" in " ".join(shown)
    assert shown[-1] == "2"
    assert statistics.fmean(values) in page.values
    regression = read_json(real_runs / "regression_dit" / "run" / "metrics.json")["metrics"]
    assert regression["psnr_hole/mean"] in page.values
    # What needs no training stands in the same table.
    floor = page.row("mean colour of the known pixels")
    assert f"{regression['psnr_hole/mean_colour']:.2f}" in floor
    assert page.row("nearest training image")
    # Without a classifier the DDPM measured nothing: it is in no table, but its images are shown.
    assert "label classifier" in page.row("ddpm_scenes", "no metrics")[-1]
    seconds = contents[0]["record"]["sampling"]["seconds_per_image"]
    assert 0 < seconds["sample"] == seconds["mean"]  # one network call each

    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert "http" not in real_page.read_text()
    assert page.tags.count("svg") > 10


@pytest.mark.slow
def test_images_of_the_same_inputs_stand_under_each_other(real_runs: Path, real_page: Path) -> None:
    page = Page(real_page)
    (table,) = [table for table in page.tables if any(row[0].startswith("test images") for row in table)]
    names = [row[0].split(",")[0] for row in table[1:]]
    assert names[0] == "test images"
    for label in ("degraded", "meanflow_dit sampler.num_steps=1sample", "meanflow_dit sampler.num_steps=3sample",
                  "meanflow_ditmean", "regression_ditmean", "ddpm_scenessample"):  # fmt: skip
        # The mean takes one call whatever the number of steps: its two rows are one only where all pixels agree.
        assert label in names, names
    clean = {path.read_bytes() for path in real_runs.glob("*/*/images/test/clean/000000.png")}
    clean |= {path.read_bytes() for path in real_runs.glob("ddpm_scenes/*/images/test/data/000000.png")}
    assert len(clean) == 1
    listed = read_json(real_runs / "meanflow_dit" / "0" / "images" / "test" / "images.json")
    assert listed["index"] == [0, 1]
    with Image.open(real_runs / "meanflow_dit" / "0" / "images" / "test" / "sample" / "000001.png") as image:
        assert image.size == (32, 32)


@pytest.mark.slow
def test_a_browser_shows_the_page(real_page: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    shot = tmp_path / "page.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={shot}"]
    subprocess.run(
        [*command, f"--user-data-dir={tmp_path}/profile", "--window-size=1280,2600", real_page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(shot) as image:
        colors = image.convert("RGB").getcolors(maxcolors=2**24)
    # The modules' colours of the light theme are there, and photographs' worth of others.
    present = {color for _, color in colors or []}
    assert {(0x23, 0x64, 0xAA), (0xC4, 0x53, 0x1A), (0x22, 0x80, 0x5D)} <= present
    assert len(present) > 500
    # A click on an image that answers to a clean one shows both and their difference.
    click = "<script>addEventListener('load', () => [...document.querySelectorAll('.pictures td img')].find(cleanOf).click())"
    clicked = tmp_path / "clicked.html"
    clicked.write_text(real_page.read_text().replace("</body>", f"{click}</script></body>"))
    command = [*command[:-1], "--dump-dom", f"--user-data-dir={tmp_path}/profile", clicked.as_uri()]
    shown = subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout
    dialog = shown.partition("<dialog open")[2].partition("</dialog>")[0]
    assert dialog.count("<figure>") == 3
    assert "difference, 4 times" in dialog
