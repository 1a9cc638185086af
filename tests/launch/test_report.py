"""report.py: the page of one run says what its folder says, names no folder of the machine, and never ends a training."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import socket
from pathlib import Path

import pytest
from helpers import checked_command, read_json, resume_here, train_here
from omegaconf import DictConfig, OmegaConf
from pages import Page, fake_run
from PIL import Image

from generative.metrics.plots import plots_of
from launch.commands.evaluate import evaluate
from launch.commands.report import report, report_of_training
from launch.compare.evaluations import read_job
from launch.errors import UserError
from launch.page.charts import Chart, Line, Point, render
from launch.paths import without_folders
from launch.report.curves import MAX_POINTS, curves_of, training_charts
from launch.report.formats import BROWSERS
from launch.report.slides import MAX_BYTES, MAX_STEPS, slides_of
from launch.run_folder import RunFolder

ABSOLUTE = re.compile(r"(?<![\w./~…:<-])~?/[\w.+-]+(?:/[\w.+-]+)+")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that stopped early at step 2 and was continued to step 4; its page was written by the training."""
    folder = tmp_path_factory.mktemp("of somebody") / "outputs" / "meanflow_dit" / "run"
    watched = [f"callbacks.{key}.metric=val/psnr/mean" for key in ("early_stop", "kept_checkpoints")]
    stop = ["callbacks.early_stop.patience=1", "callbacks.early_stop.min_delta=100", "trainer.max_steps=4"]
    stop += ["trainer.val_check_interval=1"]
    keep = ["callbacks.kept_checkpoints.num_best=2", "callbacks.kept_checkpoints.every_n_steps=2"]
    fast = ["callbacks.calibration=null", "callbacks.label_kept=null", "callbacks.image_grid.first_step=1"]
    run = train_here(folder, "experiment=meanflow_dit", *watched, *stop, *keep, *fast)
    assert "val/psnr/mean has not been better" in run.record["early_stop"]
    assert (run.record["finished"], run.record["step"]) == (True, 2)
    with pytest.raises(
        UserError, match=r"has finished at step 2 \(early stop: .*set a larger callbacks\.early_stop\.patience"
    ):
        resume_here(run, "optimizer.lr=0.002")
    resume_here(run, "callbacks.early_stop.patience=9", "optimizer.lr=0.002")
    return run


def shown(path: Path) -> str:
    """The text of a page without its pictures."""
    return re.sub(r"data:image/png;base64,[\w+/=]+", "", path.read_text())


def test_a_training_writes_the_page_that_is_made_of_its_folder_later(resumed: RunFolder, tmp_path: Path) -> None:
    (later,) = report([f"run={resumed.path}", f"output={tmp_path / 'later.html'}"])
    assert later.read_bytes() == (resumed.path / "report.html").read_bytes()


def test_the_page_of_a_resumed_run_has_the_whole_history(resumed: RunFolder) -> None:
    page, text = Page(resumed.path / "report.html"), shown(resumed.path / "report.html")
    metrics = read_json(resumed.path / "metrics.json")["metrics"]
    assert page.row("mean", f"{metrics['psnr/mean']:.2f}")
    starts = page.row("2", "20")  # the second start, its time, and what was changed
    assert "callbacks.early_stop.patience: 1 → 9" in starts[2]
    assert "optimizer.lr" in starts[2]
    assert "resumed at step 2" in text
    steps = [int(step.replace(",", "")) for step in re.findall(r'data-step="([\d,]+)"', text)]
    assert {1, 4} <= set(steps)
    assert page.row("trainer.max_steps", "4")
    assert "Finished." in text
    assert not [address for address in page.addresses if not address.startswith(("data:image/", "#"))]
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", text)


def test_a_checkpoint_that_was_kept_is_used_where_it_is_named(resumed: RunFolder) -> None:
    folder = resumed.path / "checkpoints"
    best = read_json(folder / "best.json")["best"]
    names = {"best.ckpt", "last.ckpt", "previous.ckpt", "step_00000002.ckpt", "step_00000004.ckpt"}
    assert {path.name for path in folder.glob("*.ckpt")} == names | {each["file"] for each in best}
    # The report lists them with what they were judged by; a milestone has what a validation at its step measured.
    rows = {row[0]: row[1:] for table in Page(resumed.path / "report.html").tables for row in table}
    assert rows["file"] == ["kept as", "step", "PSNR, dB mean ↑"]
    places = ["best of 2, also best.ckpt", "place 2 of 2"]
    for place, each in zip(places, best, strict=True):
        assert rows[each["file"]] == [place, str(each["step"]), f"{each['value']:.2f}"]
    value = next(each["value"] for each in best if each["step"] == 4)
    assert rows["step_00000004.ckpt"] == ["milestone", "4", f"{value:.2f}"]
    job = read_job([f"run={folder / 'step_00000002.ckpt'}", "data.num_test=2"], "")
    record = evaluate(job)["record"]
    assert (record["step"], record["checkpoint"], job.name) == (
        2,
        "step_00000002.ckpt",
        "step_00000002,data.num_test=2",
    )
    assert RunFolder.existing(folder / "best.ckpt", "run").load_checkpoint()["global_step"] == best[0]["step"]
    assert RunFolder.existing(folder / "last.ckpt", "run").load_checkpoint()["global_step"] == 4
    with pytest.raises(
        UserError, match=r"a run continues from its newest checkpoint: name the run folder, or begin .* init="
    ):
        checked_command(f"resume={folder / 'best.ckpt'}")


