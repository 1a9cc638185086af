"""Label classifier: a ResNet (He et al. 2016, arXiv 1512.03385) with a sigmoid per label.

Parameter names below ``resnet`` are those of torchvision's ``resnet18`` with ``fc.0`` as the last layer, the layout in
which evaluators of i-CLEVR are published; with fewer blocks some are missing.

Shape suffixes: B batch, C channels, H height, W width, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from generative.checks import checked
from generative.float32 import whole_float32
from generative.networks.growth import of_labels
from generative.networks.matrices import at_end
from generative.ranges import Count
from generative.weights import NotLoadedError, checkpoint_fault, network_weights, read_checkpoint

FEATURE_SIZE = 512  # width of a resnet18 before its last layer
RESNET18 = (2, 2, 2, 2)  # its blocks in each stage
DEFAULT_INPUT_SIZE = 64  # the published evaluator's
CHECKPOINT_PREFIX = "resnet."  # of the weights in a LabelClassifier


class TrainedOn(NamedTuple):
    """The data of a classifier's training.

    Attributes:
        data: Name of the data set.
        image_size: Side of its images in pixels.
    """

    data: str
    image_size: int


@checked("network")
class LabelClassifier(nn.Module):
    """Tells which labels an image has; each label by itself.

    Args:
        num_labels: Number of labels L.
        input_size: Side in pixels that images are resized to (bilinear, antialiased) where they have another.
        in_channels: Channels C of the images; the published layout has 3.
        blocks: Residual blocks of the four stages; those of a resnet18 in the published layout.

    Attributes:
        trained_on: The data of its training, where it was loaded from a file that tells.

    Raises:
        ValueError: There are not four stages.
    """

    convolutional: ClassVar[bool] = True

    def __init__(
        self,
        num_labels: Count = 24,
        input_size: Count = DEFAULT_INPUT_SIZE,
        in_channels: Count = 3,
        blocks: Sequence[Count] = RESNET18,
    ) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.input_size = input_size
        self.in_channels = in_channels
        self.trained_on: TrainedOn | None = None
        if len(blocks) != len(RESNET18):
            raise ValueError(
                f"network.blocks={list(blocks)} must be four numbers, one for each stage, such as {list(RESNET18)}."
            )
        self.resnet = ResNet(BasicBlock, list(blocks))
        if in_channels != 3:
            self.resnet.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        at_end(self.resnet.conv1)
        self.resnet.fc = at_end(nn.Sequential(of_labels(nn.Linear(FEATURE_SIZE, num_labels)), nn.Sigmoid()))

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Return what the last layer sees.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].

        Returns:
            (B, 512) features after global average pooling.
        """
        net, size = self.resnet, (self.input_size, self.input_size)
        x = image_BCHW
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        x = x.contiguous(memory_format=torch.channels_last)  # convolutions and norms of a CPU are faster so
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return net.avgpool(x).flatten(1)

    def logits(self, image_BCHW: Tensor) -> Tensor:
        """Return the log odds of each label.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].

        Returns:
            (B, L) log odds.
        """
        linear: nn.Module = self.resnet.fc[0]
        return linear(self.features(image_BCHW))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the probability of each label, computed with all digits of float32: a judge's answer is one on any device.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].

        Returns:
            (B, L) probabilities.
        """
        with whole_float32(image_BCHW.device):
            return self.logits(image_BCHW.float()).sigmoid()

    def log_likelihood(self, image_BCHW: Tensor, labels_BL: Tensor) -> Tensor:
        """Return how likely the labels are, present and absent ones; differentiable in the image.

        Args:
            image_BCHW: (B, C, H, W) images in [-1, 1].
            labels_BL: (B, L) multi-hot labels.

        Returns:
            (B,) sums over the labels of log p(label | image).
        """
        logits = self.logits(image_BCHW)
        return -F.binary_cross_entropy_with_logits(logits, labels_BL.to(logits), reduction="none").sum(1)


def load_label_classifier(path: str | Path) -> LabelClassifier:
    """Load a trained label classifier; nothing but tensors and plain containers is unpickled.

    Args:
        path: A checkpoint of ``experiment=label_classifier`` (its averaged weights are used where it has them), or a file
            in the public layout: ``{"model": state_dict}`` with the names of torchvision's ``resnet18`` and
            ``fc.0.weight``, ``fc.0.bias``.

    Returns:
        The classifier in evaluation mode, without gradients in its weights. Labels, channels and blocks are those of the
        weights, the input size that of the checkpoint's config; 64 in the public layout.

    Raises:
        ValueError: If the file is missing or is neither of the two.
    """
    path = Path(path)
    checkpoint = _read(path)
    state = _weights(checkpoint)
    if state is None:
        raise ValueError(_not_a_classifier(path, "it has no resnet18 weights with fc.0"))
    input_size = _input_size(checkpoint, path)
    try:
        classifier = LabelClassifier(
            len(state["fc.0.weight"]), input_size, state["conv1.weight"].shape[1], _blocks(state)
        )
        classifier.resnet.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(_not_a_classifier(path, "its weights are not those of a resnet18")) from error
    classifier.trained_on = _trained_on(checkpoint)
    return classifier.eval().requires_grad_(False)


def _not_a_classifier(path: Path, reason: str) -> str:
    return (
        f"classifier={path} is no label classifier: {reason}; give a checkpoint of experiment=label_classifier or a file "
        "with the key model and the weights of a resnet18."
    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(
            f"classifier={path} does not exist: train one with python train.py experiment=label_classifier."
        )
    try:
        checkpoint = read_checkpoint(path)
    except NotLoadedError as error:
        raise ValueError(_not_a_classifier(path, str(error))) from error
    if isinstance(checkpoint, dict) and "state_dict" in checkpoint and (fault := checkpoint_fault(checkpoint)):
        raise ValueError(_not_a_classifier(path, fault))
    return checkpoint


def _weights(checkpoint: Any) -> dict[str, Tensor] | None:
    """Return the weights by torchvision's names, or None where there are none."""
    if not isinstance(checkpoint, dict):
        return None
    state = checkpoint.get("model")
    if "state_dict" in checkpoint:
        weights = network_weights(checkpoint)
        state = {k.removeprefix(CHECKPOINT_PREFIX): v for k, v in weights.items() if k.startswith(CHECKPOINT_PREFIX)}
    if not isinstance(state, dict):
        return None
    dimensions = {name: getattr(state.get(name), "ndim", None) for name in ("conv1.weight", "fc.0.weight")}
    return state if dimensions == {"conv1.weight": 4, "fc.0.weight": 2} else None


def _blocks(state: dict[str, Tensor]) -> list[int]:
    """Count the residual blocks of each stage."""
    stages = range(1, 1 + len(RESNET18))
    return [sum(f"layer{stage}.{i}.conv1.weight" in state for i in range(len(state))) for stage in stages]


def _input_size(checkpoint: dict[str, Any], path: Path) -> int:
    if "state_dict" not in checkpoint:
        return DEFAULT_INPUT_SIZE
    try:
        return int(checkpoint["config"]["network"]["input_size"])
    except (KeyError, TypeError, ValueError) as error:  # a guess would give wrong answers without a word
        raise ValueError(_not_a_classifier(path, "its config has no network.input_size")) from error


def _trained_on(checkpoint: dict[str, Any]) -> TrainedOn | None:
    try:
        data = checkpoint["config"]["data"]
        return TrainedOn(str(data["name"]), int(data["image_size"]))
    except (KeyError, TypeError, ValueError):
        return None
