"""Errors that a user can fix: one clear sentence on standard error and a non-zero exit, no traceback."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, OverrideParseException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from callbacks.checkpoint import Interrupted, asked_stop, stop_signals
from callbacks.guards import NonFiniteLossError, SpikeError
from callbacks.measuring import SetupError
from callbacks.rank_agreement import RankDisagreementError
from datamodules.damage import DamagedImageError
from datamodules.encoded_cache import EncodedCacheError
from datamodules.shards.files import ShardError
from files.held import FolderGoneError
from files.whole import NO_ROOM, WriteError
from generative.checks import near_matches as near_matches
from generative.export import ExportError
from generative.weight_files import WeightsError
from generative.weights import LoadMemoryError, is_out_of_memory
from launch.output import Output, as_typed, is_closed_pipe, lost, watched_output

EXIT_USER_ERROR = 2
EXIT_RUN_FAILED = 3
LOG_NAME = "error.log"
MENDABLE = (
    ValueError, TypeError, OSError, RuntimeError, ImportError, LookupError, ArithmeticError, HydraException,
    OmegaConfBaseException, MisconfigurationException,
)  # fmt: skip

_RESOLVING = re.compile(r"\w+ raised while resolving interpolation: (.*?)( full_key: .*)?")  # OmegaConf's words around


class UserError(Exception):
    """Bad config, data or files; the message names the key or file and the remedy in one sentence."""


class JobFailedError(Exception):
    """A job of a sweep ended with an error; the others continue."""


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line.

    Returns:
        The message without line breaks.
    """
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)  # a file of others may say what a terminal obeys


@contextmanager
def as_user_error() -> Iterator[None]:
    """Turn what bad values raise while objects are built or data is read into a ``UserError``.

    Raises:
        UserError: With the message of the innermost cause.
        InstantiationException: If the cause is none that a user can fix.
    """
    try:
        yield
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):  # that one is a sentence already
            cause = cause.__cause__
        if isinstance(cause, (*MENDABLE, UserError)):
            key = re.search(r"full_key: (\S+)", str(error))
            where = f" (config key: {key.group(1)})" if key else ""
            raise UserError(
                one_line(cause).replace(key.group(0), "").strip() + where if key else one_line(cause)
            ) from error
        raise
    except (ValueError, OSError, HydraException, OmegaConfBaseException, MisconfigurationException) as error:
        said = one_line(error)
        sentence = _RESOLVING.fullmatch(said)
        raise UserError(sentence.group(1) if sentence else said) from error


class RunFailedError(Exception):
    """A run ended with an error after steps were made; the message names the checkpoint to continue from."""


@contextmanager
def explained(folder: Path, overrides: list[str]) -> Iterator[None]:
    """Say an unexpected error of a run in one sentence, and keep its traceback: in ``error.log`` of a run that has begun.

    Before the first step is made, what was set on the command line is named as the likely cause: a value that no check knows
    to be bad. An untouched experiment that cannot begin has a fault of ours: its traceback is let through.

    Args:
        folder: The run folder.
        overrides: What was set on the command line.

    Raises:
        UserError: An error before the first step, of a run with overrides.
        RunFailedError: An error after it.
    """
    try:
        yield
    except Exception as error:
        changed = [o for o in overrides if not o.startswith(("experiment=", "resume=", "hydra."))]
        notes, rank = getattr(error, "__notes__", []), getattr(error, "lost_rank", None)
        if exit_code(error) is not None or not (changed or notes or rank):
            raise
        said = rank or f"{type(error).__name__}: {one_line(error).rstrip('.')}"
        log = f"the traceback is in {_keep_traceback(folder, error)}"
        if notes or rank:
            raise RunFailedError(f"{said}{notes[0] if notes else ' before the first step'}; {log}.") from error
        raise UserError(f"{said}; the cause may be one of {' '.join(changed)}; {log}.") from error


def _keep_traceback(folder: Path, error: BaseException) -> Path:
    text, rank = "".join(traceback.format_exception(error)), os.environ.get("LOCAL_RANK", "0")
    name = LOG_NAME if rank == "0" else f"rank_{rank}.{LOG_NAME}"
    if any(folder.glob("*.json")):  # else nothing is kept of it: see RunFolder.begun
        with suppress(OSError):  # the disk may be full
            (folder / name).write_text(text)
            return folder / name
    path = Path(tempfile.mkdtemp(prefix="triptych-")) / name
    path.write_text(text)
    return path


def exit_code(error: BaseException) -> int | None:
    """Return the exit code of an expected error.

    Args:
        error: What ended the run.

    Returns:
        2 for bad input, 3 for a run that failed, 128 + signal for an asked stop (141 for a closed pipe), None for an
        unexpected error.
    """
    if isinstance(error, Interrupted):
        full = isinstance(sys.stdout, Output) and sys.stdout.error and not is_closed_pipe(sys.stdout.error)
        return EXIT_RUN_FAILED if error.signal_number == signal.SIGPIPE and full else 128 + error.signal_number
    failures = (
        NonFiniteLossError, SpikeError, RankDisagreementError, WriteError, JobFailedError, DamagedImageError, ShardError,
        RunFailedError, FolderGoneError,
    )  # fmt: skip
    if (
        isinstance(error, failures)
        or (isinstance(error, OSError) and error.errno in NO_ROOM)
        or is_out_of_memory(error)
    ):
        return EXIT_RUN_FAILED
    expected = (
        UserError,
        ExportError,
        SetupError,
        WeightsError,
        EncodedCacheError,
        ConfigCompositionException,
        OverrideParseException,
    )
    return EXIT_USER_ERROR if isinstance(error, expected) else None


@contextmanager
def reported() -> Iterator[None]:
    """Print expected errors as one line and exit with their code; let the others through with their traceback.

    A path that the system refuses to look at is one of them, and a signal that asks for a stop while no step is running, such
    as while data are read; during the steps ``LastCheckpoint`` answers it.
    """
    handlers = {number: signal.signal(number, _stop) for number in stop_signals()}
    try:
        with watched_output() as output:
            try:
                yield
                output.flush()
            except BaseException as error:
                code = exit_code(error)
                after = ""
                if code is None and (stop := asked_stop(error)):
                    after = f"then {type(error).__name__}: {one_line(error)}"
                    error, code = stop, exit_code(stop)
                if code is None and isinstance(error, OSError) and error.filename is not None:
                    error = UserError(f"{error.filename}: {error.strerror}; check the path, and who may read it.")
                    code = EXIT_USER_ERROR
                if code is None:
                    raise
                text = one_line(error)
                if is_out_of_memory(error) and not isinstance(error, LoadMemoryError | UserError):
                    text = (
                        f"The memory is too small ({text.rstrip('.')}): use a smaller batch or network, or a machine with "
                        "more."
                    )
                _say(f"error: {text}" if code == EXIT_USER_ERROR else text, after or lost(output.error))
                sys.exit(code)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _say(sentence: str, why: str) -> None:
    with suppress(OSError):  # standard error may go the way of standard output
        print(as_typed(f"{sentence} ({why})" if why else sentence), file=sys.stderr, flush=True)  # noqa: T201


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number, " while no training step was running; what was saved before is whole")
