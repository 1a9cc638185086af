"""Decoding of masked tokens: what is kept, what is counted, what is drawn, and in which order."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from generative.networks import TokenTransformer
from generative.randomness import IndexRandomness, StepRandomness, generator_for
from generative.samplers import MaskedState, MaskedTokenSampler
from generative.samplers.masked import halton_order, sample_codes
from generative.schedules import MaskSchedule
from generative.types import Condition

K, N = 11, 16
SCHEDULES = ("cosine", "half_cosine", "linear", "square", "sqrt", "stair", "one_shot", "arccos")
ORDERS = ("confidence", "halton", "random")


class Toy:
    """Looks up logits by a token, its neighbours and its position: equal to the last bit for a row alone and in a batch."""

    mask_token = K

    def __init__(self, num_tokens: int = N) -> None:
        source = torch.Generator().manual_seed(7)
        self.left = 2 * torch.randn(K + 1, K, generator=source)
        self.right = torch.randn(K + 1, K, generator=source)
        self.place = torch.randn(num_tokens, K, generator=source)
        self.seen: list[Tensor] = []

    def __call__(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
        self.seen.append(tokens_BN)
        return self.left[tokens_BN.roll(1, dims=1)] + self.right[tokens_BN.roll(-1, dims=1)] + self.place


class Fixed:
    """Says the same of every token."""

    mask_token = K

    def __init__(self, logits_K: Tensor) -> None:
        self.logits_K = logits_K

    def __call__(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
        return self.logits_K.expand(*tokens_BN.shape, -1)


def rows() -> tuple[Tensor, Tensor]:
    """Six rows with 0, 1, 5, 9, 15 and 16 unknown tokens."""
    source = torch.Generator().manual_seed(8)
    tokens = torch.randint(K, (6, N), generator=source)
    order = torch.rand(6, N, generator=source).argsort(dim=1).argsort(dim=1)
    return tokens, order < torch.tensor([0, 1, 5, 9, 15, 16])[:, None]


def randomness(size: int = 6, seed: int = 0) -> StepRandomness:
    return StepRandomness(generator_for(seed, "test"), size)


def decode(sampler: MaskedTokenSampler, network: object = None) -> list[MaskedState]:
    return list(sampler.states(network or Toy(), *rows(), Condition(), randomness()))


@pytest.mark.parametrize("num_steps", [1, 5, 18])
@pytest.mark.parametrize(("schedule", "order"), itertools.product(SCHEDULES, ORDERS))
def test_invariants_at_every_step(schedule: str, order: str, num_steps: int) -> None:
    network = Toy()
    sampler = MaskedTokenSampler(num_steps, schedule, order)
    tokens, unknown = rows()
    states = list(sampler.states(network, tokens, unknown, Condition(), randomness()))
    assert len(network.seen) == len(states) == sampler.network_calls(unknown).max()

    at_start, before = unknown.sum(dim=1), unknown
    calls = torch.zeros_like(at_start)
    held = torch.where(unknown, K, tokens)
    times_set = torch.zeros_like(tokens)
    for step, (state, shown) in enumerate(zip(states, network.seen, strict=True), start=1):
        asked = before.any(dim=1)  # rows that are done cost no call
        calls += asked
        assert torch.equal(shown, held[asked])  # the network sees masks wherever nothing is known yet
        left = MaskSchedule(schedule).masked_after_steps(num_steps, at_start)[step - 1]
        if schedule != "one_shot":
            assert torch.equal(state.unknown.sum(dim=1), left)
        assert (before & ~state.unknown).any(dim=1)[asked].all()
        assert not (state.unknown & ~before).any()
        assert torch.equal(state.tokens[~unknown], tokens[~unknown])
        assert torch.equal(state.tokens[~before], held[~before])  # what is accepted stays
        assert torch.equal(state.tokens == K, state.unknown)
        assert torch.equal(state.predicted[~before], held[~before])
        assert ((state.predicted >= 0) & (state.predicted < K)).all()
        accepted = before & ~state.unknown
        assert torch.equal(state.tokens[accepted], state.predicted[accepted])
        times_set += accepted
        before, held = state.unknown, state.tokens
    assert torch.equal(times_set, unknown.long())
    assert torch.equal(calls, sampler.network_calls(unknown))
    assert torch.equal(calls, at_start.clamp(max=1 if schedule == "one_shot" else num_steps))
    assert torch.equal(sampler(Toy(), tokens, unknown, Condition(), randomness()), held)


@pytest.mark.parametrize("order", ORDERS)
def test_a_row_alone_is_the_row_in_a_batch(order: str) -> None:
    tokens, unknown = rows()
    sampler = MaskedTokenSampler(5, order=order)

    def decoded(chosen: list[int]) -> Tensor:
        source = IndexRandomness.for_images(0, "sample", torch.tensor(chosen))
        return sampler(Toy(), tokens[chosen], unknown[chosen], Condition(), source)

    together = decoded([0, 1, 2, 3, 4, 5])
    for row in range(6):
        assert torch.equal(decoded([row])[0], together[row])
    assert torch.equal(decoded([4, 2]), together[[4, 2]])


@pytest.mark.parametrize("order", ORDERS)
def test_what_lies_under_the_mask_does_not_matter(order: str) -> None:
    tokens, unknown = rows()
    sampler = MaskedTokenSampler(4, order=order)
    other = torch.where(unknown, (tokens + 1) % K, tokens)
    expected = sampler(Toy(), tokens, unknown, Condition(), randomness())
    assert torch.equal(sampler(Toy(), other, unknown, Condition(), randomness()), expected)


def test_the_inputs_are_left_alone() -> None:
    tokens, unknown = rows()
    MaskedTokenSampler()(Toy(), tokens, unknown, Condition(), randomness())
    assert all(torch.equal(a, b) for a, b in zip((tokens, unknown), rows(), strict=True))


def test_one_shot_calls_the_network_once() -> None:
    network = Toy()
    sampler = MaskedTokenSampler(8, "one_shot")
    assert len(decode(sampler, network)) == len(network.seen) == sampler.num_network_calls == 1


def test_nothing_unknown_costs_no_call() -> None:
    network, tokens = Toy(), rows()[0]
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    assert torch.equal(MaskedTokenSampler()(network, tokens, nothing, Condition(), randomness()), tokens)
    assert network.seen == []


def test_arg_max_without_noise_equals_hand_computation() -> None:
    """Two codes, four tokens: token n is code 0 with logit n; a token right of a code 1 gets 10 more for code 1."""

    class Hand:
        mask_token = 2

        def __call__(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
            zero = torch.arange(4.0).expand_as(tokens_BN)
            one = 10.0 * (tokens_BN.roll(1, dims=1) == 1)
            return torch.stack([zero, one], dim=-1)

    sampler = MaskedTokenSampler(4, "linear", token_temperature=0, choice_temperature=0)
    tokens, unknown = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[False, True, True, True]])
    states = list(sampler.states(Hand(), tokens, unknown, Condition(), randomness(1)))
    # Three tokens take three of the four steps: ceil(3 * [2/3, 1/3, 0]) = 2, 1, 0 stay masked. Logits (code 0, code 1) of
    # the tokens 1, 2, 3: at first
    # (1, 10), (2, 0), (3, 0), so token 1 is the most sure, of code 1; then token 2 has (2, 10) against (3, 0) of token 3.
    assert [s.tokens[0].tolist() for s in states] == [[1, 1, 2, 2], [1, 1, 1, 2], [1, 1, 1, 1]]
    assert [s.predicted[0].tolist() for s in states] == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("schedule", ["one_shot", "cosine"])
def test_tokens_follow_the_softmax(schedule: str, temperature: float) -> None:
    """In any order with no preference between tokens: then which are accepted does not depend on what they are."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -math.inf, 0.5, 0.0, 0.0, -2.0, 1.5, -math.inf])
    rows_, probability = 2000, (logits / temperature).softmax(dim=0)
    sampler = MaskedTokenSampler(4, schedule, "random", temperature)
    unknown = torch.ones(rows_, N, dtype=torch.bool)
    drawn = sampler(Fixed(logits), torch.zeros(rows_, N, dtype=torch.long), unknown, Condition(), randomness(rows_))
    counts = drawn.flatten().bincount(minlength=K)
    possible = probability > 0
    assert (counts[~possible] == 0).all()
    expected = probability[possible] * rows_ * N
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert chi_square < 27.9  # 8 degrees of freedom: exceeded with probability 0.0005


