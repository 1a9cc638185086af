"""What needs no training: against plain loops, and that known pixels stay."""

from __future__ import annotations

import torch

from generative.baselines import diffused, mean_colour, nearest


def test_answers_equal_plain_loops_and_keep_what_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    training = 2 * torch.rand(30, 3, 8, 8, generator=generator) - 1
    clean = (training[:4] + 0.1 * torch.randn(4, 3, 8, 8, generator=generator)).clamp(-1, 1)
    validity = torch.ones(4, 1, 8, 8)
    validity[0, :, 2:5, 2:5], validity[1, :, :, :7], validity[3] = 0, 0, 0  # of the last nothing is known
    degraded = torch.where(validity > 0, clean, -0.3 * torch.ones_like(clean))
    degraded[3] = clean[3]
    found = nearest(degraded, validity, training.split(7))
    for row in range(4):
        known = validity[row] if row != 3 else torch.ones(1, 8, 8)
        distances = [((degraded[row] - image).square() * known).sum() for image in training]
        best = training[int(torch.stack(distances).argmin())]
        torch.testing.assert_close(found[row], torch.where(validity[row] > 0, degraded[row], best))
    filled = mean_colour(degraded, validity)
    torch.testing.assert_close(filled[1, :, 0, 0], clean[1, :, :, 7].mean(1))
    smooth = torch.linspace(-0.5, 0.5, 8).expand(4, 3, 8, 8)
    over = diffused(torch.where(validity > 0, smooth, 0.0), validity)
    assert (over - smooth)[0].abs().max() < 0.1  # a ramp goes on through the hole
    for image in (found, filled):
        assert torch.equal(image[2], clean[2])
    for image in (filled, diffused(degraded, validity)):
        assert torch.equal(image[3], degraded[3])
