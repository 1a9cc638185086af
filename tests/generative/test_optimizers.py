"""Muon against the closed form of its iteration, PyTorch's own Muon and AdamW; which weights it takes."""

from __future__ import annotations

import copy
import re
from itertools import pairwise

import pytest
import torch
from helpers import tiny
from torch import Tensor, nn

from generative.networks import TokenTransformer
from generative.networks.matrices import hidden_matrices
from generative.optimizers import MARGIN, POLYNOMIALS, Muon, orthogonalised
from launch.build import build_module
from launch.compose import compose_config

RATE, MATRIX_RATE, DECAY = 0.01, 0.02, 0.1


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def copies(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in parameters]


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
@pytest.mark.parametrize("num_iterations", [1, 4, 7])
def test_iterations_act_on_the_singular_values_alone(shape: tuple[int, int], num_iterations: int) -> None:
    """U S V^T becomes U p(S) V^T with the polynomials p in turn, of S over its 8-norm; further ones are as the first."""
    matrices = 1e-3 * torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    polynomials = [*POLYNOMIALS[:1] * (num_iterations - len(POLYNOMIALS)), *POLYNOMIALS[-num_iterations:]]
    s = s / s.norm(p=8, dim=-1, keepdim=True) * polynomials[0][0] / MARGIN
    for _, a, b, c in polynomials:
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalised(matrices, num_iterations), u @ (s[..., None] * vh))


def test_each_polynomial_is_the_best_for_what_the_one_before_leaves() -> None:
    """On its interval it leaves 1 by the same at four points, up and down in turn (Chebyshev); the last one by 0.2."""
    end = None
    for (begin, *coefficients), following in zip(POLYNOMIALS, [*POLYNOMIALS[1:], None], strict=True):
        s = torch.linspace(0, begin, 100_001, dtype=torch.float64)
        value = sum(c * s ** (2 * k + 1) for k, c in enumerate(coefficients))
        assert isinstance(value, Tensor)
        error = value[-1] - 1  # and so at both inner extrema, and at the lower end, where the one before arrives
        low = int((value >= 1 - error).nonzero()[0])
        rises = value.diff() > 0
        inner = (rises[1:] != rises[:-1]).nonzero().flatten() + 1
        assert inner.numel() == 2
        torch.testing.assert_close(value[inner], torch.stack([1 + error, 1 - error]), rtol=0, atol=2e-3)
        if end is not None:
            assert float(s[low]) == pytest.approx(2 - end, abs=2e-3)
        end = float(value[-1])
        assert end * MARGIN == pytest.approx(following[0] if following else 1.2 * MARGIN, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 3, 32])
def test_nothing_grows_beyond_the_band(dtype: torch.dtype, rank: int) -> None:
    """Also where rounding is coarse and the largest singular value is the whole norm; a matrix of zeros stays one."""
    generator = torch.Generator().manual_seed(2)
    matrices = torch.randn(4, 32, rank, generator=generator) @ torch.randn(4, rank, 48, generator=generator)
    matrices[0] = 0
    found = torch.linalg.svdvals(orthogonalised(matrices.to(dtype), 4).double())
    assert (found <= 1.21).all()
    assert (found[0] == 0).all()
    wanted = torch.linalg.svdvals(matrices.double())
    if dtype == torch.float32:
        assert (found[wanted > 4e-3 * wanted[:, :1]] > 0.79).all()


@pytest.mark.parametrize("size", [10.0**-power for power in range(8, 42)])
def test_what_is_too_small_for_a_gradient_makes_no_large_step(size: float) -> None:
    """Powers of it vanish, and its norm with them, as of attention to a single token."""
    matrix = size * torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(4))
    assert (torch.linalg.svdvals(orthogonalised(matrix, 4)) <= 1.21).all()


