"""Comparisons: which evaluations a command line means, what they are called, and the table of means over the seeds."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import rich.console
from omegaconf import OmegaConf

from launch import evaluation
from launch.compare import combinations as combining
from launch.compare.combinations import check_comparable, combinations, run_labels
from launch.compare.evaluations import Job
from launch.errors import UserError
from launch.names import NAME_LENGTH, file_name
from launch.results import Result, Row, known_pixels_note, print_table, rows_of, write_csv
from launch.run_folder import RunFolder, write_json

SEEDS = ("evaluation_seed",)


def test_combinations_are_hydras() -> None:
    lines = combinations(["run=A,B", "x=1,2", "y=[3,4]", "+z=range(0,2)", "~w", "name=a,b"])
    assert len(lines) == 8
    assert lines[0] == ["run=A", "x=1", "y=[3,4]", "+z=0", "~w", "name=a,b"]
    assert lines[-1] == ["run=B", "x=2", "y=[3,4]", "+z=1", "~w", "name=a,b"]
    assert combinations(["x=1,1"]) == [["x=1"]]
    assert combinations(["x='a,b',c"]) == [["x='a,b'"], ["x=c"]]  # quotes as Hydra reads them again


def test_run_folders_are_paths_and_not_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0_a=1,b=2").mkdir()
    assert combinations(["run=0_a=1,b=2"]) == [["run=0_a=1,b=2"]]
    assert combinations(["run='0_a=1,b=2','c d'"]) == [["run=0_a=1,b=2"], ["run=c d"]]
    with pytest.raises(UserError, match="run=\"'FOLDER','FOLDER'\""):
        combinations(["run=0_a=1,1_a=2"])


@pytest.mark.parametrize("argument", ["x=interval(0,1)", "x=1,,2", "sampler=glob(*)"])
def test_what_cannot_be_enumerated_is_one_sentence(argument: str) -> None:
    with pytest.raises(
        UserError, match=r"is not of the form key=value,value|not a list of values: write key="
    ) as caught:
        combinations([argument])
    assert "\n" not in str(caught.value)


def test_long_names_stay_apart() -> None:
    common = [f"a.very.long.key.of.the.config.{i}=value" for i in range(8)]
    names = {file_name([*common, f"evaluation_seed={seed}"]) for seed in range(3)}
    assert len(names) == 3
    assert all(len(name) == NAME_LENGTH for name in names)
    assert file_name(["a=[1,2]", "b=x/y"]) == "a=_1,2_,b=x_y"
    assert file_name([]) == "default"


def job(folder: Path, *arguments: str, degradation: object = None, record: dict | None = None, seed: int = 0) -> Job:
    write_json(folder / "run.json", record or {"name": "exp", "data": {"fingerprint": "ab"}})
    data = {"name": "digits", "image_size": 32, "channels": 1, "evaluation_seed": "${evaluation_seed}"}
    config = OmegaConf.create({"data": data, "evaluation_seed": seed, "degradation": degradation})
    return Job(RunFolder(folder), config, "ema", list(arguments), "n", [f"run={folder}", *arguments])


def test_runs_must_agree_where_their_overrides_do(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    block, brush = ({"steps": {name: {"size": 1}}, "_target_": "x"} for name in ("block", "brush"))
    check_comparable([job(f, "d=1", degradation=block) for f in (a, b)])
    # each pair agrees, although the degradations of one run differ
    check_comparable(
        [job(f, f"d={d['_target_']}{i}", degradation=d) for f in (a, b) for i, d in enumerate((block, brush))]
    )
    with pytest.raises(UserError, match=r"degradation\.steps differs \(block and brush\)"):
        check_comparable([job(a, degradation=block), job(b, degradation=brush)])
    with pytest.raises(UserError, match=r"degradation differs \(block and none\): give the same degradation="):
        check_comparable([job(a, degradation=block), job(b)])
    with pytest.raises(UserError, match=r"evaluation_seed differs \(0 and 3\): give the same evaluation_seed="):
        check_comparable([job(a), job(b, seed=3)])
    other = {"data": {"fingerprint": "cd"}}
    with pytest.raises(UserError, match=r"data\.fingerprint differs \(ab and cd\)"):
        check_comparable([job(a), job(b, record=other)])
    check_comparable(
        [job(a, "data.num_train=9"), job(b, "data.num_train=9", record=other)]
    )  # known once the data are read


def test_an_evaluation_of_other_images_is_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def datamodule(config: object) -> SimpleNamespace:
        read.append(config)
        return SimpleNamespace(record=lambda: {"fingerprint": "ef"})

    monkeypatch.setattr(combining, "datamodule_for", datamodule)
    for overrides, fingerprint, is_same in (
        ((), "ab", True),
        (("sampler.num_steps=2",), "cd", False),
        (("data.root=/x",), "ef", True),
        (("data.root=/x",), "ab", False),
    ):
        record = {"data": {"fingerprint": fingerprint}}
        assert combining._is_of_same_data(job(tmp_path / "a", *overrides), record) == is_same
    assert len(read) == 2  # only where the command line says which images


def test_labels_are_as_short_as_tells_runs_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "1", tmp_path / "x" / "2", tmp_path / "y" / "2"]
    for folder in folders:
        write_json(folder / "run.json", {"name": folder.parent.name})
    runs = [RunFolder(folder) for folder in folders]
    assert list(run_labels([runs[0], runs[2], runs[0]]).values()) == ["x", "y"]
    assert list(run_labels(runs[:2]).values()) == ["1", "2"]
    assert list(run_labels(runs).values()) == [str(folder) for folder in folders]


SEEDED = [(0, 9.0), (0, 11.0), (1, 20.0)]


def results() -> list[Result]:
    def one(run: str, steps: str, seed: str, psnr: float, **more: float) -> Result:
        choices = {"steps": steps, "evaluation_seed": seed, "fixed": "f"}
        return Result(run, f"/{run}", choices, {"psnr/sample": psnr, "zeta/9": psnr, **more})

    return [
        one("a", "4", "0", 20.0, **{"psnr/mean": 5.0}),
        one("a", "4", "1", 22.0),
        one("a", "8", "0", 30.0),
        one("b", "4", "0", 40.0),
    ]


def test_rows_are_means_over_the_seeds() -> None:
    rows = {(row.name, row.choices["steps"]): row for row in rows_of(results(), SEEDS)}
    row = rows["a", "4"]
    assert len(row.entries) == 2
    assert row.mean("psnr/sample") == 21.0
    assert row.seed_deviation("psnr/sample") == pytest.approx(2**0.5)
    assert "evaluation_seed" not in row.choices
    assert row.seed_deviation("psnr/mean") is None  # measured once
    assert row.mean("psnr/none") is None
    assert rows["b", "4"].mean("psnr/sample") == 40.0
    assert row.outputs == ["9", "mean", "sample"]


def test_a_row_averages_over_training_seeds_what_each_averages_over_its_own_evaluations() -> None:
    row = Row("a", {}, [Result("a", "/a", {}, {"psnr/sample": v, "psnr_std/sample": 1.0}, s) for s, v in SEEDED])
    assert row.mean("psnr/sample") == pytest.approx(15.0)
    assert row.deviation("psnr/sample") == pytest.approx(math.sqrt(50))
    one = Row("a", {}, row.entries[:1])
    assert one.seed_deviation("psnr/sample") is None
    assert one.deviation("psnr/sample") == 1.0  # what the evaluation itself recorded


def test_the_file_has_a_column_for_what_varies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "table.csv"
    write_csv(results(), SEEDS, path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    columns = [
        "run",
        "folder",
        "steps",
        "overrides",
        "output",
        "num_seeds",
        "psnr",
        "zeta",
        "psnr_seed_std",
        "zeta_seed_std",
    ]
    assert list(rows[0]) == columns
    assert rows[2] | {"psnr_seed_std": "", "zeta_seed_std": ""} == dict.fromkeys(columns, "") | {
        "run": "a", "folder": "a", "steps": "4", "overrides": "fixed=f", "output": "sample", "num_seeds": "2",
        "psnr": "21.0",
    }  # fmt: skip
    print_table(results(), SEEDS, path)
    printed = capsys.readouterr().out
    assert "21.00 ± 1.41" in printed
    assert f"comparison: {path}" in printed
    assert "fixed" not in printed


@pytest.mark.parametrize("columns", [80, 120])
def test_no_digit_of_a_result_is_cut_off(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = rich.console.Console, io.StringIO()
    monkeypatch.setattr(evaluation, "Console", lambda **_: console(file=out, width=columns, force_terminal=True))
    keys = ["psnr", "psnr_pooled", "psnr_hole", "ssim", "mse", *(["psnr_channel", "psnr_luma"] if columns > 80 else [])]
    evaluation.print_result({f"{key}/sample": 10 + number / 8 for number, key in enumerate(keys)}, "folder")
    for text in ("10.00", "10.12", "10.25", "10.375", "10.50000"):
        assert text in out.getvalue()


def test_the_line_of_the_run_folder_has_its_name_as_it_is(capsys: pytest.CaptureFixture) -> None:
    evaluation.print_result({}, "outputs/[a] [/b] :smile:")
    assert capsys.readouterr().out == "run folder: outputs/[a] [/b] :smile:\n"


def test_known_pixels_put_back_in_some_results_alone_are_named() -> None:
    old = ("maskgit", {"feather": 0})  # recorded before it could be chosen
    kept, painted, drawn = ("flow", {"reimpose_known": True}), ("flow", {"reimpose_known": False}), ("ddpm", {})
    note = known_pixels_note([old, painted, drawn], ["psnr_hole/sample", "psnr/sample"])
    assert note.startswith("The known pixels are put back in maskgit and painted anew in flow: ")
    assert "only psnr_hole is fair" in note
    assert known_pixels_note([old, kept, drawn], ["psnr_hole/sample"]) == ""
    assert known_pixels_note([old, painted], ["psnr/sample"]) == ""  # no holes
