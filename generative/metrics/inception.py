"""The Inception v3 behind FID: where its weights are found, and how they are loaded without running what is in them.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import urllib.request
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from generative.metrics.features import INCEPTION, FeatureExtractor, Features, to_uint8

INCEPTION_FILE = URL_INCEPTION_V3.rpartition("/")[2]  # ends in the first digits of the file's SHA-256
INCEPTION_LAYERS = ["2048", "logits_unbiased"]  # what FID, KID, precision and recall use; what the score uses
INCEPTION_BATCH = 64  # images at a time: 299 x 299 activations take 6 MB an image
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer
WEIGHTS_KEY = "callbacks.generation.inception.weights"


class WeightsError(Exception):
    """An extractor's weights cannot be used; the message names the file and the remedy in one sentence."""


class WeightsMissingError(WeightsError):
    """An extractor's weights are nowhere to be found."""


class InceptionExtractor(FeatureExtractor):
    """The Inception v3 of 2015-12-05 that FID is defined on, in torch-fidelity's port; grey images become RGB.

    Args:
        weights: File with torch-fidelity's weights; nothing in it is executed, and ``WeightsError`` is raised if it holds
            anything else.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__(
            INCEPTION,
            _load_inception(Path(weights)),
            "bilinear to 299 x 299 without antialiasing, as TensorFlow 1.x has it",
            f"torch-fidelity {version('torch-fidelity')}",
        )

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> Features:
        """See ``FeatureExtractor.__call__``; D is 2048, K is 1008."""
        image = to_uint8(image_BCHW)
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        parts = [self.network(part) for part in image.split(INCEPTION_BATCH)]
        return Features(*(torch.cat(layer) for layer in zip(*parts, strict=True)))


def find_inception_weights(weights: str | Path | None, folder: Path, download: bool = True) -> Path:
    """Find torch-fidelity's Inception weights.

    Args:
        weights: The configured file, which must then exist, or None for the file of torch-fidelity in ``folder``.
        folder: Where that file is looked for and downloaded to.
        download: Whether to download a file that is not there; otherwise it is missing.

    Returns:
        The file.

    Raises:
        WeightsMissingError: If there is no file and none could be downloaded.
    """
    if weights is not None:
        if Path(weights).is_file():
            return Path(weights)
        raise WeightsMissingError(
            f"{WEIGHTS_KEY}={weights} does not exist: download {URL_INCEPTION_V3} to that place, or set the key to "
            f"null to have it looked for in {folder} and downloaded."
        )
    path, reason = folder / INCEPTION_FILE, "no download was tried"
    if not path.is_file() and download:
        try:
            _download(URL_INCEPTION_V3, path)
        except (OSError, HTTPException) as error:
            reason = f"the download failed: {error}"
    if path.is_file():
        return path
    raise WeightsMissingError(
        f"the Inception weights are not at {path} ({reason}): download {URL_INCEPTION_V3} to that place on a machine "
        f"with internet, or set {WEIGHTS_KEY}=FILE."
    )


def _download(url: str, path: Path) -> None:
    """Write a file whole or not at all, after comparing its SHA-256 with the digits at the end of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download.") as folder:
        temporary = Path(folder) / path.name
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer, temporary.open("wb") as file:
            shutil.copyfileobj(answer, file)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(path.stem.rpartition("-")[2]):
            raise OSError(f"{url} gave a file with the wrong SHA-256 {digest[:8]}")
        temporary.replace(path)


def _load_inception(path: Path) -> nn.Module:
    remedy = f"replace it by {URL_INCEPTION_V3}, or set {WEIGHTS_KEY} to another file"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common error for damaged files and refused pickles
        raise WeightsError(f"{path} is damaged or holds more than weights, and was not loaded: {remedy}.") from error
    # torch-fidelity unpickles whatever file it is given, so it is given a copy of what was found to be tensors only.
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    try:
        return FeatureExtractorInceptionV3(INCEPTION, INCEPTION_LAYERS, copy)
    except (RuntimeError, TypeError, AttributeError) as error:  # load_state_dict's
        raise WeightsError(f"{path} holds other weights than torch-fidelity's Inception v3: {remedy}.") from error