def _nearest(matrix: Tensor, *args: object, **kwargs: object) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps with weight decay, both with the nearest semi-orthogonal matrix itself."""
    monkeypatch.setattr("generative.optimizers.orthogonalised", _nearest)
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", _nearest)
    own = weights((16, 24), (32, 8))
    other = copies(own)
    muon = Muon([{"params": own, "matrices": [1, 1]}], matrix_lr=MATRIX_RATE, weight_decay=DECAY)
    torchs = torch.optim.Muon(other, lr=MATRIX_RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for seed in range(4):
        set_gradients(own, seed)
        set_gradients(other, seed)
        muon.step()
        torchs.step()
    for mine, theirs in zip(own, other, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_stacked_matrices_and_convolutions() -> None:
    """A weight of three matrices moves as the three do alone, a convolution as the matrix of its rows."""
    stacked, convolution = weights((12, 6), (6, 4, 3, 3))
    parts = [nn.Parameter(part.clone()) for part in stacked.detach().chunk(3)]
    flat = nn.Parameter(convolution.detach().flatten(1))
    together = Muon([{"params": [stacked, convolution], "matrices": [3, 1]}])
    alone = Muon([{"params": [*parts, flat], "matrices": [1, 1, 1, 1]}])
    for seed in range(2):
        set_gradients([stacked, convolution], seed)
        assert stacked.grad is not None
        assert convolution.grad is not None
        for part, gradient in zip(parts, stacked.grad.chunk(3), strict=True):
            part.grad = gradient.clone()
        flat.grad = convolution.grad.flatten(1)
        together.step()
        alone.step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in parts]))
    torch.testing.assert_close(convolution.detach().flatten(1), flat.detach())


def test_other_weights_move_as_with_adamw() -> None:
    own = weights((4, 4), (4,), (3, 4))
    other = copies(own[1:])
    groups = [
        {"params": [own[0], own[2]], "matrices": [1, 0], "weight_decay": DECAY},
        {"params": [own[1]], "matrices": [0], "weight_decay": 0.0},
    ]
    muon = Muon(groups, lr=RATE, betas=(0.9, 0.95))
    adamw = torch.optim.AdamW(
        [{"params": [other[1]], "weight_decay": DECAY}, {"params": [other[0]], "weight_decay": 0.0}],
        lr=RATE,
        betas=(0.9, 0.95),
    )
    for seed in range(3):
        set_gradients(own, seed)
        for mine, theirs in zip(own[1:], other, strict=True):
            assert mine.grad is not None
            theirs.grad = mine.grad.clone()
        muon.step()
        adamw.step()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own[1:], other, strict=True))


def test_the_closure_sees_every_group_and_its_loss_is_returned() -> None:
    parameters = weights((4, 4), (4,))
    muon = Muon([{"params": parameters, "matrices": [1, 0]}])
    seen: list[int] = []

    def closure() -> Tensor:
        seen.append(sum(len(group["params"]) for group in muon.param_groups))
        muon.zero_grad()
        loss = torch.cat([p.flatten() for p in parameters]).square().sum()
        loss.backward()
        return loss.detach()

    losses = [float(muon.step(closure)) for _ in range(3)]
    assert seen == [2, 2, 2]
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_a_weight_without_gradient_stays() -> None:
    parameters = weights((4, 4), (4, 4))
    before = parameters[1].detach().clone()
    parameters[0].grad = torch.ones(4, 4)
    Muon([{"params": parameters, "matrices": [1, 1]}]).step()
    assert torch.equal(parameters[1], before)


def test_plain_parameters_are_taken_as_any_optimiser_takes_them() -> None:
    own = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4, 1, 3, 3)), nn.Parameter(torch.ones(2))]
    other = [nn.Parameter(p.detach().clone()) for p in own]
    for parameters, given in ((own, iter(own)), (other, [{"params": other, "matrices": [1, 1, 0]}])):
        for parameter in parameters:
            parameter.grad = parameter.detach().cumsum(0)
        Muon(given).step()
    assert all(map(torch.equal, own, other))


def test_a_state_continues_exactly() -> None:
    own = weights((4, 6), (4,))
    muon = Muon([{"params": own, "matrices": [1, 0]}])
    set_gradients(own, 0)
    muon.step()
    other = copies(own)
    resumed = Muon([{"params": other, "matrices": [1, 0]}])
    resumed.load_state_dict(copy.deepcopy(muon.state_dict()))
    for parameters, optimizer in ((own, muon), (other, resumed)):
        set_gradients(parameters, 1)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


@pytest.mark.parametrize(
    ("experiment", "inside", "left"),
    [
        ("meanflow_dit", r"blocks\.", r"patchify|time_embedding|heads\.\d+\.(modulation|projection)"),
        ("meanflow_scenes", r"blocks\.", r"patchify|time_embedding|labels|heads\.\d+\.(modulation|projection)"),
        ("ddpm_iclevr", r"(encoder|middle|decoder)\.", r"stem|head|head_norm|time_embedding|labels"),
        (
            "ddpm_iclevr_context_unet",
            r"stem\.layers\.3|downs|bottleneck|ups|head\.0",
            r"stem\.layers\.0|head\.3|(time|label)_embedding",
        ),
        ("vqgan_scenes", r"(encoder|decoder)\.([1-9]|10|11)\.", r"(encoder|decoder)\.(0|\d+)\.weight|bottleneck"),
        ("label_classifier", r"resnet\.layer\d", r"resnet\.(conv1|fc)"),
    ],
)
def test_ends_of_each_network_are_left_to_adamw(experiment: str, inside: str, left: str) -> None:
    check_ends(build_module(compose_config([f"experiment={experiment}", *tiny(experiment)])).network, inside, left)


def test_ends_of_the_token_transformer_are_left_to_adamw() -> None:
    network = TokenTransformer(8, 4, dim=24, depth=1, label_factors=(2, 3), codebook_KE=torch.randn(8, 4), pixels=True)
    check_ends(network, r"blocks\.", r"embedding|positions|from_code|labels|pixels\.embed")


def check_ends(network: nn.Module, inside: str, left: str) -> None:
    """Every weight of two dimensions and more is of one of the two kinds, by its name, and Muon takes those inside."""
    hidden = hidden_matrices(network)
    weights = {name: p for name, p in network.named_parameters() if p.ndim >= 2}
    taken = {name for name, p in weights.items() if id(p) in hidden}
    assert taken
    assert {name for name in taken if not re.match(inside, name)} == set()
    assert {name for name in weights.keys() - taken if not re.match(left, name)} == set()
    for name in taken:
        layer = name.split(".")[-2]
        stack = {"qkv": 3, "kv": 2, "gate_and_value": 2, "modulation": 6}.get(layer, 2 if layer == "embedding" else 1)
        assert hidden[id(weights[name])] == stack, name
        assert len(weights[name]) % stack == 0


def test_the_step_has_the_size_of_adamw() -> None:
    """About 0.2 times the rate, whatever the shape: singular values end in about [0.8, 1.2]."""
    for shape in ((64, 64), (32, 128), (96, 16)):
        (weight,) = weights(shape)
        before = weight.detach().clone()
        set_gradients([weight], 0)
        Muon([{"params": [weight], "matrices": [1]}], matrix_lr=1.0).step()
        rms = (weight.detach() - before).square().mean().sqrt()
        assert 0.13 < rms < 0.25
