"""The Inception v3 behind FID: where its weights are found, and how they are loaded without running what is in them.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from files.pixels import to_bytes
from generative.float32 import whole_float32
from generative.metrics.features import INCEPTION, FeatureExtractor, Features
from generative.weight_files import WeightsError, find_weights, load_tensors
from generative.weight_files import WeightsMissingError as WeightsMissingError  # what ``find_inception_weights`` raises

INCEPTION_FILE = URL_INCEPTION_V3.rpartition("/")[2]  # ends in the first digits of the file's SHA-256
INCEPTION_LAYERS = ["2048", "logits_unbiased"]  # what FID, KID, precision and recall use; what the score uses
INCEPTION_BATCH = 64  # images at a time: 299 x 299 activations take 6 MB an image
WEIGHTS_KEY = "callbacks.generation.inception.weights"


class InceptionExtractor(FeatureExtractor):
    """The Inception v3 of 2015-12-05 that FID is defined on, in torch-fidelity's port; grey images become RGB.

    Args:
        weights: File with torch-fidelity's weights; nothing in it is executed, and ``WeightsError`` is raised if it holds
            anything else.
        key: Config key of ``weights``, for messages.
    """

    def __init__(self, weights: str | Path, key: str = WEIGHTS_KEY) -> None:
        super().__init__(
            INCEPTION,
            _load_inception(Path(weights), key),
            "bilinear to 299 x 299 without antialiasing, as TensorFlow 1.x has it",
            f"torch-fidelity {version('torch-fidelity')}",
        )

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> Features:
        """D is 2048, K is 1008."""
        image = to_bytes(image_BCHW)
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        with whole_float32(image.device):
            parts = [self.network(part) for part in image.split(INCEPTION_BATCH)]
        return Features(*(torch.cat(layer) for layer in zip(*parts, strict=True)))


def find_inception_weights(
    weights: str | Path | None, folder: Path, download: bool = True, key: str = WEIGHTS_KEY
) -> Path:
    """Find torch-fidelity's Inception weights; see ``find_weights``, also for what is raised.

    Args:
        weights: The configured file, which must then exist, or None for the file of torch-fidelity in ``folder``.
        folder: Where that file is looked for and downloaded to.
        download: Whether to download a file that is not there; otherwise it is missing.
        key: Config key of ``weights``, for messages.
    """
    return find_weights("Inception", key, weights, URL_INCEPTION_V3, folder, download)


def _load_inception(path: Path, key: str) -> nn.Module:
    remedy = f"replace it by {URL_INCEPTION_V3}, or set {key} to another file"
    state = load_tensors(path, remedy)
    # torch-fidelity unpickles whatever file it is given, so it is given a copy of what was found to be tensors only.
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    try:
        return FeatureExtractorInceptionV3(INCEPTION, INCEPTION_LAYERS, copy)
    except (RuntimeError, TypeError, AttributeError) as error:  # load_state_dict's
        raise WeightsError(f"{path} holds other weights than torch-fidelity's Inception v3: {remedy}.") from error
