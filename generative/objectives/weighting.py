"""Adaptive loss weights (MeanFlow, arXiv 2505.13447, section 4.3; after Consistency Models Made Easy, 2406.14548)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from generative.ranges import NonNegative, Positive


def squared_error(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Return per-image squared errors.

    Args:
        a_BCHW: (B, C, H, W) tensor.
        b_BCHW: (B, C, H, W) tensor.

    Returns:
        (B,) squared errors, summed over channels and pixels.
    """
    return (a_BCHW - b_BCHW).square().flatten(1).sum(dim=1)


@dataclass(frozen=True)
class AdaptiveWeight:
    """Divides each image's error by its own magnitude, L / sg[(L + offset)^power].

    Attributes:
        power: 0 is plain squared error, 0.5 close to the Huber loss, 1 the default of the papers.
        offset: Added to the summed squared error; 1e-3 in MeanFlow, 1e-2 in improved MeanFlow.
    """

    power: NonNegative = 1.0
    offset: Positive = 1e-2

    def __call__(self, error_B: Tensor, magnitude_B: Tensor | None = None) -> Tensor:
        """Weight per-image errors.

        Args:
            error_B: (B,) summed squared errors.
            magnitude_B: (B,) errors that set the weight instead of ``error_B``; no gradient passes.

        Returns:
            (B,) weighted errors.
        """
        magnitude_B = error_B if magnitude_B is None else magnitude_B
        return error_B / (magnitude_B.detach() + self.offset).pow(self.power)
