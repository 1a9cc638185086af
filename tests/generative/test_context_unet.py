"""The context U-Net and its ablations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from generative.networks import ContextUNet
from generative.networks.context_unet import DoubleConv
from generative.types import Condition

ABLATIONS: list[dict[str, Any]] = [
    {},
    {"time_embedding": False},
    {"label_embedding": False},
    {"time_embedding": False, "label_embedding": False},
    {"add_at_every_level": True},
    {"extra_levels": 2},
    {"extra_levels": 1, "add_at_every_level": True},
]


def network(**settings: Any) -> ContextUNet:
    torch.manual_seed(0)
    return ContextUNet(**{"image_size": 32, "in_channels": 3, "label_factors": (3, 8), "base_channels": 8} | settings)


def sensitivity(net: ContextUNet) -> tuple[Tensor, Tensor]:
    """Return the gradients of the output with respect to times and labels."""
    g = torch.Generator().manual_seed(1)
    times, labels = torch.rand(2, 1, generator=g, requires_grad=True), torch.rand(2, 24, generator=g)
    (out,) = net.eval()(torch.randn(2, 3, 32, 32, generator=g), times, Condition(labels=labels.requires_grad_()))
    gradients = torch.autograd.grad(out.square().sum(), [times, labels], allow_unused=True, materialize_grads=True)
    return gradients[0], gradients[1]


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_contract_and_every_parameter_is_trained(settings: dict[str, Any]) -> None:
    net = network(num_times=2, num_outputs=2, condition_channels=4, **settings)
    condition = Condition(torch.randn(2, 4, 32, 32), (torch.rand(2, 24) < 0.2).float())
    outputs = net(torch.randn(2, 3, 32, 32), torch.rand(2, 2), condition)
    assert isinstance(outputs, tuple)
    assert [o.shape for o in outputs] == [(2, 3, 32, 32)] * 2
    sum(o.square().sum() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.any() for n, p in net.named_parameters())


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_ablations_take_away_what_they_say(settings: dict[str, Any]) -> None:
    to_times, to_labels = sensitivity(network(**settings))
    assert bool(to_times.any()) == settings.get("time_embedding", True)
    assert bool(to_labels.any()) == settings.get("label_embedding", True)


def test_labels_multiply_and_time_adds_before_each_step_up() -> None:
    net = network().eval()
    seen: dict[str, Tensor] = {}
    net.bottleneck.register_forward_hook(lambda _m, _i, out: seen.update(features=out))
    net.ups[0].register_forward_pre_hook(lambda _m, i: seen.update(conditioned=i[0]))
    times, labels = torch.rand(2, 1), (torch.rand(2, 24) < 0.2).float()
    net(torch.randn(2, 3, 32, 32), times, Condition(labels=labels))
    label, time = net.label_embedding.mlps[0](labels), net.time_embedding.mlps[0](times)
    expected = seen["features"] * label[..., None, None] + time[..., None, None]
    torch.testing.assert_close(seen["conditioned"][:, :16], expected)


def test_added_conditions_reach_the_way_down() -> None:
    def bottleneck(net: ContextUNet, labels: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        net.bottleneck.register_forward_hook(lambda _m, _i, out: outputs.append(out))
        net.eval()(torch.ones(1, 3, 32, 32), torch.ones(1, 1), Condition(labels=labels))
        return outputs[-1]

    a, b = torch.eye(24)[:1], torch.eye(24)[5:6]
    published, added = network(), network(add_at_every_level=True)
    assert torch.equal(bottleneck(published, a), bottleneck(published, b))
    assert not torch.allclose(bottleneck(added, a), bottleneck(added, b))


@pytest.mark.parametrize(
    ("settings", "inner", "pooled"),
    [
        ({"image_size": 64}, 16, 2),
        ({"image_size": 64, "extra_levels": 2}, 4, 1),
        ({"image_size": 32}, 8, 1),
        ({"image_size": 28}, 7, 1),
    ],
)
def test_bottleneck_sizes(settings: dict[str, Any], inner: int, pooled: int) -> None:
    net = network(**settings).eval()
    sizes: list[int] = []
    net.bottleneck[0].register_forward_hook(lambda _m, i, out: sizes.extend([i[0].shape[-1], out.shape[-1]]))
    size = settings["image_size"]
    (out,) = net(torch.randn(2, 3, size, size), torch.rand(2, 1), Condition())
    assert sizes == [inner, pooled]
    assert out.shape == (2, 3, size, size)


def test_blocks_are_residual_where_channels_match() -> None:
    same, wider, x = DoubleConv(4, 4).eval(), DoubleConv(4, 8).eval(), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(same(x), (x + same.layers(x)) / 1.414)
    torch.testing.assert_close(wider(x), wider.layers(x))


def test_no_labels_are_zeros_and_a_network_without_them_does_not_look() -> None:
    x, times = torch.randn(2, 3, 32, 32), torch.rand(2, 1)
    net = network().eval()
    torch.testing.assert_close(net(x, times, Condition()), net(x, times, Condition(labels=torch.zeros(2, 24))))
    net = network(label_factors=()).eval()
    torch.testing.assert_close(net(x, times, Condition()), net(x, times, Condition(labels=torch.ones(2, 24))))


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="data.image_size=30"):
        network(image_size=30)
    with pytest.raises(ValueError, match="data.image_size=256"):
        network(image_size=256)
    with pytest.raises(ValueError, match="network.base_channels=12"):
        network(base_channels=12)
    with pytest.raises(ValueError, match="24 labels, but the batch has 10"):
        network()(torch.randn(2, 3, 32, 32), torch.rand(2, 1), Condition(labels=torch.zeros(2, 10)))
