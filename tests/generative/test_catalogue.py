"""The catalogue: what a metric says of itself holds for its variants and wherever its values are shown."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

import generative.metrics
from generative.metrics import catalogue
from generative.metrics.catalogue import Metric, Table, Variant, listed, metric_of, ordered
from generative.metrics.layouts import layouts

PAGE = Table("page", 5)
MADE = Metric(
    "sharpness", "Sharpness", "px", "lower", 1, PAGE, "a sentence", variants=(Variant("dark", ", dark", PAGE),)
)


def test_every_metric_says_what_it_is() -> None:
    assert {
        "psnr",
        "ssim",
        "fid",
        "fd",
        "label_accuracy",
        "token_accuracy",
        "codebook_usage",
        "spread",
    } <= listed().keys()
    for metric in listed().values():
        assert metric.words
        assert metric.definition
        assert metric.digits is not None
        assert metric.table.title != catalogue.OTHERS.title


def test_a_new_file_is_picked_up_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fresh_metric.py").write_text(
        "from generative.metrics.catalogue import Metric\nMETRICS = (Metric('mae', 'MAE', '', 'lower', 4),)\n"
    )
    monkeypatch.setattr(generative.metrics, "__path__", [*generative.metrics.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "generative.metrics.fresh_metric", raising=False)
    caches = (catalogue.listed, catalogue.metric_of)
    for cache in caches:
        cache.cache_clear()
    try:
        assert metric_of("mae").heading == "MAE\n↓"
        assert [row for layout in layouts({"mae/mean": 0.25}) for row in layout.rows] == [["mean", "0.2500"]]
    finally:
        monkeypatch.undo()
        sys.modules.pop("generative.metrics.fresh_metric", None)
        for cache in caches:
            cache.cache_clear()


@pytest.mark.parametrize(
    ("key", "name", "text"),
    [
        ("psnr", "PSNR, dB ↑", "11.00"),
        ("fd_label_classifier", "FD, label classifier ↓", "11.00"),
        ("fd_dino_v2_paired", "FD to clean, dino v2 ↓", "11.00"),
        ("fid_paired", "FID to clean ↓", "11.00"),
        ("label_accuracy_per_image_assisted", "Label accuracy per image, assisted ↑", "11.000"),
        ("label_accuracy_assisted_std", "Label accuracy, assisted, standard deviation", "11.000"),
        ("calibration_gap", "Gap of mean of K, dB", "11.00"),
        ("loss", "Loss ↓", "11.000"),
        ("penalty", "Penalty", "11"),
        ("psnr_of_edges", "Psnr of edges", "11"),  # nobody listed it: its direction is not guessed
        ("fid_label_classifier", "Fid label classifier", "11"),  # FID is Inception's alone
        ("Odd key!", "Odd key!", "11"),
    ],
)
def test_variants_follow_one_rule_and_the_unknown_is_plain(key: str, name: str, text: str) -> None:
    metric = metric_of(key)
    assert (metric.key, f"{metric.name} {metric.arrow}".strip(), metric.text(11.0)) == (key, name, text)
    assert metric.table.order == catalogue.OTHERS.order or metric.definition


def test_a_callback_asks_for_a_variant_and_gets_its_key() -> None:
    assert MADE.variant("dark", "std").key == "sharpness_dark_std"
    assert MADE.variant("dark", "std").spread_of == "sharpness_dark"
    for suffixes, features in ((("bright",), ""), ((), "inception")):
        with pytest.raises(ValueError, match="sharpness has no variant (bright|inception)"):
            MADE.variant(*suffixes, features=features)
    assert metric_of("fd").variant("paired", features="label_classifier") == metric_of("fd_label_classifier_paired")
    with pytest.raises(ValueError, match="better='up': choose higher, lower or None"):
        Metric("a", "A", better="up")  # type: ignore[arg-type]


def test_numbers_of_a_metric_have_the_same_decimals() -> None:
    values = {"psnr/a": 18.126, "psnr/b": 17.51, "psnr/c": 11.0, "psnr/d": math.nan, "psnr_std/a": 0.001, "odd/x": 11.0}
    first, last = layouts(values)
    assert first.rows == [["a", "18.13 ± <0.01"], ["b", "17.51"], ["c", "11.00"], ["d", "nan"]]
    assert (last.title, last.headings, last.rows) == ("other metrics", ["output", "Odd"], [["x", "11"]])
    (parts,) = layouts(dict.fromkeys(["odd/sample/b", "odd/mean/long", "odd/mean/c", "odd/mean"], 1.0))
    assert [row[0] for row in parts.rows] == ["mean", "mean/c", "mean/long", "sample/b"]


def test_headings_are_narrow() -> None:
    values = {"psnr/a": 1.0, "fd_label_classifier/a": 1.0, "spread/a": 1.0}
    assert [layout.headings for layout in layouts(values)] == [
        ["output", "PSNR\ndB ↑"], ["output", "FD\n↓"], ["output", "Spread"],
    ]  # fmt: skip
    assert metric_of("fd_label_classifier").heading == "FD, label classifier\n↓"  # where no table says which features


def test_everything_that_was_measured_is_in_some_table() -> None:
    values = {"zeta": 1.0, "zeta_std": 2.0, "pixel_std/x": 3.0, "token_accuracy/0.5": 0.5, "token_accuracy/0.25": 0.4,
              "label_accuracy/test": 0.6, "kd_label_classifier/mean": -1e-3, "psnr_std/lonely": 4.0, "psnr/x": 5.0}  # fmt: skip
    tables = layouts(values)
    assert {table.title for table in tables} >= {"test", "label accuracy", "token accuracy", "other metrics"}
    shown = "\n".join(cell for table in tables for row in table.rows for cell in row)
    for text in ("1 ± 2", "3", "0.500", "0.400", "0.600", "-0.00100", "4.00", "5.00"):
        assert text in shown
    (shares,) = [table for table in tables if table.title == "token accuracy"]
    assert [shares.headings[0], *(row[0] for row in shares.rows)] == ["masked share", "0.25", "0.5"]


def test_metrics_stand_in_the_order_of_their_tables() -> None:
    keys = ["zeta", "fid", "fid_paired", "kid", "ssim", "psnr", "label_accuracy_std", "label_accuracy", "psnr_hole"]
    order = ["psnr", "psnr_hole", "ssim", "label_accuracy", "fid_paired", "fid", "kid", "zeta"]
    assert [metric.key for metric in ordered(keys)] == order
    with_spreads = [metric.key for metric in ordered(keys, has_spreads=True)]
    assert with_spreads == [*order[:4], "label_accuracy_std", *order[4:]]
