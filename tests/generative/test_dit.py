"""The diffusion transformer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from generative.networks import DiT
from generative.networks.dit import Attention, sincos_positions
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
    net = DiT(image_size=8, in_channels=1, patch_size=4, dim=16, depth=0, num_heads=1)
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
