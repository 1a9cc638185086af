"""How strong a degradation is: a fixed number, a range, or a range for training and a value for evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from generative.randomness import Randomness

Interval = float | Sequence[float]
SeveritySpec = Interval | Mapping[str, Interval]

_MODES = ("train", "evaluation")


class Severity:
    """A checked severity from which one value per image is drawn.

    Three forms are understood: a number (fixed), ``[low, high]`` (uniform per image), and
    ``{"train": ..., "evaluation": ...}`` with one of the former for each mode.
    """

    def __init__(
        self,
        spec: SeveritySpec,
        name: str,
        minimum: float = -math.inf,
        maximum: float = math.inf,
        integer: bool = False,
    ) -> None:
        """Read a specification.

        Args:
            spec: One of the three forms.
            name: What error messages call the parameter, such as ``"GaussianNoise.std"``.
            minimum: Least allowed value.
            maximum: Greatest allowed value.
            integer: Whether the values are whole numbers; a range then includes both of its ends.

        Raises:
            ValueError: If the specification has none of the forms or leaves the allowed range.
        """
        self.name = name
        self.integer = integer
        self._allowed = (minimum, maximum)
        if not isinstance(spec, Mapping):
            spec = dict.fromkeys(_MODES, spec)
        if set(spec) != set(_MODES):
            raise ValueError(f"{name}: a mapping has exactly the keys train and evaluation, not {sorted(spec)}.")
        self._interval = {mode: self._read_interval(spec[mode]) for mode in _MODES}

    def _read_interval(self, spec: Interval) -> tuple[float, float]:
        ends = list(spec) if isinstance(spec, Sequence) else [spec, spec]
        if len(ends) != 2 or not all(_is_number(end) for end in ends):
            raise ValueError(f"{self.name}: expected a number or [low, high], got {spec!r}.")
        low, high = ends
        if self.integer and (low != int(low) or high != int(high)):
            raise ValueError(f"{self.name}: expected whole numbers, got {spec!r}.")
        if low > high:
            raise ValueError(f"{self.name}: low must not exceed high, got {spec!r}.")
        minimum, maximum = self._allowed
        if low < minimum or high > maximum:
            raise ValueError(f"{self.name}: must lie in [{minimum:g}, {maximum:g}], got {spec!r}.")
        return low, high

    def highest(self, training: bool) -> float:
        """Return the greatest value that can be drawn; buffers sized by it do not depend on the batch.

        Args:
            training: Which of the two modes is meant.

        Returns:
            The upper end of the mode's range.
        """
        return self._interval["train" if training else "evaluation"][1]

    def lowest(self, training: bool) -> float:
        """Return the least value that can be drawn.

        Args:
            training: Which of the two modes is meant.
        """
        return self._interval["train" if training else "evaluation"][0]

    def fixed(self, key: str) -> float:
        """Return the one value of evaluation.

        Args:
            key: Config key of the degradation, for the message.

        Raises:
            ValueError: It is drawn for each image.
        """
        low, high = self._interval["evaluation"]
        if low != high:
            parameter = f"{key}.{self.name.rpartition('.')[2]}"
            raise ValueError(
                f"{parameter}={[low, high]} differs from image to image, which no restorer is told: for the exact posterior "
                f"and guidance without training give evaluation one number, as {parameter}={high:g}."
            )
        return low

    def sample(self, randomness: Randomness, training: bool) -> Tensor:
        """Draw one value per image; a fixed severity draws nothing.

        Args:
            randomness: Source of the draw, with B rows.
            training: Which of the two modes is meant.

        Returns:
            (B,) float32 values, whole numbers if the severity is an integer.
        """
        low, high = self._interval["train" if training else "evaluation"]
        if low == high:
            return torch.full((randomness.batch_size,), float(low), device=randomness.device)
        uniform_B = randomness.uniform()
        if self.integer:
            return low + (uniform_B * (high - low + 1)).floor()
        return low + uniform_B * (high - low)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
