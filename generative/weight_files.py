"""Files of published weights: where they are found, their one download, and loading without running what is in them."""

from __future__ import annotations

import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from files.whole import WriteError, whole_file
from generative.weights import NotLoadedError, read_checkpoint

DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer
_CHUNK = 2**20


class WeightsError(ValueError):
    """Published weights cannot be used; the message names the file and the remedy in one sentence."""


class WeightsMissingError(WeightsError):
    """Published weights are nowhere to be found."""


def find_weights(
    what: str, key: str, weights: str | Path | None, url: str, folder: Path, download: bool = True
) -> Path:
    """Find a file of weights.

    Args:
        what: Whose weights, for messages.
        key: Config key of ``weights``, for messages.
        weights: The configured file, which must then exist, or None for the published one in ``folder``.
        url: The published file; its name ends in the first digits of its SHA-256, as in ``vgg16-397923af.pth``.
        folder: Where that file is looked for and downloaded to.
        download: Whether to download a file that is not there; otherwise it is missing.

    Raises:
        WeightsMissingError: If there is no file and none could be downloaded.
    """
    if weights is not None:
        if Path(weights).is_file():
            return Path(weights)
        raise WeightsMissingError(
            f"{key}={weights} does not exist: download {url} to that place, or set the key to null to have it looked "
            f"for in {folder} and downloaded."
        )
    path, reason = folder / url.rpartition("/")[2], "no download was tried"
    if not path.is_file() and download:
        try:
            _download(url, path)
        except (OSError, WriteError, HTTPException, ValueError) as error:
            reason = f"the download failed: {error}"
    if path.is_file():
        return path
    raise WeightsMissingError(
        f"the {what} weights are not at {path} ({reason}): download {url} to that place on a machine with internet, or "
        f"set {key}=FILE."
    )


def load_tensors(path: Path, remedy: str) -> Any:
    """Load a file of tensors and plain containers; nothing in it is executed.

    Args:
        remedy: What to do about a file that cannot be used, for the message.

    Returns:
        Its content on the CPU.

    Raises:
        WeightsError: If the file is damaged or holds anything else.
    """
    try:
        return read_checkpoint(path)
    except NotLoadedError as error:
        raise WeightsError(f"{path} is damaged or holds more than weights, and was not loaded: {remedy}.") from error


def _download(url: str, path: Path) -> None:
    """Write a file whole or not at all, after comparing its SHA-256 with the digits at the end of its name."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer, whole_file(path) as file:
        while chunk := answer.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        if not digest.hexdigest().startswith(path.stem.rpartition("-")[2]):
            raise ValueError(f"{url} gave a file with the wrong SHA-256 {digest.hexdigest()[:8]}")
