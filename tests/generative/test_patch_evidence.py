"""Known pixels inform the token of their own patch: Bayes' rule against a direct computation."""

from __future__ import annotations

import torch
from torch import Tensor

from generative.networks import TokenTransformer
from generative.patch_evidence import InformedNetwork, patch_evidence
from generative.randomness import IndexRandomness
from generative.samplers import MaskedTokenSampler
from generative.types import Condition

CODES, GRID, STD = 6, 4, 0.3


def scene(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 2, 8, 8, generator=generator) * 2 - 1
    validity = (torch.rand(batch, 1, 8, 8, generator=generator) < 0.5).float()
    return image, validity, torch.rand(CODES, 2 * 2 * 2, generator=generator) * 2 - 1


def test_evidence_is_the_gaussian_likelihood_of_the_known_pixels() -> None:
    image, validity, patches = scene()
    evidence = patch_evidence(image, validity, patches, GRID, STD)
    assert evidence.shape == (3, 16, CODES)
    for b, row, column in [(0, 0, 0), (1, 3, 2), (2, 1, 1)]:
        block = (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        known = validity[b, 0][block] > 0
        log_p = [
            torch.distributions.Normal(p.view(2, 2, 2)[:, known], STD).log_prob(image[b][:, *block][:, known]).sum()
            for p in patches
        ]
        expected = torch.stack(log_p) - log_p[0]
        torch.testing.assert_close(evidence[b, row * GRID + column] - evidence[b, row * GRID + column, 0], expected)


def test_missing_pixels_say_nothing_whatever_they_hold() -> None:
    image, validity, patches = scene()
    evidence = patch_evidence(image, validity, patches, GRID, STD)
    other = torch.where(validity > 0, image, torch.rand_like(image))
    assert torch.equal(patch_evidence(other, validity, patches, GRID, STD), evidence)
    assert not patch_evidence(image, torch.zeros_like(validity), patches, GRID, STD).any()


def test_sure_pixels_decide_the_token() -> None:
    _, validity, patches = scene(1)
    torch.manual_seed(0)
    network = TokenTransformer(CODES, GRID, dim=32, depth=1, num_heads=2).eval()
    tokens = torch.arange(16)[None] % CODES
    image = patches[tokens[0]].view(GRID, GRID, 2, 2, 2).permute(2, 0, 3, 1, 4).reshape(1, 2, 8, 8)
    validity = torch.ones_like(validity)
    validity[..., ::2, ::2] = 0  # a quarter of every patch is missing
    informed = InformedNetwork(network, patch_evidence(image, validity, patches, GRID, 0.02))
    assert informed.mask_token == network.mask_token
    unknown = torch.ones(1, 16, dtype=torch.bool)
    randomness = IndexRandomness.for_images(0, "test", torch.arange(1))
    filled = MaskedTokenSampler(4)(informed, torch.zeros_like(tokens), unknown, Condition(), randomness)
    assert torch.equal(filled, tokens)
