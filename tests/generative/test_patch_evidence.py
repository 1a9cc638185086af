"""Known pixels inform the token of their own patch: Bayes' rule against a direct computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.networks import TokenTransformer
from generative.patch_evidence import patch_evidence
from generative.randomness import IndexRandomness, StepRandomness, generator_for
from generative.samplers import MaskedTokenSampler
from generative.samplers.masked import halton_order
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
    evidence = patch_evidence(image, validity, patches, GRID, 0.02)
    unknown = torch.ones(1, 16, dtype=torch.bool)
    randomness = IndexRandomness.for_images(0, "test", torch.arange(1))
    filled = MaskedTokenSampler(4)(network, torch.zeros_like(tokens), unknown, Condition(), randomness, evidence)
    assert torch.equal(filled, tokens)


@pytest.mark.parametrize("order", ["halton", "random"])
def test_informed_tokens_come_first_where_the_confidence_is_not_asked(order: str) -> None:
    """Two tokens that agree with probability 0.9; pixels that say 9:1 for code 0 of the second one.

    By Bayes' rule p(first = 0) = 0.9 * 0.9 + 0.1 * 0.1 = 0.82; the other order ignores the pixels when it draws the first.
    """

    class Pair:
        mask_token = 2

        def __call__(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
            other_BN = tokens_BN[:, [1, 0, 3, 2]]
            p_BN = torch.tensor([0.9, 0.1, 0.5])[other_BN]  # of code 0, given the other one
            return torch.stack([p_BN, 1 - p_BN], dim=-1).log()

    rows = 20_000
    tokens = torch.zeros(rows, 4, dtype=torch.long)
    unknown = torch.tensor([True, True, False, False]).expand(rows, -1)
    evidence = torch.zeros(rows, 4, 2)
    first, second = (0, 1) if order == "random" else sorted([0, 1], key=halton_order(4).index)
    evidence[:, second] = torch.tensor([0.9, 0.1]).log()
    sampler = MaskedTokenSampler(2, "linear", order)
    randomness = StepRandomness(generator_for(0, "test"), rows)
    states = list(sampler.states(Pair(), tokens, unknown, Condition(), randomness, evidence))
    assert not states[0].unknown[:, second].any()
    assert (states[-1].tokens[:, second] == 0).float().mean().item() == pytest.approx(0.9, abs=0.01)
    assert (states[-1].tokens[:, first] == 0).float().mean().item() == pytest.approx(0.82, abs=0.01)
