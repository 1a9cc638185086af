"""Progress is readable in a log file and on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from callbacks import Evaluation, TrainingProgress
from callbacks.progress import format_duration


def _progress(is_terminal: bool, **options) -> tuple[TrainingProgress, io.StringIO]:
    progress, text = TrainingProgress(**options), io.StringIO()
    progress.console = Console(
        file=text, force_terminal=is_terminal, force_interactive=is_terminal, width=140, highlight=False
    )
    return progress, text


def test_plain_lines(restorer, data, make_trainer) -> None:
    progress, text = _progress(is_terminal=False, every_percent=20)
    trainer = make_trainer(Evaluation(), progress)
    trainer.fit(restorer, data)
    trainer.test(restorer, data, verbose=False)
    lines = text.getvalue().splitlines()
    assert lines[0] == "training from step 0 to 10"
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split("  ")[0] for line in steps] == [f"step {step}/10" for step in (2, 4, 6, 8, 10)]
    pattern = (
        r"step 8/10  80 %  loss \d\.\d{3}  [\d,]+ images/s  remaining 0:0\d  val PSNR mean 26.02 dB  val PSNR sample"
    )
    assert re.match(pattern, steps[3])
    assert re.match(r"validation at step 5  10 images in 0:0\d  val PSNR mean 26.02 dB", lines[3])
    assert lines[-1].startswith("test  10 images in 0:0")
    assert "\x1b" not in text.getvalue()


def test_live_bar(restorer, data, make_trainer) -> None:
    progress, text = _progress(is_terminal=True)
    trainer = make_trainer(Evaluation(), progress)
    trainer.fit(restorer, data)
    assert re.search(r"training.*10/10.*loss \d\.\d{3}.*remaining 0:00.*val PSNR mean 26\.02 dB", text.getvalue())
    assert progress._live is None
    trainer.test(restorer, data, verbose=False)
    assert re.search(r"test.*3/3.*10 images", text.getvalue())


def test_lines_of_the_module_go_through_the_progress(restorer, data, make_trainer) -> None:
    """As that of callbacks.throughput, in the middle of the training."""
    progress, text = _progress(is_terminal=False)
    restorer.on_train_batch_start = lambda batch, batch_idx: restorer.print("a line")
    make_trainer(progress).fit(restorer, data)
    assert text.getvalue().count("a line\n") == 10


def test_other_ranks_are_silent(restorer, data, make_trainer) -> None:
    progress, text = _progress(is_terminal=False)
    progress.disable()
    make_trainer(progress).fit(restorer, data)
    assert text.getvalue() == ""


def test_the_terminal_is_given_back_after_an_exception(restorer, data, make_trainer) -> None:
    progress, _ = _progress(is_terminal=True)
    restorer.validation_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        make_trainer(progress).fit(restorer, data)
    assert progress._live is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (372, "6:12"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
