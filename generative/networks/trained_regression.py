"""A trained regression, frozen: what it answers to a degraded image is the mean that others begin from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from generative.networks.contract import ImageNetwork
from generative.networks.dit import DiT
from generative.networks.restorers import RRDB, DnCNN, DRUNet
from generative.networks.swinir import SwinIR
from generative.networks.trained import TrainedNetwork
from generative.networks.unet import UNet
from generative.types import Batch, Condition, restoration_condition

TIMES = (1.0, 0.0)  # those of a regression, which has no noise


def regressed(network: nn.Module, condition: Condition) -> Tensor:
    """Ask a network for E[x | condition].

    Args:
        network: One-headed network, told no noisy image.
        condition: Its image has C + 1 channels, the degraded image and its validity.

    Returns:
        (B, C, H, W) images, not clamped, in the condition's dtype.
    """
    assert condition.image is not None
    state = torch.zeros_like(condition.image[:, :-1])
    times = torch.tensor(TIMES, device=state.device).expand(len(state), -1)
    (image,) = network(state, times, condition)
    return image.to(state.dtype)


class TrainedRegression(TrainedNetwork[ImageNetwork]):
    """A frozen network that was trained for squared error."""

    key: ClassVar[str] = "regression"
    noun: ClassVar[str] = "regression"
    alike: ClassVar[str] = "a regression"
    example: ClassVar[str] = "regression_dit"
    built_of: ClassVar[Mapping[str, type[nn.Module]]] = {
        f"generative.networks.{part.__name__}": part for part in (DiT, UNet, DnCNN, DRUNet, RRDB, SwinIR)
    }

    @classmethod
    def _built(cls, config: Mapping[str, Any], path: str | Path) -> ImageNetwork:
        if config.get("num_outputs") != 1 or config.get("num_times") != len(TIMES) or config.get("label_factors"):
            raise cls._refused(path, "its network does not answer to a degraded image alone")
        return super()._built(config, path)

    @torch.no_grad()
    def answer(self, batch: Batch) -> Tensor:
        """Return E[x | degraded image], (B, C, H, W) images in [-1, 1]."""
        return regressed(self.network, restoration_condition(*batch.observed())).clamp(-1, 1)

    def card(self) -> str:
        """Describe it in Markdown, for an export of which it is a part."""
        return (
            f"# Regression\n\nThe answer of least squared error to degraded images; weights {self.hash}. It belongs to the "
            "network in the folder above, which begins with its answers.\n"
        )
