"""The study: its record, its plan, and a tiny one from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.errors import UserError
from launch.study.record import NAME, Prediction, Side, Study, StudyRun, read_study

STUDY = Study(
    "scenes",
    "coffee",
    (0, 1),
    240.0,
    {"budget": {"seconds": 240}},
    (
        StudyRun("ddpm", "generate", "cell", "scenes", 0, "runs/ddpm_generate_0", 240.0),
        StudyRun("tokens", "restore", "cell", "scenes", 1, "runs/tokens_restore_1", 180.0, 60.0, 500, 64.5, 1_630_000),
    ),
    (Prediction("a leads", "psnr", Side("tokens", "restore", output="mean"), Side(value=20.0)),),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    STUDY.write(tmp_path)
    assert read_study(tmp_path) == STUDY
    assert STUDY.predictions[0].above.matches(STUDY.runs[1])
    assert not STUDY.predictions[0].above.matches(STUDY.runs[0])
    assert not STUDY.predictions[0].below.matches(STUDY.runs[0])


def test_a_folder_without_the_record_is_none_of_a_study(tmp_path: Path) -> None:
    assert read_study(tmp_path) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"steps": 500', '"steps": "many"'),
        ('"cells"', '"cell"'),
        ('"claim": "a leads",', ""),
        ('"psnr"', "7"),
        ("{", "["),
    ],
)
def test_a_damaged_record_is_told(tmp_path: Path, old: str, new: str) -> None:
    STUDY.write(tmp_path)
    path = tmp_path / NAME
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match="is damaged"):
        read_study(tmp_path)
