"""A stop is told as one, whatever a library makes of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from generative.networks.trained import RefusedError
from launch.errors import UserError, as_user_error, reported


def stopped_in_a_library() -> None:
    try:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            OmegaConf.create([])
        finally:
            raise AttributeError("half done")
    except AttributeError as error:
        raise TypeError("wrapped") from error


def test_a_stop_in_the_middle_of_a_library_is_told_as_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """Tidying up what the signal left half done fails in its place, as it can in OmegaConf."""
    with pytest.raises(SystemExit) as exit_, reported():
        stopped_in_a_library()
    assert exit_.value.code == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert told.startswith("Stopped by SIGTERM while no training step was running")
    assert told.endswith("(then TypeError: wrapped)\n")  # nothing is hidden, should it be a fault of its own


def test_an_error_without_a_stop_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        1 / 0  # noqa: B018


def test_a_path_that_the_system_refuses_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, reported():
        Path("x" * 5000).stat()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith("xxx: File name too long; check the path, and who may read it.\n")


@pytest.mark.parametrize("kind", [UserError, RefusedError, ValueError])
def test_what_a_resolver_refuses_is_told_without_the_words_around_it(kind: type[Exception]) -> None:
    def resolver() -> None:
        raise kind("space=RUN is no autoencoder: name another run.")

    OmegaConf.register_new_resolver("refusing", resolver)
    try:
        with pytest.raises(UserError) as caught, as_user_error():
            OmegaConf.create({"space": "${refusing:}"}).space  # noqa: B018
    finally:
        OmegaConf.clear_resolver("refusing")
    assert str(caught.value) == "space=RUN is no autoencoder: name another run."