def test_no_page_names_a_folder_or_the_machine(resumed: RunFolder, tmp_path: Path) -> None:
    texts = [shown(resumed.path / "report.html")]
    for kind, name in (("md", "report.md"), ("latex", "report.tex")):
        report([f"run={resumed.path}", f"format={kind}", f"output={tmp_path / name}"])
        texts.append((tmp_path / name).read_text())
    for text in texts:
        assert not ABSOLUTE.findall(re.sub(r"</?\w[^>]*>", " ", text))
        assert str(Path.home()) not in text
        assert socket.gethostname() not in text
        assert "of somebody" not in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/my runs/x", "…/x"),
        ("Stopped; /work/runs/a/last.ckpt has the weights", "Stopped; …/last.ckpt has the weights"),
        ("/a/b.json, ~/c/d.json", "…/b.json, …/d.json"),
        ("[/data/train, /data/val]", "[…/train, …/val]"),
        ("resume=/work/x", "resume=…/x"),
        ("70 images/s, 1/2 and a / b of https://a.org/c/d", "70 images/s, 1/2 and a / b of https://a.org/c/d"),
    ],
)
def test_folders_are_taken_out_of_a_text(text: str, left: str) -> None:
    assert without_folders(text) == left


def test_a_training_does_not_fail_with_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(run: RunFolder, config: DictConfig) -> None:
        raise RuntimeError("out of paper")

    monkeypatch.setattr("launch.commands.report.read_report", fail)
    report_of_training(RunFolder(tmp_path), OmegaConf.create())
    assert capsys.readouterr().out.splitlines() == [
        f"no report was written (RuntimeError: out of paper); python report.py run={tmp_path} tries again"
    ]


def test_what_a_folder_does_not_hold_is_left_out(tmp_path: Path) -> None:
    old = fake_run(tmp_path / "old" / "run", name="old_run")
    for name in ("metrics.csv", ".hydra/config.yaml"):
        (old / name).unlink()
    (path,) = report([f"run={old}"])
    page = Page(path)
    assert page.row("sample", "20.00")
    assert "Curves" not in path.read_text()
    # What is damaged is named, and the rest is shown.
    (old / "run.json").write_text("{")
    report([f"run={old}"])
    assert "run.json is damaged" in path.read_text()
    (old / "checkpoints").mkdir(exist_ok=True)
    (old / "checkpoints" / "best.json").write_text('{"metric": "val/psnr/mean", "best": [{"file": "best_1.ckpt"}]}')
    report([f"run={old}"])
    assert "best.json is damaged (an entry of best is not whole)" in path.read_text()
    assert Page(path).row("sample", "20.00")
    with pytest.raises(UserError, match="is no run folder"):
        report([f"run={tmp_path / 'old'}"])


def test_tables_for_a_text(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", name="a_name|<b>&%")
    paths = report([f"run={run}", "format=md,latex"])
    markdown, latex = (path.read_text() for path in paths)
    assert "| sample | 20.00 |" in markdown
    assert markdown.startswith("# a\\_name\\|\\<b\\>&%\n")
    assert r"sample & 20.00 \\" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") > 2
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert not [line for line in rows if re.search(r"(?<!\\)[%#_]", line)]


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no browser is installed")
def test_a_page_is_printed_by_a_browser(tmp_path: Path) -> None:
    (path,) = report([f"run={fake_run(tmp_path / 'run')}", "format=pdf"])
    assert path.read_bytes().startswith(b"%PDF-")


def test_without_a_browser_a_page_is_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="format=pdf prints the page with Chromium or Chrome, and none is installed"):
        report([f"run={fake_run(tmp_path / 'run')}", "format=pdf"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["format=docx"], "format=docx is unknown"),
        (["formt=md"], "formt=md is no argument of report.py: did you mean format"),
        (["format=md,html", "output=x"], "makes several: leave out output="),
    ],
)
def test_a_slip_of_the_keyboard_is_a_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    with pytest.raises(UserError, match=sentence):
        report([f"run={run}", *arguments])


