"""Masked token modelling: what is masked, and the loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative.objectives import GammaRatio, MaskedTokenObjective, UniformRatio
from generative.objectives.masked_tokens import near_codes, token_accuracy
from generative.randomness import IndexRandomness, StepRandomness, generator_for
from generative.types import Condition

K, N = 7, 36


class Table:
    """Says the same of a position whatever the tokens, and remembers what it was shown."""

    mask_token = K

    def __init__(self, logits_NK: Tensor) -> None:
        self.logits_NK = logits_NK.requires_grad_()
        self.seen = torch.empty(0)
        self.told = Condition()

    def __call__(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
        self.seen, self.told = tokens_BN, condition
        return self.logits_NK.expand(len(tokens_BN), -1, -1)


def table(size: int = N) -> Table:
    return Table(torch.randn(size, K, generator=torch.Generator().manual_seed(3)))


def codes(rows: int = 200, size: int = N) -> Tensor:
    return torch.randint(K, (rows, size), generator=torch.Generator().manual_seed(4))


def randomness(rows: int = 200, seed: int = 0) -> StepRandomness:
    return StepRandomness(generator_for(seed, "test"), rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_loss_and_logs_equal_those_of_pytorch(loss_on: str, smoothing: float) -> None:
    network, tokens = table(), codes()
    objective = MaskedTokenObjective(UniformRatio(0.2, 0.9), loss_on, smoothing)
    result = objective(network, tokens, None, Condition(), randomness())
    masked = network.seen == network.mask_token
    assert torch.equal(network.seen[~masked], tokens[~masked])
    chosen = masked if loss_on == "masked" else torch.ones_like(masked)
    logits = network.logits_NK.expand(200, -1, -1)
    expected = F.cross_entropy(logits[chosen], tokens[chosen], label_smoothing=smoothing)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.logs["cross_entropy"], F.cross_entropy(logits[masked], tokens[masked]).detach())
    torch.testing.assert_close(
        result.logs["accuracy"], (logits.argmax(-1) == tokens)[masked].float().mean(), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(result.logs["masked_share"], masked.float().mean())
    assert not any(log.requires_grad for log in result.logs.values())
    (gradient,) = torch.autograd.grad(result.loss, network.logits_NK)
    (expected_gradient,) = torch.autograd.grad(expected, network.logits_NK)
    torch.testing.assert_close(gradient, expected_gradient)


def test_loss_of_a_tiny_case_by_hand() -> None:
    """One image of two tokens, both masked, two codes of probabilities 3/4 and 1/4."""
    network = Table(torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]]))
    network.mask_token = 2
    objective = MaskedTokenObjective(UniformRatio(1.0, 1.0), label_smoothing=0.2)
    result = objective(network, torch.tensor([[0, 1]]), None, Condition(), randomness(1))
    first = -(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4))
    second = -(0.9 * math.log(1 / 4) + 0.1 * math.log(3 / 4))
    assert result.loss.item() == pytest.approx((first + second) / 2, abs=1e-6)
    assert result.logs["cross_entropy"].item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2, abs=1e-6)
    assert result.logs["accuracy"].item() == 0.5
    assert result.logs["masked_share"].item() == 1


def test_near_codes_share_the_target_by_the_distance_of_their_patches() -> None:
    """Patches of one grey each: 0, d and far away; by hand the first two share in the proportion 1 : exp(-d^2 / (2 s^2))."""
    d, s = 0.03, 0.02
    target = near_codes(torch.tensor([0.0, d, 1.0])[:, None, None, None].expand(3, 3, 4, 4), s)
    other = math.exp(-(d**2) / (2 * s**2))
    expected = torch.tensor([[1, other, 0], [other, 1, 0], [0, 0, 1 + other]]) / (1 + other)
    torch.testing.assert_close(target, expected)


def test_loss_of_shared_targets_equals_that_of_pytorch() -> None:
    network, tokens = table(), codes()
    target = torch.rand(K, K, generator=torch.Generator().manual_seed(6)).softmax(dim=-1)
    result = MaskedTokenObjective(GammaRatio(), label_smoothing=0.0, target_std=0.1)(
        network, tokens, None, Condition(), randomness(), target
    )
    masked = network.seen == network.mask_token
    logits = network.logits_NK.expand(200, -1, -1)[masked]
    with pytest.raises(ValueError, match=r"objective\.target_std=0\.1 needs the patches"):
        MaskedTokenObjective(GammaRatio(), target_std=0.1)(network, tokens, None, Condition(), randomness())
    torch.testing.assert_close(result.loss, F.cross_entropy(logits, target[tokens[masked]]))
    torch.testing.assert_close(result.logs["cross_entropy"], F.cross_entropy(logits, tokens[masked]).detach())


def test_the_pixels_of_masked_tokens_are_seen_in_the_hole_alone() -> None:
    network, tokens, hole = table(), codes(), holes(200)
    image = torch.rand(200, 4, 12, 12, generator=torch.Generator().manual_seed(7)) + 1
    MaskedTokenObjective(GammaRatio(), hole_share=0.5)(network, tokens, hole, Condition(image), randomness())
    masked = network.seen == network.mask_token
    patches = F.unfold(network.told.image, 2, stride=2).mT
    assert torch.equal(patches.any(dim=-1), hole | ~masked)
    assert torch.equal(patches[hole | ~masked], F.unfold(image, 2, stride=2).mT[hole | ~masked])
    token_accuracy(network, tokens, 0.5, Condition(image), randomness())
    patches = F.unfold(network.told.image, 2, stride=2).mT
    assert torch.equal(patches.any(dim=-1), network.seen != network.mask_token)


def test_every_image_has_its_count_of_masked_tokens() -> None:
    objective = MaskedTokenObjective(GammaRatio())
    masked = objective.mask(codes(2000), None, randomness(2000))
    share = torch.cos(math.pi / 2 * randomness(2000).uniform())
    expected = (share * N).ceil().clamp(min=1).long()
    assert torch.equal(masked.sum(dim=1), expected)
    assert expected.min() == 1
    assert expected.max() == N


def test_masked_positions_are_uniform_and_independent_of_the_codes() -> None:
    masked = MaskedTokenObjective(UniformRatio(0.25, 0.25)).mask(codes(8000), None, randomness(8000))
    torch.testing.assert_close(masked.float().mean(dim=0), torch.full((N,), 0.25), rtol=0, atol=0.025)
    pairs = (masked.float().T @ masked.float() / 8000)[~torch.eye(N, dtype=torch.bool)]
    expected = 9 / 36 * 8 / 35  # drawn without replacement
    assert (pairs - expected).abs().max() < 0.025


@pytest.mark.parametrize(
    ("distribution", "mean", "low", "high"),
    [
        (GammaRatio(), 2 / math.pi, 0, 1),
        (GammaRatio("linear"), 1 / 2, 0, 1),
        (GammaRatio("square"), 2 / 3, 0, 1),
        (GammaRatio("arccos"), 2 / math.pi, 0, 1),
        (UniformRatio(), 0.45, 0.4, 0.5),
    ],
    ids=repr,
)
def test_ratio_distributions(distribution: GammaRatio | UniformRatio, mean: float, low: float, high: float) -> None:
    ratio = distribution(randomness(20_000))
    assert ratio.shape == (20_000,)
    assert ratio.mean().item() == pytest.approx(mean, abs=0.01)
    assert ratio.min() == pytest.approx(low, abs=0.01)
    assert ratio.max() == pytest.approx(high, abs=0.01)
    with pytest.raises(
        ValueError, match=r"objective\.ratio\.schedule=one_shot"
    ):  # of a random ratio it masks one token
        GammaRatio("one_shot")


def holes(rows: int) -> Tensor:
    hole = torch.rand(rows, N, generator=torch.Generator().manual_seed(5)) < 0.3
    hole[::10] = False
    return hole


def test_with_holes_only_their_tokens_are_masked() -> None:
    hole = holes(500)
    objective = MaskedTokenObjective(UniformRatio(0.5, 0.5), hole_share=1.0)
    masked = objective.mask(codes(500), hole, randomness(500))
    has_hole = hole.any(dim=1)
    assert not (masked & ~hole)[has_hole].any()
    assert torch.equal(masked.sum(dim=1)[has_hole], (hole.sum(dim=1)[has_hole] + 1) // 2)
    assert (masked.sum(dim=1)[~has_hole] == N // 2).all()


def test_hole_share_is_the_share_of_images() -> None:
    hole = torch.zeros(4000, N, dtype=torch.bool)
    hole[:, :4] = True
    objective = MaskedTokenObjective(UniformRatio(1.0, 1.0), hole_share=0.3)
    count = objective.mask(codes(4000), hole, randomness(4000)).sum(dim=1)
    assert count.unique().tolist() == [4, N]
    assert (count == 4).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_holes_are_not_needed_without_a_share_of_them() -> None:
    objective = MaskedTokenObjective(GammaRatio())
    assert torch.equal(objective.mask(codes(), None, randomness()), objective.mask(codes(), holes(200), randomness()))
    with pytest.raises(ValueError, match=r"objective\.hole_share=0\.5 .*degradation="):
        MaskedTokenObjective(GammaRatio(), hole_share=0.5)(table(), codes(), None, Condition(), randomness())


def test_token_accuracy_is_that_of_each_image() -> None:
    network, tokens = table(), codes(50)
    for ratio, count in [(0.1, 4), (0.5, 18), (1.0, N)]:
        accuracy = token_accuracy(network, tokens, ratio, Condition(), randomness(50))
        masked = network.seen == network.mask_token
        assert (masked.sum(dim=1) == count).all()
        right = network.logits_NK.argmax(dim=-1) == tokens
        expected = torch.stack([r[m].float().mean() for r, m in zip(right, masked, strict=True)])
        torch.testing.assert_close(accuracy, expected)


def test_token_accuracy_of_an_image_does_not_depend_on_the_batch() -> None:
    def accuracy(rows: list[int]) -> Tensor:
        source = IndexRandomness.for_images(0, "mask", torch.tensor(rows))
        return token_accuracy(table(), codes(50)[rows], 0.5, Condition(), source)

    assert torch.equal(accuracy([3, 17, 4])[1:2], accuracy([17]))


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: MaskedTokenObjective(GammaRatio(), "some"), r"objective\.loss_on=some"),
        (lambda: MaskedTokenObjective(GammaRatio(), label_smoothing=1.0), r"objective\.label_smoothing=1\.0"),
        (lambda: MaskedTokenObjective(GammaRatio(), hole_share=1.5), r"objective\.hole_share=1\.5"),
        (lambda: UniformRatio(0.5, 0.4), r"objective\.ratio\.low=0\.5"),
        (lambda: GammaRatio("cubic"), r"objective\.ratio\.schedule=cubic"),
    ],
)
def test_settings_out_of_range_are_refused(build: object, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        build()
