"""What a model answers with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Restored(NamedTuple):
    """What a restorer makes of a picture.

    Attributes:
        samples: Plausible pictures, one or more; none of a model that knows the mean alone.
        mean: The answer of least squared error, or None where the model has none.
    """

    samples: list[Any]
    mean: Any | None


class Degraded(NamedTuple):
    """What a degradation makes of a picture.

    Attributes:
        picture: The degraded picture.
        hole: (H, W) bool, True where pixels are missing, of a degradation that leaves all others as they are; else None.
        settings: What the severity that was asked for stands for.
    """

    picture: Any
    hole: np.ndarray | None
    settings: dict[str, float]


class Step(NamedTuple):
    """A step on the way to a picture.

    Attributes:
        state: What the sampler holds: noise that becomes a picture, or tokens that are still masked in grey.
        estimate: The picture that it makes of it.
    """

    state: Any
    estimate: Any
