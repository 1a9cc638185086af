"""The perceptual loss of VQGAN (Esser et al., arXiv 2012.09841, sec. 3.1): LPIPS (Zhang et al., arXiv 1801.03924, eq. 1).

    d(x, y) = sum_l 1 / (H_l W_l) sum_hw || w_l * (f_l(x)_hw - f_l(y)_hw) ||^2

f_l are the features of VGG16 (Simonyan and Zisserman, arXiv 1409.1556) after the last ReLU of its block l = 1..5, scaled
to unit length over the channels. The squares of w_l are LPIPS's learnt heads, which torchmetrics brings. With 1 in their
place it is the paper's baseline, a plain distance of VGG's features: another number, not to be compared with LPIPS.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from files.cache import cache_folder
from generative.frozen import Frozen
from generative.weight_files import WeightsError, WeightsMissingError, find_weights, load_tensors
from generative.weights import weights_hash

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
TORCHMETRICS_HEADS = "functional/image/lpips_models/vgg.pth"  # the same file
HEADS_URL = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth"
WEIGHTS_KEY, HEADS_KEY = "perceptual.weights", "perceptual.heads"
LEARNT = "learnt"  # value of the key that means torchmetrics' copy
PREFIX = "features."  # of the convolutions in torchvision's file; the classifier is not needed
LAST_RELU = (3, 8, 15, 22, 29)  # relu1_2, 2_2, 3_3, 4_3 and 5_3 in torchvision's vgg16().features
CHANNELS = (64, 128, 256, 512, 512)  # of the features after them
LEAST_SIZE = 16  # pixels: four poolings come before relu5_3
# LPIPS's form of ImageNet's mean and standard deviation, for images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-8  # LPIPS's, below the root: features of nothing but zeros have a gradient there


class PerceptualLoss(Frozen["_VGG16"]):
    """A distance of images that follows what people see as similar.

    Args:
        weights: torchvision's ``vgg16-397923af.pth``, or None for the file in the cache folder, downloaded once.
        heads: Learnt weights of the channels: ``"learnt"`` for LPIPS's that come with torchmetrics, or a file like the LPIPS
            authors' ``vgg.pth``; None for 1, which is no LPIPS.
        cache_dir: Cache folder, or None for the user's.

    Raises:
        WeightsMissingError: If a configured file does not exist, or there is none and none could be downloaded.

    Attributes:
        network: The frozen VGG16 with the heads as buffers.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        heads: str | Path | None = LEARNT,
        cache_dir: str | Path | None = None,
    ) -> None:
        if heads == LEARNT:
            heads = Path(str(files("torchmetrics"))) / TORCHMETRICS_HEADS
        if heads is not None and not Path(heads).is_file():
            raise WeightsMissingError(
                f"{HEADS_KEY}={heads} does not exist: download {HEADS_URL} to that place, or set the key to {LEARNT} for the "
                "copy in torchmetrics, or to null to count every channel alike, which is no LPIPS."
            )
        path = find_weights("VGG16", WEIGHTS_KEY, weights, VGG_URL, cache_folder(cache_dir) / "vgg16")
        self.has_heads = heads is not None
        layers = _load_layers(path)
        super().__init__(_VGG16(layers, _load_heads(Path(heads)) if heads is not None else _equal_heads()))

    def __call__(self, image_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """Return the distance of each image from its reference.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1], grey or RGB, at least 16 x 16; gradients flow to them.
            reference_BCHW: (B, C, H, W) images of the same shape; no gradients flow to them.

        Returns:
            (B,) float32 distances, 0 for equal images.

        Raises:
            ValueError: If the shapes differ or are none of an image that VGG16 takes.
        """
        if image_BCHW.shape != reference_BCHW.shape:
            raise ValueError(
                f"The perceptual loss needs images of one shape, got {tuple(image_BCHW.shape)} and "
                f"{tuple(reference_BCHW.shape)}."
            )
        channels, height, width = image_BCHW.shape[1:]
        if channels not in (1, 3) or min(height, width) < LEAST_SIZE:
            raise ValueError(
                f"The perceptual loss takes grey or RGB images of at least {LEAST_SIZE} x {LEAST_SIZE} pixels, got "
                f"{channels} channels and {height} x {width} pixels: set perceptual=null."
            )
        with torch.no_grad():
            references = self.network(reference_BCHW)
        pairs = zip(self.network(image_BCHW), references, self.network.heads(), strict=True)
        distances = [((a - b).square() * head_1C11).sum(1).mean((1, 2)) for a, b, head_1C11 in pairs]
        return torch.stack(distances).sum(0)

    def definition(self) -> dict[str, Any]:
        """Identify the loss, for the record: two with equal definitions give equal distances.

        Returns:
            Plain values.
        """
        return {
            "name": f"{'LPIPS' if self.has_heads else 'VGG feature distance'}: VGG16, relu1_2 to relu5_3",
            "heads": "learnt" if self.has_heads else "none: every channel counts 1",
            "weights_hash": weights_hash(self.network),
        }


class _VGG16(nn.Module):
    """Images in [-1, 1] -> features after each of ``LAST_RELU``, of unit length over the channels.

    Args:
        layers: Layers of VGG16 up to the last of ``LAST_RELU``.
        heads: (1, C, 1, 1) weights of the channels of each of these features.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, layers: nn.Sequential, heads: list[Tensor]) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        for number, head in enumerate(heads):
            self.register_buffer(f"head{number}", head)

    def heads(self) -> list[Tensor]:
        return [self.get_buffer(f"head{number}") for number in range(len(LAST_RELU))]

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        x = (image_BCHW.float() - self.shift) / self.scale  # grey images become RGB here
        features = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in LAST_RELU:
                # Squares of up to 512 channels overflow half precision.
                full = x.float()
                features.append(full / (full.square().sum(1, keepdim=True) + EPSILON).sqrt())
        return features


def _load_layers(path: Path) -> nn.Sequential:
    remedy = f"replace it by {VGG_URL}, or set {WEIGHTS_KEY} to another file"
    state = load_tensors(path, remedy)
    with torch.device("meta"):  # no memory for the classifier, no draws from the global generator
        layers = vgg16(weights=None, init_weights=False).features[: LAST_RELU[-1] + 1]
    try:
        # No layer is left on the meta device: the loading is strict about missing weights.
        own = {name: state[PREFIX + name].float() for name in layers.state_dict()}
        layers.load_state_dict(own, assign=True)
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise WeightsError(f"{path} holds other weights than torchvision's VGG16: {remedy}.") from error
    return layers


def _load_heads(path: Path) -> list[Tensor]:
    remedy = f"replace it by {HEADS_URL}, or set {HEADS_KEY}=null"
    state = load_tensors(path, remedy)
    try:
        return [state[f"lin{n}.model.1.weight"].float().view(1, c, 1, 1) for n, c in enumerate(CHANNELS)]
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise WeightsError(f"{path} holds other weights than LPIPS's heads for VGG16: {remedy}.") from error


def _equal_heads() -> list[Tensor]:
    return [torch.ones(1, channels, 1, 1) for channels in CHANNELS]