def test_codes_at_the_ends_of_the_unit_interval() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    uniform = torch.tensor([0.0, 0.49, 0.51, 1 - 2**-24])
    code, probability = sample_codes(logits.expand(4, -1), uniform)
    assert code.tolist() == [1, 1, 3, 3]
    torch.testing.assert_close(probability, torch.full((4,), 0.5))


def test_guesses_of_confidence_minus_infinity_are_accepted_before_known_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of a GPU need not rise from code to code, so that a code of probability 0 can be drawn."""
    monkeypatch.setattr(
        "generative.samplers.masked.sample_codes", lambda logits, uniform: (uniform.long(), torch.zeros_like(uniform))
    )
    states = decode(MaskedTokenSampler(4, choice_temperature=0))
    at_start = rows()[1].sum(dim=1)
    for step, state in enumerate(states, start=1):
        left = MaskSchedule().masked_after_steps(4, at_start)[step - 1]
        assert torch.equal(state.unknown.sum(dim=1), left)


def test_codes_are_the_inverse_of_the_cumulative_distribution() -> None:
    logits = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(2))
    code, probability = sample_codes(logits, uniform)
    exact = logits.double().softmax(dim=-1)
    upper = exact.cumsum(dim=-1).gather(1, code[:, None])[:, 0]
    torch.testing.assert_close(probability.double(), exact.gather(1, code[:, None])[:, 0])
    assert (uniform <= upper + 1e-6).all()
    assert (uniform >= upper - probability - 1e-6).all()


class Sure:
    """Is the surer of a token the higher its number."""

    mask_token = 2

    def __call__(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
        logit = torch.linspace(0.1, 5, tokens_BN.shape[1]).expand_as(tokens_BN)
        return torch.stack([logit, -logit], dim=-1)


def accepted_first(choice_temperature: float, rows_: int = 4000) -> Tensor:
    """Share of the rows in which each of 16 tokens is among the 4 that the first of 4 steps accepts."""
    sampler = MaskedTokenSampler(4, "linear", token_temperature=0, choice_temperature=choice_temperature)
    unknown = torch.ones(rows_, N, dtype=torch.bool)
    states = sampler.states(Sure(), torch.zeros_like(unknown).long(), unknown, Condition(), randomness(rows_))
    return (~next(states).unknown).float().mean(dim=0)


def test_gumbel_noise_chooses_between_the_surest_and_any() -> None:
    assert accepted_first(0.0).tolist() == [0.0] * 12 + [1.0] * 4
    torch.testing.assert_close(accepted_first(1e4), torch.full((N,), 0.25), rtol=0, atol=0.04)
    some = accepted_first(1.0)
    assert 0.001 < some[0] < some[-1] < 0.999


def test_gumbel_noise_of_the_first_choice_follows_its_law() -> None:
    """The arg-max of log p + g is a token with a probability in proportion to p; (1 - 1/2) tau = 1 here."""
    rows_ = 8000
    sampler = MaskedTokenSampler(2, "linear", token_temperature=0, choice_temperature=2.0)
    unknown = torch.zeros(rows_, N, dtype=torch.bool)
    unknown[:, [0, 3]] = True  # linear: one of two in the first step
    states = sampler.states(Sure(), torch.zeros(rows_, N).long(), unknown, Condition(), randomness(rows_))
    share = (~next(states).unknown[:, [0, 3]]).float().mean(dim=0)
    logit = torch.linspace(0.1, 5, N)[[0, 3]]
    p = torch.sigmoid(2 * logit)
    torch.testing.assert_close(share, p / p.sum(), rtol=0, atol=0.02)


@pytest.mark.parametrize("order", ORDERS)
def test_stop_takes_the_whole_guess_of_that_step(order: str) -> None:
    whole = decode(MaskedTokenSampler(8, order=order))
    sampler = MaskedTokenSampler(8, order=order, stop_at_step=3)
    network = Toy()
    stopped = decode(sampler, network)
    assert len(stopped) == len(network.seen) == sampler.num_network_calls == 3
    for a, b in itertools.product(range(2), range(3)):
        assert torch.equal(whole[a][b], stopped[a][b])
    assert torch.equal(stopped[-1].predicted, whole[2].predicted)
    assert torch.equal(stopped[-1].tokens, stopped[-1].predicted)
    assert not stopped[-1].unknown.any()
    assert MaskedTokenSampler(8, order=order, stop_at_step=20).num_network_calls == 8


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 16])
def test_halton_order_is_the_first_visits_of_the_sequence(size: int) -> None:
    qmc = pytest.importorskip("scipy.stats").qmc
    order = halton_order(size**2)
    assert sorted(order) == list(range(size**2))
    points = qmc.Halton(2, scramble=False).random(40 * size**2)[1:]  # it begins with the origin
    cells = torch.from_numpy(points * size + 1e-9).long()  # its 2/3 is a little less
    expected = list(dict.fromkeys((cells[:, 0] * size + cells[:, 1]).tolist()))
    assert list(order[: len(expected)]) == expected
    assert len(expected) > 0.9 * size**2


def test_halton_order_begins_as_the_sequence_does() -> None:
    """(1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9) on a grid of 16."""
    assert halton_order(256)[:4] == (8 * 16 + 5, 4 * 16 + 10, 12 * 16 + 1, 2 * 16 + 7)


def test_halton_accepts_along_its_order_whatever_the_confidence() -> None:
    _, unknown = rows()
    states = decode(MaskedTokenSampler(8, "arccos", "halton"))
    for row, missing in enumerate(unknown):
        along = [n for n in halton_order(N) if missing[n]]
        for state in states:
            left = int(state.unknown[row].sum())
            assert state.unknown[row].nonzero()[:, 0].tolist() == sorted(along[len(along) - left :])


def test_random_order_is_uniform() -> None:
    rows_ = 4000
    sampler = MaskedTokenSampler(4, "linear", "random")
    unknown = torch.ones(rows_, N, dtype=torch.bool)
    states = sampler.states(Sure(), torch.zeros_like(unknown).long(), unknown, Condition(), randomness(rows_))
    torch.testing.assert_close((~next(states).unknown).float().mean(0), torch.full((N,), 0.25), rtol=0, atol=0.04)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of the QK-norm, as on every autocast network of this house
def test_with_the_transformer_also_in_half_precision() -> None:
    torch.manual_seed(0)
    network = TokenTransformer(K, 4, dim=16, depth=1, num_heads=2)
    tokens, unknown = rows()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        filled = MaskedTokenSampler()(network, tokens, unknown, Condition(), randomness())
    assert torch.equal(filled[~unknown], tokens[~unknown])
    assert ((filled >= 0) & (filled < K)).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"num_steps": 0}, {"schedule": "cubic"}, {"order": "spiral"}, {"token_temperature": -1.0},
        {"choice_temperature": -0.5}, {"stop_at_step": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(bad: dict) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=rf"sampler\.{name}={value}"):
        MaskedTokenSampler(**bad)


@pytest.mark.parametrize("order", ORDERS)
def test_revisions_keep_what_is_known_and_draw_a_share_anew(order: str) -> None:
    network = Toy()
    tokens, unknown = rows()
    sampler = MaskedTokenSampler(4, order=order, revisions=3, revised_share=0.25)
    states = list(sampler.states(network, tokens, unknown, Condition(), randomness(6)))
    plain = list(MaskedTokenSampler(4, order=order).states(Toy(), tokens, unknown, Condition(), randomness(6)))
    assert torch.equal(states[len(plain) - 1].tokens, plain[-1].tokens)
    assert len(states) == len(plain) + 3
    for state, seen in zip(states[-3:], network.seen[-3:], strict=True):
        assert not state.unknown.any()
        assert torch.equal(state.tokens[~unknown], tokens[~unknown])
        masked = seen == network.mask_token
        assert masked.sum(dim=1).tolist() == [1, 2, 3, 4, 4]  # a quarter of 1, 5, 9, 15 and 16, rounded up
        assert not (masked & ~unknown[1:]).any()
    assert sampler.network_calls(unknown).tolist() == [0, 4, 7, 7, 7, 7]
    assert sampler.num_network_calls == 7


def test_revisions_forget_the_order_of_the_first_draws() -> None:
    """Two tokens that are equal with probability 0.9, by conditionals; all at once they are drawn independently."""

    class Pair:
        mask_token = 2

        def __call__(self, tokens_BN: Tensor, condition: Condition) -> Tensor:
            p_BN = torch.tensor([0.9, 0.1, 0.5])[tokens_BN.flip(1)]
            return torch.stack([p_BN, 1 - p_BN], dim=-1).log()

    size = 4000

    def equal(revisions: int) -> float:
        sampler = MaskedTokenSampler(1, "one_shot", "random", revisions=revisions, revised_share=0.5)
        start = torch.zeros(size, 2, dtype=torch.long)
        tokens = sampler(Pair(), start, torch.ones_like(start, dtype=torch.bool), Condition(), randomness(size))
        return (tokens[:, 0] == tokens[:, 1]).float().mean().item()

    assert equal(0) == pytest.approx(0.5, abs=0.03)
    assert equal(4) == pytest.approx(0.9, abs=0.02)


def test_halton_needs_a_square() -> None:
    with pytest.raises(ValueError, match=r"sampler\.order=halton needs a square grid"):
        halton_order(12)
