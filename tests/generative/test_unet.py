"""The U-Net: the network contract, its parts against plain formulas, and its presets."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from generative.flow_map import FlowMap
from generative.networks import UNet
from generative.networks.attention import LinearAttention
from generative.networks.unet import nearest_levels
from generative.networks.unet_blocks import ResidualBlock, SinusoidalTimeEmbedding, Stage
from generative.objectives.derivative import total_derivative
from generative.types import Condition
from launch import build
from launch.compose import compose_config
from launch.resolvers import register_resolvers

SMALL: dict[str, Any] = {
    "image_size": 16, "in_channels": 3, "base_channels": 8, "channel_multipliers": (1, 2), "num_blocks": 1,
    "num_groups": 4, "head_dim": 4,
}  # fmt: skip
CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"patch_size": 2},
    {"patch_size": 4, "in_channels": 1, "num_blocks": 2},
    {"channel_multipliers": (1,), "full_attention": (16,)},
    {"channel_multipliers": (2, 1, 3), "linear_attention": (16, 8), "full_attention": (4,), "num_outputs": 2},
    {"label_factors": (3, 4), "cross_attention": (8,), "full_attention": (8,), "patch_size": 2},
    {"label_factors": (10,), "num_times": 2, "num_outputs": 2, "condition_channels": 4, "full_attention": (8,)},
    {"adaptive_norm": False, "dropout": 0.5, "label_factors": (3, 4)},
    {"cross_attention": (8,), "condition_channels": 2},
]


def perturbed(**settings: Any) -> UNet:
    """Build a small network in which no weight is zero."""
    torch.manual_seed(0)
    net = UNet(**SMALL | settings).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def arguments(net: UNet, settings: dict[str, Any], size: int = 4) -> tuple[Tensor, Tensor, Condition]:
    g = torch.Generator().manual_seed(1)
    settings = {"condition_channels": 0, "num_times": 1} | SMALL | settings
    image_size, extra = settings["image_size"], settings["condition_channels"]
    image = torch.randn(size, extra, image_size, image_size, generator=g) if extra else None
    labels = (torch.rand(size, net.labels.num_labels, generator=g) < 0.2).float() if net.labels else None
    x = torch.randn(size, settings["in_channels"], image_size, image_size, generator=g)
    return x, torch.rand(size, settings["num_times"], generator=g), Condition(image, labels)


@pytest.mark.parametrize("settings", CONFIGURATIONS, ids=str)
def test_contract(settings: dict[str, Any]) -> None:
    net = UNet(**SMALL | settings)
    x, times, condition = arguments(net, settings)
    outputs = net(x, times, condition)
    assert isinstance(outputs, tuple)
    assert [o.shape for o in outputs] == [x.shape] * settings.get("num_outputs", 1)
    largest = 0 if settings.get("adaptive_norm", True) else 1e-4  # DDPM's own zero is a variance of 1e-10
    assert all(o.abs().max() <= largest for o in outputs), "the last convolution begins at zero"


@pytest.mark.parametrize("settings", CONFIGURATIONS, ids=str)
def test_every_parameter_is_trained_and_every_input_is_used(settings: dict[str, Any]) -> None:
    net = perturbed(**settings)
    x, times, condition = arguments(net, settings)
    inputs = [x, times] + ([condition.image] if condition.image is not None else [])
    for tensor in inputs:
        tensor.requires_grad_()
    sum(o.square().sum() for o in net(x, times, condition)).backward()
    untrained = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untrained
    assert all(t.grad.flatten(1).any(1).all() for t in inputs)


def test_labels_are_sets_and_the_empty_set_is_no_condition() -> None:
    settings = {"label_factors": (3, 4), "cross_attention": (8, 16), "full_attention": (8,)}
    net = perturbed(**settings)
    x = torch.randn(1, 3, 16, 16).expand(5, -1, -1, -1)
    labels = torch.zeros(5, 12)
    for row, members in enumerate([[], [1], [1, 6], [6, 1], [2, 5]]):
        labels[row, members] = 1
    (out,) = net(x, torch.full((5, 1), 0.3), Condition(labels=labels))
    torch.testing.assert_close(out[2], out[3])
    (null,) = net(x[:1], torch.full((1, 1), 0.3), Condition())
    torch.testing.assert_close(out[0], null[0], rtol=1e-4, atol=1e-4)
    # {red cube, blue ball} and {blue cube, red ball} hold the same shapes and colours, and are different scenes
    distances = torch.cdist(out[[0, 1, 2, 4]].flatten(1), out[[0, 1, 2, 4]].flatten(1)) + 1e3 * torch.eye(4)
    assert distances.min() > 1e-3 * out.flatten(1).norm(dim=1).mean()


def test_rows_do_not_see_each_other() -> None:
    settings = {"label_factors": (3, 4), "cross_attention": (8,), "linear_attention": (16,), "num_times": 2}
    net = perturbed(**settings)
    x, times, condition = arguments(net, settings)
    (whole,) = net(x, times, condition)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(net(x[rows], times[rows], condition.select(rows))[0], whole[rows], rtol=1e-4, atol=1e-4)


def test_linear_attention_equals_its_weights_written_out() -> None:
    layer = LinearAttention(12, 3)
    x = torch.randn(2, 7, 12)
    q, k, v = layer.qkv(x).view(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4)
    q = q.exp() / q.exp().sum(-1, keepdim=True)
    k = k.exp() / k.exp().sum(-2, keepdim=True)
    weights = q @ k.mT
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7))
    torch.testing.assert_close(layer(x), layer.out((weights @ v).transpose(1, 2).reshape(2, 7, 12)))


@pytest.mark.parametrize("adaptive", [True, False])
def test_residual_block_equals_its_definition(adaptive: bool) -> None:
    block = ResidualBlock(4, 8, 6, num_groups=2, dropout=0.0, adaptive_norm=adaptive)
    x, embedding = torch.randn(3, 4, 5, 5), torch.randn(3, 6)
    torch.testing.assert_close(block(x, embedding), block.shortcut(x))
    nn.init.normal_(block.out_conv.weight)
    h = block.in_conv(F.silu(F.group_norm(x, 2, eps=1e-5 if adaptive else 1e-6)))
    e = block.out_norm.embedding(embedding)[..., None, None]
    h = F.group_norm(h, 2) * (1 + e[:, :8]) + e[:, 8:] if adaptive else F.group_norm(h + e, 2, eps=1e-6)
    torch.testing.assert_close(block(x, embedding), block.shortcut(x) + block.out_conv(F.silu(h)), rtol=1e-4, atol=1e-4)


def test_time_features_are_those_of_a_thousand_steps() -> None:
    layer = SinusoidalTimeEmbedding(num_times=2, num_features=8, dim=16)
    times = torch.tensor([[0.25, 0.5]])

    def features(step: float) -> Tensor:
        angles = [step / 10000 ** (i / 4) for i in range(4)]
        return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])

    expected = layer.mlps[0](features(250)) + layer.mlps[1](features(500))
    torch.testing.assert_close(layer(times)[0], expected, rtol=1e-4, atol=1e-4)


def test_patches_are_pixels_of_a_smaller_image() -> None:
    """With patches of 2 the network is the one of a quarter of the pixels and four times the channels."""
    net = perturbed(patch_size=2, in_channels=1)
    inner = perturbed(image_size=8, in_channels=4)
    inner.load_state_dict(net.state_dict())
    x, times = torch.randn(2, 1, 16, 16), torch.rand(2, 1)
    (expected,) = inner(F.pixel_unshuffle(x, 2), times, Condition())
    torch.testing.assert_close(net(x, times, Condition())[0], F.pixel_shuffle(expected, 2))


def test_derivative_of_mean_flow_goes_through_the_network() -> None:
    settings = {
        "num_times": 2, "num_outputs": 2, "label_factors": (3, 4),
        "cross_attention": (8,), "full_attention": (8,), "linear_attention": (16,),
    }  # fmt: skip
    net = perturbed(**settings)
    z, times, condition = arguments(net, settings)
    t = 0.3 + 0.6 * times[:, 0]
    r, v = t * times[:, 1], torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    exact = total_derivative(FlowMap(net), z, r, t, v, condition)
    double = FlowMap(net.double())
    z, v, r, t, h = z.double(), v.double(), r.double(), t.double(), 1e-6
    condition = Condition(labels=condition.labels.double())
    with torch.no_grad():
        ahead = double.velocities(z + h * v, r, t + h, condition)[0]
        behind = double.velocities(z - h * v, r, t - h, condition)[0]
    numeric = (ahead - behind) / (2 * h)
    torch.testing.assert_close(exact.double(), numeric, rtol=2e-3, atol=2e-3 * numeric.abs().max().item())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 20, "channel_multipliers": (1, 1, 1, 1)}, "data.image_size=20 is no multiple of 8"),
        ({"image_size": 18, "patch_size": 2}, "network.patch_size=2"),
        ({"full_attention": (8, 7)}, r"network.full_attention=\[7\] .* \[16, 8\]"),
        ({"cross_attention": (4,)}, r"network.cross_attention=\[4\]"),
        ({"full_attention": (4,), "cross_attention": (2,)}, r"full_attention=\[4\] and network.cross_attention=\[2\]"),
        ({"base_channels": 6}, "network.num_groups=4"),
        ({"head_dim": 5}, "network.head_dim=5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL | settings)


@pytest.mark.parametrize(
    ("resolutions", "sizes", "expected"),
    [
        ([8], (32, 2, [1, 1]), [8]),
        ([8], (8, 1, [1, 1]), [8]),  # latents: a level that is there stays, whichever it is
        ([8], (64, 2, [1, 1]), [16]),
        ([16, 8], (128, 2, [1, 2, 4]), [16]),
        ([32, 16, 8], (64, 1, [1, 2, 2, 3]), [32, 16, 8]),
        ([8], (4, 8, [1]), [8]),  # no level at all: the network says so
    ],
)
def test_resolutions_follow_the_size_of_the_images(
    resolutions: list[int], sizes: tuple[int, int, list[int]], expected: list[int]
) -> None:
    assert nearest_levels(resolutions, *sizes) == expected


@pytest.mark.parametrize(
    ("arguments", "full", "cross"),
    [
        ("ddpm_scenes", [8], [8]),
        ("ddpm_iclevr", [8], [16, 8]),
        ("ddpm_iclevr_large", [16, 8], [32, 16, 8]),
        ("ddpm_cifar10", [16], []),
        ("ddpm_scenes data=scenes64", [16], [16]),
    ],
)
def test_experiments_have_attention_where_their_images_let_them(
    arguments: str, full: list[int], cross: list[int]
) -> None:
    network = compose_config(f"experiment={arguments}".split()).network
    assert (network.full_attention, network.cross_attention) == (full, cross)


def test_a_network_can_be_built_for_other_images() -> None:
    network = build.build_module(compose_config(["experiment=ddpm_scenes", "data=scenes64"])).network
    assert num_parameters(network) == num_parameters(
        build.build_module(compose_config(["experiment=ddpm_scenes"])).network
    )


def preset(name: str, **settings: Any) -> UNet:
    register_resolvers()
    folder = ROOT / "conf" / "network"
    config = OmegaConf.load(folder / f"{name}.yaml")
    for base in config.pop("defaults", []):
        config = OmegaConf.merge(OmegaConf.load(folder / f"{base}.yaml"), config)
    return instantiate(OmegaConf.merge(config, {"in_channels": 3, **settings}))


def num_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# config.json of google/ddpm-cifar10-32, the published weights in diffusers' form
PUBLISHED: dict[str, Any] = {
    "act_fn": "silu", "attention_head_dim": None, "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def published_weights(reference: nn.Module, net: UNet) -> dict[str, Tensor]:
    """Return diffusers' weights under the names of this project's network."""
    theirs = reference.state_dict()
    weights: dict[str, Tensor] = {}

    def take(name: str, *sources: str) -> None:
        for kind in ("weight", "bias"):
            weights[f"{name}.{kind}"] = torch.cat([theirs[f"{source}.{kind}"] for source in sources])

    def take_stage(name: str, stage: Stage, block: str, number: int) -> None:
        parts = {"in_norm": "norm1", "in_conv": "conv1", "out_norm.embedding": "time_emb_proj",
                 "out_norm.norm": "norm2", "out_conv": "conv2"}  # fmt: skip
        if not isinstance(stage.block.shortcut, nn.Identity):
            parts["shortcut"] = "conv_shortcut"
        for own, source in parts.items():
            take(f"{name}.block.{own}", f"{block}.resnets.{number}.{source}")
        if len(stage.attention):
            source, own = f"{block}.attentions.{number}", f"{name}.attention.0"
            take(f"{own}.norm", f"{source}.group_norm")
            take(f"{own}.attention.qkv", *(f"{source}.to_{part}" for part in "qkv"))
            take(f"{own}.attention.out", f"{source}.to_out.0")

    take("stem", "conv_in")
    take("time_embedding.mlps.0.0", "time_embedding.linear_1")
    take("time_embedding.mlps.0.2", "time_embedding.linear_2")
    for layers, blocks in ((net.encoder, "down"), (net.decoder, "up")):
        level, number = 0, 0
        for index, layer in enumerate(layers):
            name = f"{'encoder' if blocks == 'down' else 'decoder'}.{index}"
            if isinstance(layer, Stage):
                take_stage(name, layer, f"{blocks}_blocks.{level}", number)
                number += 1
            else:  # the end of a level
                take(f"{name}.1", f"{blocks}_blocks.{level}.{blocks}samplers.0.conv")
                level, number = level + 1, 0
    for number, stage in enumerate(net.middle):
        take_stage(f"middle.{number}", stage, "mid_block", number)
    take("head_norm", "conv_norm_out")
    take("head", "conv_out")
    return weights


def test_the_cifar10_preset_is_the_published_network() -> None:
    """The same function of the same 35,746,307 weights as diffusers' (arXiv 2006.11239, appendix B, and its code)."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net, reference = preset("unet_cifar10", image_size=32).eval(), diffusers.UNet2DModel(**PUBLISHED).eval()
    assert num_parameters(net) == num_parameters(reference) == 35_746_307
    net.load_state_dict(published_weights(reference, net))
    x, step = torch.randn(3, 3, 32, 32), torch.tensor([0, 137, 999])
    with torch.no_grad():
        (output,) = net(x, (step[:, None] + 1) / 1000, Condition())
        expected = reference(x, step).sample
    assert expected.std() > 0.05
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_the_cifar10_preset_begins_as_published() -> None:
    """Uniform with the variance 1/fan of the mean fan, times 1e-10 in last layers (TensorFlow's variance scaling)."""
    torch.manual_seed(0)
    net = UNet(**SMALL | {"base_channels": 64, "full_attention": (8,), "head_dim": 128, "adaptive_norm": False})
    block, attention = net.encoder[2].block, net.encoder[2].attention[0].attention
    for weight, fan, scale in (
        (block.in_conv.weight, (64 * 9 + 128 * 9) / 2, 1),
        (block.shortcut.weight, (64 + 128) / 2, 1),
        (block.out_norm.embedding.weight, (256 + 128) / 2, 1),
        *((part, 128, 1) for part in attention.qkv.weight.chunk(3)),
        (block.out_conv.weight, 128 * 9, 1e-10),
        (attention.out.weight, 128, 1e-10),
        (net.head.weight, (64 * 9 + 3 * 9) / 2, 1e-10),
    ):
        limit = math.sqrt(3 * scale / fan)
        assert weight.abs().max().item() == pytest.approx(limit, rel=0.01)
        assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("unet", 64), ("unet_small", 64), ("unet_tiny", 32), ("unet_context", 64), ("unet_context_deep", 64),
        ("unet_context_added", 64), ("unet_context_no_labels", 64), ("unet_context_no_time", 64),
    ],
)  # fmt: skip
def test_presets_state_their_size(name: str, image_size: int) -> None:
    first_line = (ROOT / "conf" / "network" / f"{name}.yaml").read_text().partition("\n")[0]
    stated = float(re.search(r"([\d.]+) M parameters", first_line)[1])
    with torch.device("meta"):
        network = preset(name, image_size=image_size, label_factors=[3, 8])
    assert num_parameters(network) / 1e6 == pytest.approx(stated, abs=0.06)
