"""Degradations that act on each pixel by itself: additive Gaussian noise and salt-and-pepper."""

from __future__ import annotations

import torch
from torch import Tensor

from generative.degradations.base import Degradation, nothing_known
from generative.degradations.observation import Observation
from generative.degradations.severity import Severity, SeveritySpec
from generative.randomness import Randomness


class GaussianNoise(Degradation):
    """Adds white Gaussian noise; no pixel stays known."""

    def __init__(self, std: SeveritySpec | None = None, sigma: SeveritySpec | None = None, clip: bool = True) -> None:
        """Set the strength, in one of two units.

        Args:
            std: Standard deviation, >= 0, in units of images in [-1, 1].
            sigma: The same in grey levels of 255, as papers on denoising have it.
            clip: Whether the noisy image is cut to [-1, 1]; these papers do not cut it.

        Raises:
            ValueError: Not one of ``std`` and ``sigma`` is given.
        """
        given = {name: spec for name, spec in (("std", std), ("sigma", sigma)) if spec is not None}
        if len(given) != 1:
            raise ValueError("GaussianNoise: give one of std (of images in [-1, 1]) and sigma (in grey levels of 255).")
        ((name, spec),) = given.items()
        self.std = Severity(spec, f"GaussianNoise.{name}", minimum=0)
        self.unit = 1.0 if sigma is None else 2 / 255
        self.clip = clip

    @property
    def clips(self) -> bool:
        return self.clip

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        std_B111 = self.std.sample(randomness, training)[:, None, None, None] * self.unit
        noise_BCHW = randomness.normal(*image_BCHW.shape[1:])
        return torch.addcmul(image_BCHW, std_B111, noise_BCHW), nothing_known(image_BCHW)

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        return Observation().plus_noise(self.std.fixed(key) * self.unit)


class SaltAndPepper(Degradation):
    """Replaces random pixels, all channels together, by black or white with equal chance.

    The restorer is not told which pixels were hit, and a black or white pixel may be genuine; so the validity map is 0
    everywhere although most pixels are intact.
    """

    def __init__(self, amount: SeveritySpec) -> None:
        """Set the strength.

        Args:
            amount: Probability in [0, 1] that a pixel is replaced.
        """
        self.amount = Severity(amount, "SaltAndPepper.amount", minimum=0, maximum=1)

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        amount_B111 = self.amount.sample(randomness, training)[:, None, None, None]
        # One draw decides both whether a pixel is hit and its colour: [0, a/2) pepper, [a/2, a) salt, [a, 1) intact.
        uniform_B1HW = randomness.uniform(1, *image_BCHW.shape[-2:])
        colour_B1HW = torch.where(uniform_B1HW < amount_B111 / 2, -1.0, 1.0)
        return torch.where(uniform_B1HW < amount_B111, colour_B1HW, image_BCHW), nothing_known(image_BCHW)
