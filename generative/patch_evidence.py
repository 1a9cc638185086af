"""What the known pixels of a partly covered patch say about its token.

A token counts as unknown when any pixel of its patch is missing, so the known tokens say nothing of the others. By Bayes' rule
p(token | all that is known) is proportional to p(token | known tokens) p(known pixels of its own patch | token). The second
factor is taken as Gaussian around a patch of the code, and its logarithm added to the logits.

A network that sees the known pixels takes means and deviations as they are in the training images (``code_patches``) and learns
the power of this likelihood, as the deviations of a patch's pixels go together; what the pixels of the neighbours say it learns
too. For one that does not, samplers add it, with the patches that the tokenizer paints and one deviation for all codes, a
tuned weight; then there is no look-ahead: until a token is accepted its pixels say nothing about the others, so that the order
matters and the expected codes use each token's own pixels alone.

Shape legend: B batch, C channels, H/W height and width, G side of the token grid, N = G G tokens, K codes, P = C (H/G) (W/G),
M = B N patches; in ``code_patches`` P is the side of a patch too.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

from generative.float32 import whole_float32

TO_PATCHES = "b c (h p) (w q) -> b (h w) (c p q)"


def patch_evidence(
    degraded_BCHW: Tensor, validity_B1HW: Tensor, patch_KP: Tensor, grid_size: int, std: float | Tensor
) -> Tensor:
    """Return the log-likelihood of the known pixels under each code.

    Args:
        degraded_BCHW: (B, C, H, W) images in [-1, 1], whatever their missing pixels hold.
        validity_B1HW: (B, 1, H, W) map, 1 where a pixel is known.
        patch_KP: (K, P) patch of each code, channels first.
        grid_size: Side G of the token grid.
        std: Standard deviation of the Gaussian in units of [-1, 1]; one for all codes, or (K,).

    Returns:
        (B, N, K) log-likelihoods up to a constant of each token; zero where no pixel is known.
    """
    known_BNP = rearrange(
        repeat(validity_B1HW, "b 1 h w -> b c h w", c=degraded_BCHW.shape[1]), TO_PATCHES, h=grid_size, w=grid_size
    )
    pixel_BNP = known_BNP * rearrange(degraded_BCHW, TO_PATCHES, h=grid_size, w=grid_size)
    # |x - m|^2 / 2 over the known pixels, less |x|^2 / 2, which matters only where the deviations differ.
    distance_BNK = _distance(known_BNP, pixel_BNP, patch_KP)
    if not isinstance(std, Tensor):
        return -distance_BNK / std**2
    distance_BNK = distance_BNK + 0.5 * pixel_BNP.square().sum(dim=-1, keepdim=True)
    return -distance_BNK / std.square() - known_BNP.sum(dim=-1, keepdim=True) * std.log()


@torch.compiler.disable  # the precision of products is not for a graph to set
def _distance(known_BNP: Tensor, pixel_BNP: Tensor, patch_KP: Tensor) -> Tensor:
    with whole_float32(patch_KP.device):  # a small deviation makes much of the least difference
        return 0.5 * known_BNP @ patch_KP.square().T - pixel_BNP @ patch_KP.T


def code_patches(image_BCHW: Tensor, tokens_BN: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Measure what the patches of each code look like.

    Every code is given one patch more, the mean of all with their deviation, so that a code that does not occur is like that.

    Args:
        image_BCHW: (B, C, H, W) images.
        tokens_BN: (B, N) int64 tokens of a square grid.

    Returns:
        (K, C, P, P) mean patch of each code, and (K,) standard deviation of its patches' pixels around it.
    """
    side = math.isqrt(tokens_BN.shape[1])
    patch_MP = rearrange(image_BCHW, TO_PATCHES, h=side, w=side).flatten(0, 1).double()
    token_M = tokens_BN.flatten()
    count_K1 = 1 + torch.bincount(token_M, minlength=num_codes)[:, None]
    mean_P = patch_MP.mean(dim=0)
    mean_KP = mean_P.expand(num_codes, -1).index_add(0, token_M, patch_MP) / count_K1
    error_M = (patch_MP - mean_KP[token_M]).square().mean(dim=1)
    alone_K = (mean_P - mean_KP).square().mean(dim=1) + (patch_MP - mean_P).square().mean()
    std_K = (alone_K.index_add(0, token_M, error_M) / count_K1[:, 0]).sqrt()
    shape = image_BCHW.shape[1], image_BCHW.shape[2] // side, image_BCHW.shape[3] // side
    return mean_KP.float().unflatten(1, shape), std_K.float()
