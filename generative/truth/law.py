"""Mixtures of Gaussians with one covariance: what is known of them is known in closed form, for any linear observation too.

All is float64. Shape suffixes: B batch (or 1 for one law of all rows), M modes, C channels, P pixels of a channel, N numbers of
a channel that are observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

FLOW_STEPS = 32  # of the fourth-order integration of a mixture's flow: its error is far below a grey level


@dataclass(frozen=True)
class GaussianMixture:
    """The law of images: modes that share a covariance of the pixels, each channel by itself.

    Attributes:
        log_weights_BM: (B, M) logarithms of the modes' weights, up to a constant of each row.
        means_BMCP: (B, M, C, P) means of the modes.
        covariance_PP: (P, P) covariance of a channel within each mode.
    """

    log_weights_BM: Tensor
    means_BMCP: Tensor
    covariance_PP: Tensor

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """(P,) variances along the principal axes of the covariance, and the axes as columns (P, P)."""
        with torch.inference_mode(False):  # what is kept may meet gradients later
            variance_P, axes_PP = torch.linalg.eigh(self.covariance_PP)
            return variance_P.clamp(min=0), axes_PP

    @cached_property
    def _means_along_axes(self) -> Tensor:
        """(B, M, C, P) coordinates of the modes' means along the principal axes."""
        with torch.inference_mode(False):
            return self.means_BMCP @ self._axes[1]

    @property
    def weights_BM(self) -> Tensor:
        """(B, M) weights of the modes."""
        return self.log_weights_BM.softmax(dim=1)

    @property
    def mean_BCP(self) -> Tensor:
        """(B, C, P) means over all modes."""
        return torch.einsum("bm,bmcp->bcp", self.weights_BM, self.means_BMCP)

    @property
    def variance_BCP(self) -> Tensor:
        """(B, C, P) variances of each pixel, within and between the modes."""
        between_BMCP = (self.means_BMCP - self.mean_BCP[:, None]).square()
        return torch.einsum("bm,bmcp->bcp", self.weights_BM, between_BMCP) + self.covariance_PP.diagonal()

    def given(self, observed_BCN: Tensor, operator_NP: Tensor, noise_NN: Tensor) -> GaussianMixture:
        """Condition on y = A x + n with n ~ N(0, S).

        Args:
            observed_BCN: (B, C, N) observations y, a row for each row of the law, or for a law of one row.
            operator_NP: (N, P) A.
            noise_NN: (N, N) S.

        Returns:
            The posterior of each row.
        """
        from_cov_NP = operator_NP @ self.covariance_PP
        root_NN = torch.linalg.cholesky(from_cov_NP @ operator_NP.T + noise_NN)
        white_NP = torch.linalg.solve_triangular(root_NN, from_cov_NP, upper=False)
        residual_BMCN = observed_BCN[:, None] - self.means_BMCP @ operator_NP.T
        white_NR = torch.linalg.solve_triangular(root_NN, residual_BMCN.flatten(0, 2).T, upper=False)
        white_BMCN = white_NR.T.reshape(residual_BMCN.shape)
        log_weights_BM = self.log_weights_BM - white_BMCN.square().sum(dim=(2, 3)) / 2
        means_BMCP = self.means_BMCP + white_BMCN @ white_NP
        return GaussianMixture(log_weights_BM, means_BMCP, self.covariance_PP - white_NP.T @ white_NP)

    def draw(self, uniform_B: Tensor, noise_BCP: Tensor) -> Tensor:
        """Draw a sample of each row.

        Args:
            uniform_B: (B,) numbers in [0, 1), which choose the modes.
            noise_BCP: (B, C, P) standard normal numbers.

        Returns:
            (B, C, P) samples.
        """
        variance_P, axes_PP = self._axes
        mode_B = choose_modes(self.weights_BM.expand(len(uniform_B), -1), uniform_B)
        means_BMCP = self.means_BMCP.expand(len(uniform_B), -1, -1, -1)
        mean_BCP = means_BMCP[torch.arange(len(mode_B), device=mode_B.device), mode_B]
        return mean_BCP + (noise_BCP * variance_P.sqrt()) @ axes_PP.T

    def log_density(self, x_BCP: Tensor) -> Tensor:
        """Return the (B,) log-densities of (B, C, P) images."""
        variance_P, axes_PP = self._axes
        squares_BMCP = ((x_BCP @ axes_PP)[:, None] - self._means_along_axes).square() / variance_P
        log_normal_BM = -(squares_BMCP + (2 * math.pi * variance_P).log()).sum(dim=(2, 3)) / 2
        return (self.log_weights_BM.log_softmax(dim=1) + log_normal_BM).logsumexp(dim=1)

    def expected(self, z_BCP: Tensor, signal_B: Tensor, noise_B: Tensor) -> tuple[Tensor, Tensor]:
        """Expect image x and noise e given z = a x + s e.

        Args:
            z_BCP: (B, C, P) states.
            signal_B: (B,) or (1,) factors a, >= 0.
            noise_B: (B,) or (1,) factors s, >= 0, not 0 together with a.

        Returns:
            E[x | z] and E[e | z], (B, C, P) each.
        """
        variance_P, axes_PP = self._axes
        a_B111, s_B111 = signal_B[:, None, None, None], noise_B[:, None, None, None]
        means_BMCP = self._means_along_axes  # all that follows is along the axes
        residual_BMCP = (z_BCP @ axes_PP)[:, None] - a_B111 * means_BMCP
        # Where nothing is left to vary, as a known pixel at the clean end, residual and total vanish together.
        total_B11P = (a_B111.square() * variance_P + s_B111.square()).clamp(min=torch.finfo(torch.float64).tiny)
        scaled_BMCP = residual_BMCP / total_B11P
        log_weights_BM = self.log_weights_BM - (residual_BMCP * scaled_BMCP).sum(dim=(2, 3)) / 2
        weights_BM = log_weights_BM.softmax(dim=1)
        image_BCP = torch.einsum("bm,bmcp->bcp", weights_BM, means_BMCP + a_B111 * variance_P * scaled_BMCP)
        noise_BCP = torch.einsum("bm,bmcp->bcp", weights_BM, s_B111 * scaled_BMCP)
        return image_BCP @ axes_PP.T, noise_BCP @ axes_PP.T

    def flowed(self, z_BCP: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
        """Move states along the flow dz/dt = E[e - x | z] of z_t = (1 - t) x + t e.

        Args:
            z_BCP: (B, C, P) states at the times t.
            t_B: (B,) times in [0, 1].
            r_B: (B,) times in [0, 1] to move to.

        Returns:
            (B, C, P) states at the times r: in closed form for one mode, else integrated.
        """
        if self.means_BMCP.shape[1] == 1:
            return self._flowed_gaussian(z_BCP, t_B, r_B)
        shares = torch.linspace(
            1, 0, FLOW_STEPS + 1, dtype=torch.float64
        ).square()  # short steps where the flow is stiff
        for begin, end in pairwise(shares.tolist()):
            now_B, then_B = r_B + (t_B - r_B) * begin, r_B + (t_B - r_B) * end
            middle_B, step_B11 = (now_B + then_B) / 2, (then_B - now_B)[:, None, None]
            first = self.velocity(z_BCP, now_B)
            second = self.velocity(z_BCP + step_B11 / 2 * first, middle_B)
            third = self.velocity(z_BCP + step_B11 / 2 * second, middle_B)
            last = self.velocity(z_BCP + step_B11 * third, then_B)
            z_BCP = z_BCP + step_B11 / 6 * (first + 2 * second + 2 * third + last)
        return z_BCP

    def velocity(self, z_BCP: Tensor, t_B: Tensor) -> Tensor:
        """Return E[e - x | z_t], (B, C, P), for states at the times ``t_B``."""
        image_BCP, noise_BCP = self.expected(z_BCP, 1 - t_B, t_B)
        return noise_BCP - image_BCP

    def _flowed_gaussian(self, z_BCP: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
        """Along each axis the flow keeps the number of standard deviations from the mean."""
        variance_P, axes_PP = self._axes
        mean_BCP = self._means_along_axes[:, 0]
        t_B11, r_B11 = t_B[:, None, None], r_B[:, None, None]
        std_t, std_r = (((1 - time) ** 2 * variance_P + time**2).sqrt() for time in (t_B11, r_B11))
        apart_BCP = z_BCP @ axes_PP - (1 - t_B11) * mean_BCP
        ratio = torch.where(std_t > 0, std_r / std_t.clamp(min=torch.finfo(torch.float64).tiny), 1)
        return ((1 - r_B11) * mean_BCP + apart_BCP * ratio) @ axes_PP.T


def choose_modes(weights_BM: Tensor, uniform_B: Tensor) -> Tensor:
    """Return (B,) numbers of modes, by (B, M) weights and (B,) numbers in [0, 1)."""
    return (weights_BM.cumsum(dim=1) <= uniform_B[:, None]).sum(dim=1).clamp(max=weights_BM.shape[1] - 1)
