"""Terms on an estimate of the image: who moves whom, what counts, and that batches add up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative import ranks
from generative.networks import PatchDiscriminator
from generative.objectives import FlowMatching, ImageTerms
from generative.objectives.image_terms import GAME_LOGS, hinge_game

DISCRIMINATOR = PatchDiscriminator(1, channels=8, num_layers=1)


def images(seed: int = 0) -> Tensor:
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def l1(image: Tensor, reference: Tensor) -> Tensor:
    return (image - reference).abs().flatten(1).mean(1)


def test_each_player_moves_itself_alone() -> None:
    fake = images(1).requires_grad_()
    game = hinge_game(DISCRIMINATOR, images(), fake)
    weights = list(DISCRIMINATOR.parameters())
    assert torch.autograd.grad(game.generator_B.sum(), weights, retain_graph=True, allow_unused=True) == (None,) * len(
        weights
    )
    assert torch.autograd.grad(game.discriminator_B.sum(), fake, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(game.generator_B.sum(), fake)[0].abs().sum() > 0
    real, made = DISCRIMINATOR(images()), DISCRIMINATOR(fake)
    expected = (F.relu(1 - real) + F.relu(1 + made)).flatten(1).mean(1) / 2
    torch.testing.assert_close(game.discriminator_B, expected)
    torch.testing.assert_close(game.generator_B, -made.flatten(1).mean(1))


def test_estimates_near_the_noise_do_not_count_and_halves_add_up() -> None:
    terms, time = ImageTerms(0.3, 0.2, max_time=0.8), torch.tensor([0.1, 0.9, 0.8, 0.5, 1.0, 0.79])
    judged = time < 0.8
    whole = terms(images(1), images(), time, DISCRIMINATOR, l1, 0)
    game = hinge_game(DISCRIMINATOR, images()[judged], images(1)[judged])
    distance = l1(images(1), images())[judged]
    expected = (0.3 * distance + 0.2 * game.generator_B + game.discriminator_B).sum() / 6
    torch.testing.assert_close(whole.loss, expected)
    torch.testing.assert_close(whole.logs["perceptual"], distance.mean())
    halves = [
        terms(images(1)[rows], images()[rows], time[rows], DISCRIMINATOR, l1, 0).loss
        for rows in torch.arange(6).split(3)
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), whole.loss)
    untimed = terms(images(1), images(), None, None, l1, 0)
    torch.testing.assert_close(untimed.loss, 0.3 * l1(images(1), images()).mean())


@pytest.mark.parametrize(("time", "step"), [(0.9, 5), (0.1, 4)])
def test_every_weight_has_a_gradient_where_nothing_is_judged(time: float, step: int) -> None:
    terms = ImageTerms(adversarial_start=5)
    output = terms(images(1), images(), torch.full((6,), time), DISCRIMINATOR, None, step)
    gradients = torch.autograd.grad(output.loss, list(DISCRIMINATOR.parameters()))
    assert output.loss == 0
    assert all((gradient == 0).all() for gradient in gradients)
    assert output.logs == ({} if step < 5 else dict.fromkeys(GAME_LOGS, 0))


def test_ranks_log_the_same_terms_though_one_judges_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, one after the other; the number of judged images on both is known beforehand."""
    terms, time = ImageTerms(), torch.tensor([0.1, 0.5, 0.2, 0.9, 0.9, 0.9])
    whole = terms(images(1), images(), time, DISCRIMINATOR, l1, 0).logs
    fake = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        all_reduce=lambda value: value.fill_(3),
    )
    monkeypatch.setattr(ranks, "dist", fake)
    first, second = (
        terms(images(1)[rows], images()[rows], time[rows], DISCRIMINATOR, l1, 0).logs
        for rows in torch.arange(6).split(3)
    )
    assert list(first) == list(second) == list(whole) == ["perceptual", *GAME_LOGS]
    for name, value in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, value)


def test_a_flow_is_judged_by_its_estimate_of_the_image() -> None:
    from flow_maps import network, randomness

    from generative.flow_map import FlowMap
    from generative.types import Condition, LossOutput

    image, source = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    heads, seen = network(), []

    def judged(estimate: Tensor, clean: Tensor, time: Tensor) -> LossOutput:
        seen.append((estimate, clean, time))
        return LossOutput(estimate.square().sum(), {"judged": torch.ones(())})

    condition, objective = Condition(torch.zeros(8, 2, 8, 8)), FlowMatching()
    plain = objective(FlowMap(heads), image, source, condition, randomness())
    with_terms = objective(FlowMap(heads), image, source, condition, randomness(), judged=judged)
    estimate, clean, time = seen[0]
    torch.testing.assert_close(with_terms.loss, plain.loss + estimate.square().sum())
    assert with_terms.logs["judged"] == 1
    assert torch.equal(clean, image)
    z = (1 - time.view(-1, 1, 1, 1)) * image + time.view(-1, 1, 1, 1) * source
    head, _ = heads(z, torch.stack([time, torch.zeros(8)], 1), condition)
    torch.testing.assert_close(estimate, head, atol=1e-5, rtol=1e-4)  # an image head is the estimate itself
