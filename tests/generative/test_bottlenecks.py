"""Quantisers keep their contract: tokens name the codes that pass, gradients reach the encoder, codes stay in use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from generative.networks.bottlenecks import Bottleneck, GaussianBottleneck
from generative.networks.quantizers import FSQ, SimVQ, VectorQuantizer, rotated
from generative.randomness import IndexRandomness, StepRandomness, generator_for

QUANTIZERS = {
    "vq": lambda: VectorQuantizer(32, 4),
    "vq_rotation": lambda: VectorQuantizer(32, 4, gradient="rotation"),
    "simvq": lambda: SimVQ(32, 4),
    "fsq": lambda: FSQ([4, 3, 5]),
}


def draws(step: int = 0, batch: int = 6) -> StepRandomness:
    return StepRandomness(generator_for(0, "test", step), batch)


def encodings(bottleneck: Bottleneck, batch: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(batch, bottleneck.in_channels, 5, 5, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> Bottleneck:
    torch.manual_seed(0)
    bottleneck = QUANTIZERS[request.param]()
    bottleneck(encodings(bottleneck), draws())  # codes begin on the first vectors
    return bottleneck


def test_tokens_name_what_passes(quantizer: Bottleneck) -> None:
    z = encodings(quantizer, seed=1)
    latent = quantizer.eval()(z)
    assert latent.tokens.shape == (6, 25)
    assert latent.tokens.dtype == torch.int64
    assert latent.tokens.min() >= 0
    assert latent.tokens.max() < quantizer.num_codes
    codes = quantizer.codes(latent.tokens)
    torch.testing.assert_close(codes.mT.reshape(latent.z.shape), latent.z)


def test_gradients_pass(quantizer: Bottleneck) -> None:
    z = encodings(quantizer, seed=1).requires_grad_()
    quantizer(z, draws(1)).z.sum().backward()
    assert z.grad.isfinite().all()
    assert (z.grad != 0).any(dim=1).all()


@pytest.mark.parametrize("make", [QUANTIZERS["vq"], QUANTIZERS["simvq"]])
def test_nearest_code_is_found(make: object) -> None:
    torch.manual_seed(0)
    bottleneck = make()
    bottleneck(encodings(bottleneck), draws())
    z = encodings(bottleneck, seed=2)
    vector = z.permute(0, 2, 3, 1).reshape(-1, bottleneck.dim)
    nearest = torch.cdist(vector, bottleneck.eval().codebook()).argmin(1)
    assert torch.equal(bottleneck(z).tokens.flatten(), nearest)


def test_codes_are_moving_averages_of_their_vectors() -> None:
    bottleneck = VectorQuantizer(2, 1, decay=0.5, restart_below=0)
    bottleneck.code.copy_(torch.tensor([[-1.0], [1.0]]))
    bottleneck.count.copy_(torch.tensor([2.0, 2.0]))
    bottleneck.total.copy_(torch.tensor([[-2.0], [2.0]]))
    z = torch.tensor([-2.0, -3.0, -4.0, 5.0]).view(1, 1, 2, 2)
    assert bottleneck(z, draws(batch=1)).tokens.tolist() == [[0, 0, 0, 1]]
    # counts 0.5 (2, 2) + 0.5 (3, 1); sums 0.5 (-2, 2) + 0.5 (-9, 5)
    torch.testing.assert_close(bottleneck.count, torch.tensor([2.5, 1.5]))
    torch.testing.assert_close(bottleneck.code, torch.tensor([[-5.5 / 2.5], [3.5 / 1.5]]))
    state = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    bottleneck.eval()(z)
    assert all(torch.equal(value, state[name]) for name, value in bottleneck.state_dict().items())


def test_unused_codes_restart_on_vectors_of_the_batch() -> None:
    bottleneck = VectorQuantizer(16, 4, decay=0.5, restart_below=0.5)
    z = encodings(bottleneck)
    bottleneck(z, draws())
    far = bottleneck.code.clone()
    far[3] = 100.0
    bottleneck.code.copy_(far)
    bottleneck.total[3] = 100.0 * bottleneck.count[3]
    for step in range(1, 6):
        bottleneck(z, draws(step))
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.cdist(bottleneck.code[3:4], vectors).min() < 2
    tokens = bottleneck.eval()(z).tokens
    assert len(tokens.unique()) == 16


def test_training_is_a_function_of_the_draws_alone() -> None:
    states = []
    for seed in (1, 2):
        bottleneck = VectorQuantizer(32, 4)
        torch.manual_seed(seed)  # the global generator must not matter
        for step in range(3):
            bottleneck(encodings(bottleneck, seed=step), draws(step))
        states.append(bottleneck.code.clone())
    assert torch.equal(*states)


def test_learnt_codes_follow_the_encodings() -> None:
    torch.manual_seed(0)
    bottleneck = SimVQ(64, 4)
    optimizer = torch.optim.Adam(bottleneck.parameters(), lr=0.02)
    kinds = torch.randn(8, 4) * 3 + 1
    z = kinds[torch.randint(8, (16, 5, 5))].permute(0, 3, 1, 2)
    errors = []
    for _ in range(150):
        latent = bottleneck(z)
        errors.append(latent.loss.item())
        optimizer.zero_grad()
        latent.loss.backward()
        optimizer.step()
    assert errors[-1] < 0.3 * errors[0]
    assert {name for name, _ in bottleneck.named_parameters()} == {"map.weight"}


def test_rotation_gives_the_code_and_turns_the_gradient() -> None:
    vector = torch.tensor([[3.0, 0.0]], requires_grad=True)
    code = torch.tensor([[0.0, 1.5]])
    out = rotated(vector, code)
    torch.testing.assert_close(out, code)
    out.backward(torch.tensor([[0.0, 2.0]]))  # along the code: arrives along the vector, shrunk as the code is
    torch.testing.assert_close(vector.grad, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("levels", [[3, 4], [8, 5, 5, 5], [4, 4, 4]])
def test_every_fsq_code_is_a_fixed_point(levels: list[int]) -> None:
    fsq = FSQ(levels)
    tokens = torch.arange(fsq.num_codes)[:, None]
    codes = fsq.codes(tokens)
    assert len(codes.flatten(1).unique(dim=0)) == fsq.num_codes
    assert codes.abs().max() <= 1
    # What the encoder must give for a code: the inverse of the bound.
    half = (torch.tensor(levels) - 1) * (1 + 1e-3) / 2
    offset = torch.where(torch.tensor(levels) % 2 == 0, 0.5, 0.0)
    z = ((codes * (torch.tensor(levels) // 2) + offset) / half).clamp(-0.999, 0.999).atanh() - (offset / half).atanh()
    assert torch.equal(fsq(z.mT[..., None]).tokens, tokens)


def test_gaussian_is_its_mean_in_evaluation_and_spreads_in_training() -> None:
    bottleneck = GaussianBottleneck(3, kl_weight=2.0)
    mean, log_variance = torch.randn(2, 500, 3, 4, 4)
    z = torch.cat([mean, log_variance], dim=1)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).sum(1).mean()
    latent = bottleneck(z, draws(batch=500))
    torch.testing.assert_close(latent.loss, 2 * expected)
    assert latent.tokens is None
    standardised = (latent.z - mean) / (log_variance / 2).exp()
    assert abs(standardised.mean()) < 0.02
    assert abs(standardised.std() - 1) < 0.02
    assert torch.equal(bottleneck.eval()(z).z, mean)
    with pytest.raises(ValueError, match="bottleneck=vq"):
        bottleneck.codes(torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: VectorQuantizer(1, 4), "bottleneck.num_codes"),
        (lambda: VectorQuantizer(8, 4, decay=1.0), "bottleneck.decay"),
        (lambda: SimVQ(8, 4, gradient="none"), "bottleneck.gradient"),
        (lambda: FSQ([2, 4]), "bottleneck.levels"),
        (lambda: GaussianBottleneck(4, -1.0), "bottleneck.kl_weight"),
    ],
)
def test_settings_are_checked(make: object, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make()


def test_evaluation_needs_no_draws() -> None:
    for make in QUANTIZERS.values():
        torch.manual_seed(0)
        bottleneck: nn.Module = make()
        bottleneck(encodings(bottleneck), draws())
        z = encodings(bottleneck, seed=3)
        whole = bottleneck.eval()(z).tokens
        index = IndexRandomness.for_images(0, "x", torch.arange(2))
        assert torch.equal(bottleneck(z[2:4], index).tokens, whole[2:4])
