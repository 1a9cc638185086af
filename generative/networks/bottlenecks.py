"""The bottleneck of an autoencoder: a quantiser (``generative.networks.quantizers``), which makes tokens, or a Gaussian.

All meet one contract: ``bottleneck(z_BDHW, randomness) -> Latent``.

Shape legend: B batch, D latent channels, H/W height and width of the token grid, N = H W tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from generative.checks import checked
from generative.randomness import Randomness
from generative.ranges import Count, NonNegative


@dataclass
class Latent:
    """What a bottleneck lets through.

    Attributes:
        z: (B, D, H, W) latents for the decoder.
        loss: () weighted loss of the bottleneck: commitment or Kullback-Leibler.
        tokens: (B, N) int64 codes in row-major order, or None where the bottleneck has none.
    """

    z: Tensor
    loss: Tensor
    tokens: Tensor | None = None


class Bottleneck(nn.Module, ABC):
    """A map of encodings to latents.

    Attributes:
        in_channels: Channels that the encoder must give.
        dim: Channels D of the latents.
        num_codes: Number of codes K, or None for continuous latents.
    """

    in_channels: int
    dim: int
    num_codes: int | None = None

    @abstractmethod
    def forward(self, z_BDHW: Tensor, randomness: Randomness | None = None) -> Latent:
        """Pass encodings.

        Args:
            z_BDHW: (B, D, H, W) encodings with ``in_channels`` channels.
            randomness: Source of all draws in training; in evaluation nothing is drawn.
        """

    def codes(self, tokens_BN: Tensor) -> Tensor:
        """Return the (B, N, D) codes of (B, N) int64 tokens; a ``ValueError`` where the bottleneck has none."""
        raise ValueError(f"{type(self).__name__} has no codes: choose bottleneck=vq, simvq or fsq.")


@checked("bottleneck")
class GaussianBottleneck(Bottleneck):
    """A diagonal Gaussian around the encoding, as in variational autoencoders (arXiv 1312.6114): its mean in evaluation.

    Args:
        dim: Channels D of the latents; the encoder gives mean and log-variance.
        kl_weight: Weight of the Kullback-Leibler divergence from N(0, I) in nats a latent vector.
    """

    def __init__(self, dim: Count, kl_weight: NonNegative = 1e-6) -> None:
        super().__init__()
        self.dim = dim
        self.in_channels = 2 * dim
        self.kl_weight = kl_weight

    def forward(self, z_BDHW: Tensor, randomness: Randomness | None = None) -> Latent:
        mean, log_variance = z_BDHW.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        if self.training and randomness is not None:
            mean = mean + (log_variance / 2).exp() * randomness.normal(*mean.shape[1:])
        return Latent(mean.to(z_BDHW.dtype), self.kl_weight * divergence)
