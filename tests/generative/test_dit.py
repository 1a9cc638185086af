"""The diffusion transformer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from generative.flow_map import FlowMap
from generative.networks import DiT
from generative.networks.dit import Attention, sincos_positions
from generative.objectives.derivative import total_derivative
from generative.types import Condition


def test_outputs_are_zero_and_blocks_identities_at_initialisation() -> None:
    net = DiT(
        image_size=8, in_channels=3, condition_channels=4, num_times=2, num_outputs=2, dim=32, depth=2, num_heads=2
    )
    outputs = net(torch.randn(2, 3, 8, 8), torch.rand(2, 2), Condition(torch.randn(2, 4, 8, 8)))
    assert [o.shape for o in outputs] == [(2, 3, 8, 8)] * 2
    assert all((o == 0).all() for o in outputs)
    tokens = torch.randn(2, 4, 32)
    assert torch.equal(net.blocks[0](tokens, torch.randn(2, 32)), tokens)


def test_patches_go_back_where_they_came_from() -> None:
    net = DiT(image_size=8, in_channels=1, patch_size=4, dim=16, depth=1, num_heads=1)
    with torch.no_grad():
        net.patchify.weight.copy_(torch.eye(16))
        net.patchify.bias.zero_()
        net.heads[0].projection.weight.copy_(torch.eye(16))
    net.heads[0].norm = torch.nn.Identity()
    x = torch.randn(2, 1, 8, 8)
    (output,) = net(x, torch.rand(2, 1), Condition())
    positions = sincos_positions(2, 2, 16)
    expected = F.fold((F.unfold(x, 4, stride=4).mT + positions).mT, 8, 4, stride=4)
    torch.testing.assert_close(output, expected)


def test_attention_equals_its_definition() -> None:
    layer = Attention(16, 2)
    x = torch.randn(3, 5, 16)
    q, k, v = layer.qkv(x).view(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    q = layer.q_norm.weight * q / q.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    k = layer.k_norm.weight * k / k.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    expected = layer.out(((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(3, 5, 16))
    torch.testing.assert_close(layer(x), expected)


def test_position_embeddings_are_distinct_and_bounded() -> None:
    positions = sincos_positions(8, 8, 64)
    assert positions.abs().max() <= 1
    distances = torch.cdist(positions, positions) + 1e3 * torch.eye(64)
    assert distances.min() > 0.1


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"network.patch_size=5 does not divide data.image_size=32"):
        DiT(image_size=32, in_channels=1, patch_size=5)
    with pytest.raises(ValueError, match=r"network.dim"):
        DiT(image_size=32, in_channels=1, dim=100, num_heads=4)


def test_every_parameter_is_trained() -> None:
    net = DiT(
        image_size=8,
        in_channels=1,
        condition_channels=2,
        num_times=2,
        num_outputs=2,
        dim=32,
        depth=1,
        head_depth=1,
        num_heads=2,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    outputs = net(torch.randn(2, 1, 8, 8), torch.rand(2, 2), Condition(torch.randn(2, 2, 8, 8)))
    sum(o.square().sum() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def labelled(**settings: int) -> DiT:
    return DiT(image_size=8, in_channels=3, dim=32, depth=2, num_heads=2, label_factors=(3, 4), **settings)


def test_without_labels_the_parameters_are_those_of_old_checkpoints() -> None:
    state = DiT(image_size=8, in_channels=1, dim=16, depth=1, num_heads=2).state_dict()
    block = ("attention.qkv.weight", "attention.q_norm.weight", "attention.k_norm.weight", "attention.out.weight",
             "attention.out.bias", "mlp.gate_and_value.weight", "mlp.gate_and_value.bias", "mlp.out.weight",
             "mlp.out.bias", "modulation.weight", "modulation.bias")  # fmt: skip
    assert list(state) == [
        "patchify.weight", "patchify.bias", "time_embedding.mlp.0.weight", "time_embedding.mlp.0.bias",
        "time_embedding.mlp.2.weight", "time_embedding.mlp.2.bias", *(f"blocks.0.{name}" for name in block),
        "heads.0.modulation.weight", "heads.0.modulation.bias", "heads.0.projection.weight", "heads.0.projection.bias",
    ]  # fmt: skip


def test_blocks_with_cross_attention_begin_as_identities() -> None:
    block = labelled().blocks[0]
    tokens = torch.randn(2, 4, 32)
    objects = labelled().labels(torch.eye(12)[:2], 2)
    assert torch.equal(block(tokens, torch.randn(2, 32), objects), tokens)


@pytest.mark.parametrize("path", ["pooled", "cross"])
def test_labels_act_by_each_path_and_the_empty_set_is_no_condition(path: str) -> None:
    torch.manual_seed(0)
    net = labelled(head_depth=1)
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, std=0.2)
        if ("labels.pool" if path == "cross" else "cross_attention.out") in name:
            nn.init.zeros_(parameter)
    x, times = torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1), torch.full((4, 1), 0.5)
    labels = torch.zeros(4, 12)
    for row, members in enumerate([[], [1], [1, 6], [2, 5]]):
        labels[row, members] = 1
    (out,) = net(x, times, Condition(labels=labels))
    (null,) = net(x[:1], times[:1], Condition())
    torch.testing.assert_close(out[:1], null, rtol=1e-4, atol=1e-4)
    distances = torch.cdist(out.flatten(1), out.flatten(1)) + 1e3 * torch.eye(4)
    assert distances.min() > 1e-3 * out.flatten(1).norm(dim=1).mean()


def test_every_parameter_of_the_labelled_network_is_trained() -> None:
    net = labelled(head_depth=1, num_outputs=2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    outputs = net(torch.randn(2, 3, 8, 8), torch.rand(2, 1), Condition(labels=torch.eye(12)[[3, 7]]))
    sum(o.square().sum() for o in outputs).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_derivative_of_mean_flow_goes_through_the_label_tokens() -> None:
    torch.manual_seed(0)
    net = labelled(num_times=2, num_outputs=2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    z, v = torch.randn(2, 3, 3, 8, 8)
    t, labels = torch.tensor([0.4, 0.6, 0.9]), torch.zeros(3, 12)
    labels[0, 2] = labels[1, [3, 8]] = 1
    exact = total_derivative(FlowMap(net), z, t / 2, t, v, Condition(labels=labels))
    double, h = FlowMap(net.double()), 1e-6
    z, v, t, r, condition = z.double(), v.double(), t.double(), t.double() / 2, Condition(labels=labels.double())
    with torch.no_grad():
        ahead = double.velocities(z + h * v, r, t + h, condition)[0]
        behind = double.velocities(z - h * v, r, t - h, condition)[0]
    numeric = (ahead - behind) / (2 * h)
    torch.testing.assert_close(exact.double(), numeric, rtol=2e-3, atol=2e-3 * numeric.abs().max().item())