def test_long_curves_are_averaged(tmp_path: Path) -> None:
    rows = [{"step": str(step), "train/loss": str(1.0 / step), "val/loss": "nan"} for step in range(1, 1001)]
    (chart,) = training_charts(curves_of(rows), [500])
    (line,) = chart.lines
    assert len(line.points) <= MAX_POINTS
    assert line.points[-1].x == 1000
    assert line.points[0].y == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert chart.has_logarithmic_values


def test_a_logarithmic_axis_puts_decades_at_equal_distances() -> None:
    points = [Point(step, 10.0**-step) for step in range(4)]
    drawing = render(Chart("loss", "steps", [Line("a", points, 0)], has_logarithmic_values=True))
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawing)]
    assert [b - a for a, b in itertools.pairwise(heights)] == pytest.approx([heights[1] - heights[0]] * 3, abs=0.2)
    # A value of 0 has no place on it: the axis is linear then.
    assert render(Chart("loss", "steps", [Line("a", [Point(0, 0.0), Point(1, 1.0)], 0)], has_logarithmic_values=True))


def test_grids_are_thinned_out(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "steps" / "step=00000000.png")
    for step in range(1, 31):
        shutil.copy(tmp_path / "steps" / "step=00000000.png", tmp_path / "steps" / f"step={step:08d}.png")
    (slides,) = slides_of(tmp_path)
    assert (len(slides.steps), slides.num_drawn) == (MAX_STEPS, 31)
    assert (slides.steps[0], slides.steps[-1]) == (0, 30)
    with (tmp_path / "steps" / "step=00000015.png").open("ab") as file:
        file.truncate(MAX_BYTES)
    assert len(slides_of(tmp_path)[0].steps) < 31
    (tmp_path / "steps" / "step=00000030.png").unlink()
    (tmp_path / "steps" / "step=00000030.png").symlink_to("/etc/hostname")  # what a link points to is not shown
    assert slides_of(tmp_path)[0].steps[-1] == 29


def test_the_gap_of_samples_is_drawn_beside_that_of_the_posterior() -> None:
    values = {"calibration_gap/mean_of_1": 3.2, "calibration_gap/mean_of_4": 1.1, "calibration_gap/mean_of_16": 0.4}
    record = {"calibration": {"num_samples": 16, "rank_histograms": {"pixels/sample": [0.5, 0.2, 0.3]}}, "seed": 0}
    gap, ranks = plots_of(values, record)
    assert gap.lines["measured"] == [(1, 3.2), (4, 1.1), (16, 0.4)]
    assert gap.lines["posterior samples"][1] == (4, pytest.approx(10 * math.log10(1.25)))
    assert ranks.lines["pixels, sample"] == [(0, 0.5), (1, 0.2), (2, 0.3)]
    assert ranks.references == {"even": pytest.approx(1 / 3)}
    assert plots_of({"psnr/mean": 1.0}, {"evaluation": {"num_images": 3}}) == []


def test_a_sampling_that_diverged_stops_no_page(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", record={"calibration": {"num_samples": 4, "rank_histograms": {
        "pixels/sample": [math.nan] * 5, "mean/sample": [0.2, 0.2, 0.2, 0.2, 0.2],
    }}})  # fmt: skip
    result = read_json(run / "metrics.json")
    gaps = {"1": math.nan, "2": 1.8, "4": 1.0, "8": -math.inf}
    result["metrics"] |= {f"calibration_gap/mean_of_{number}": gap for number, gap in gaps.items()}
    result["metrics"] |= {"psnr/sample": math.nan, "spread/sample": math.nan, "spread_ratio/sample": math.inf}
    (run / "metrics.json").write_text(json.dumps(result))
    (path,) = report([f"run={run}", "format=html"])
    charts = {
        re.search('aria-label="([^"]*)"', svg)[1]: svg for svg in re.findall("<svg class=.chart.*?</svg>", shown(path))
    }
    gap, ranks = charts["Gap of the mean of K samples, dB"], charts["Rank of the truth among the samples"]
    assert gap.count('class="mark"') == 2  # measured, of four numbers of samples
    assert gap.count('class="ring"') == 4
    assert ranks.count("<title>pixels") == 0
    assert ranks.count("<title>mean") == 5
    assert not re.search(r"\b(nan|inf)\b", gap + ranks)
    assert "pixels, sample" not in shown(path)  # nor is there a key to it


def test_charts_of_other_scalars_are_kept(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (run / "metrics.csv").write_text("step,train/loss,mine/value,val/psnr/sample\n1,0.5,3,\n2,0.4,4,18.5\n")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(
        json.dumps(record | {"finished": False, "stopped": {"step": 2, "reason": "/a/b is full"}})
    )
    (path,) = report([f"run={run}"])
    text = path.read_text()
    assert "mine/value" in text
    assert "Stopped at step 2: …/b is full." in text
