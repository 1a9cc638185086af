"""What the known pixels of a partly covered patch say about its token.

A token counts as unknown when any pixel of its patch is missing, so the transformer never sees the others. By Bayes' rule
p(token | all that is known) is proportional to p(token | known tokens) p(known pixels of its own patch | token). The second
factor is taken as Gaussian around the patch that the tokenizer paints for the code. Samplers add it to the logits.

Two limits. There is no look-ahead: until a token is accepted, its pixels say nothing about the other tokens, so that the
order matters and the expected codes use each token's own pixels alone. And the standard deviation is a tuned weight, not a
model of the noise: ``conf/module/maskgit.yaml`` has the value with the best fillings, some three times the deviation of
pixels around the patches of their codes, which makes this a likelihood to the power of about a tenth.

Shape legend: B batch, C channels, H/W height and width, G side of the token grid, N = G G tokens, K codes, P = C (H/G) (W/G).
"""

from __future__ import annotations

from einops import rearrange, repeat
from torch import Tensor


def patch_evidence(
    degraded_BCHW: Tensor, validity_B1HW: Tensor, patch_KP: Tensor, grid_size: int, std: float
) -> Tensor:
    """Return the log-likelihood of the known pixels under each code.

    Args:
        degraded_BCHW: (B, C, H, W) images in [-1, 1], whatever their missing pixels hold.
        validity_B1HW: (B, 1, H, W) map, 1 where a pixel is known.
        patch_KP: (K, P) patch of each code, channels first.
        grid_size: Side G of the token grid.
        std: Standard deviation of the Gaussian in units of [-1, 1]. Larger than that of a pixel around the patch of its code:
            the deviations of a patch's pixels go together.

    Returns:
        (B, N, K) log-likelihoods up to a constant of each token; zero where no pixel is known.
    """
    pattern = "b c (h p) (w q) -> b (h w) (c p q)"
    known_BNP = rearrange(
        repeat(validity_B1HW, "b 1 h w -> b c h w", c=degraded_BCHW.shape[1]), pattern, h=grid_size, w=grid_size
    )
    pixel_BNP = rearrange(degraded_BCHW, pattern, h=grid_size, w=grid_size)
    # |x - m|^2 over the known pixels, less |x|^2, which is the same for all codes.
    return ((known_BNP * pixel_BNP) @ patch_KP.T - 0.5 * known_BNP @ patch_KP.square().T) / std**2
