"""A network that begins with another's weights computes at first what that one did, with whatever is new in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.judges.label_classifier import LabelClassifier
from generative.networks import ContextUNet, DiT, TokenTransformer, UNet
from generative.networks.growth import begin_from, named
from generative.types import Condition

SMALL: dict[type[nn.Module], dict[str, Any]] = {
    DiT: {"image_size": 8, "in_channels": 2, "patch_size": 2, "dim": 16, "depth": 1, "num_heads": 2},
    UNet: {
        "image_size": 8, "in_channels": 2, "patch_size": 2, "base_channels": 8, "channel_multipliers": (1, 2),
        "num_blocks": 1, "num_groups": 4, "head_dim": 4, "full_attention": (2,), "cross_attention": (2,),
    },
    ContextUNet: {"image_size": 32, "in_channels": 2, "base_channels": 8},
}  # fmt: skip
RICHER = {  # what the new network has, of which the old one has nothing
    "condition image": {"condition_channels": 3},
    "further time": {"num_times": 2},
    "labels": {"label_factors": (2, 3)},
    "second output": {"num_outputs": 2},
    "all": {"condition_channels": 3, "num_times": 2, "label_factors": (2, 3), "num_outputs": 2},
}


def network(kind: type[nn.Module], seed: int, **settings: Any) -> Any:
    """Build a small network in which no weight is zero."""
    torch.manual_seed(seed)
    net = kind(**SMALL[kind] | settings).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def outputs(net: Any, **settings: Any) -> tuple[Tensor, ...]:
    """What a network makes of the same images, whatever else it is told."""
    g = torch.Generator().manual_seed(0)
    side, labels = settings["image_size"], settings.get("label_factors")
    x, times = torch.randn(3, 2, side, side, generator=g), torch.rand(3, 2, generator=g)
    image = torch.randn(3, settings.get("condition_channels", 0), side, side, generator=g)
    rows = torch.eye(6)[:3] if labels else None
    with torch.no_grad():
        return net(x, times[:, : settings.get("num_times", 1)], Condition(image if image.shape[1] else None, rows))


@pytest.mark.parametrize("more", RICHER.values(), ids=RICHER)
@pytest.mark.parametrize("kind", [*SMALL, "DDPM's U-Net"], ids=str)
def test_what_is_new_changes_nothing_at_first(kind: Any, more: dict[str, Any]) -> None:
    plain = {"adaptive_norm": False} if kind == "DDPM's U-Net" else {}
    kind = UNet if plain else kind
    old, new = network(kind, 0, **plain), network(kind, 1, **plain, **more)
    lines = begin_from(new, old.state_dict())
    (before,) = outputs(old, **SMALL[kind])
    for after in outputs(new, **SMALL[kind] | more):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert not any(line.startswith("left") for line in lines)
    assert len(lines) > 1
    grown = [line.partition(":")[0] for line in lines]
    assert ("grown, zero for new inputs" in grown) == (
        "condition_channels" in more or ("num_times" in more and kind is not UNet)
    )


@pytest.mark.parametrize("kind", SMALL, ids=str)
def test_new_columns_and_labels_are_learnt(kind: type[nn.Module]) -> None:
    new = network(kind, 1, **RICHER["all"])
    begin_from(new, network(kind, 0).state_dict())
    with torch.enable_grad():
        g = torch.Generator().manual_seed(0)
        side = SMALL[kind]["image_size"]
        x, image = (torch.randn(3, channels, side, side, generator=g) for channels in (2, 3))
        out = new(x, torch.rand(3, 2, generator=g), Condition(image, torch.eye(6)[:3]))
        sum(o.square().sum() for o in out).backward()
    ends = [p for name, p in new.named_parameters() if not p.any()]
    assert ends
    assert all(p.grad is not None and p.grad.any() for p in ends), "what is zero has a gradient"


def test_the_way_back_leaves_the_condition_and_the_labels() -> None:
    """A restorer with labels becomes a generator without: its answer where the condition is zero."""
    old, new = network(DiT, 0, condition_channels=3, label_factors=(2, 3)), network(DiT, 1)
    with torch.no_grad():
        old.labels.pool.weight.zero_()
        old.blocks[0].cross_attention.out.weight.zero_()
        old.blocks[0].cross_attention.out.bias.zero_()
    lines = begin_from(new, old.state_dict())
    x = torch.randn(3, 2, 8, 8)
    condition = Condition(torch.zeros(3, 3, 8, 8))
    torch.testing.assert_close(new(x, torch.ones(3, 1), Condition())[0], old(x, torch.ones(3, 1), condition)[0])
    assert "cut, without the last inputs: patchify.weight (16, 20) -> (16, 8)" in lines
    assert lines[-1].startswith("left there: ")
    assert "labels (" in lines[-1]


@pytest.mark.parametrize("kind", [*SMALL, "DDPM's U-Net"], ids=str)
@pytest.mark.parametrize("times", [1, 2])
def test_a_time_that_is_left_out_counts_as_zero(kind: Any, times: int) -> None:
    """A labelled flow map, which is told the scale of guidance, becomes a restorer, which is not."""
    plain = {"adaptive_norm": False} if kind == "DDPM's U-Net" else {}
    kind = UNet if plain else kind
    old, new = network(kind, 0, **plain, num_times=3), network(kind, 1, **plain, num_times=times, condition_channels=3)
    lines = begin_from(new, old.state_dict())
    side, g = SMALL[kind]["image_size"], torch.Generator().manual_seed(0)
    x, image = (torch.randn(3, channels, side, side, generator=g) for channels in (2, 3))
    told = torch.rand(3, 3, generator=g)
    told[:, times:] = 0
    before, after = old(x, told, Condition()), new(x, told[:, :times], Condition(image))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert any(line.startswith("taken, with what inputs") for line in lines) == (kind is not ContextUNet)
    assert not any(line.startswith("new, as built") for line in lines)


def test_other_labels_begin_as_built_and_keep_the_answer_without_any() -> None:
    old, new = network(DiT, 0, label_factors=(5,)), network(DiT, 1, label_factors=(2, 3))
    tables = [factor.clone() for factor in new.labels.factors]
    lines = begin_from(new, old.state_dict())
    x = torch.randn(3, 2, 8, 8)
    torch.testing.assert_close(new(x, torch.ones(3, 1), Condition())[0], old(x, torch.ones(3, 1), Condition())[0])
    assert all(map(torch.equal, new.labels.factors, tables))
    assert "new, as built: labels.factors (2 tensors)" in lines
    judge = LabelClassifier(num_labels=3)
    assert "new, as built: resnet.fc (2 tensors)" in begin_from(judge, LabelClassifier(num_labels=5).state_dict())


def test_a_token_transformer_that_sees_pixels_begins_as_one_that_does_not() -> None:
    sizes = {"num_codes": 8, "grid_size": 2, "dim": 16, "depth": 1, "num_heads": 2, "codebook_KE": torch.randn(8, 3)}
    old = TokenTransformer(**sizes)
    for parameter in old.parameters():
        nn.init.normal_(parameter, std=0.2)
    new = TokenTransformer(**sizes, pixels=True, label_factors=(2, 3))
    lines = begin_from(new, old.state_dict())
    tokens, image = torch.randint(9, (2, 4)), torch.cat([torch.randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8)], 1)
    before, after = old(tokens, Condition()), new(tokens, Condition(image, torch.eye(6)[:2]))
    # before the patches of the codes are measured, the pixels say the same of every code
    torch.testing.assert_close(after.log_softmax(-1), before.log_softmax(-1))
    assert any(line.startswith("new, zero") and "pixels.embed" in line for line in lines)
    other = TokenTransformer(**sizes | {"codebook_KE": torch.randn(8, 3)})
    with pytest.raises(ValueError, match="codes are those of another tokenizer: set tokenizer="):
        begin_from(other, old.state_dict())


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    old, new = network(DiT, 0).state_dict(), network(DiT, 1, dim=32)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(ValueError, match=r"its patchify.weight has the shape \(16, 8\) and here \(32, 8\)"):
        begin_from(new, old)
    with pytest.raises(ValueError, match=r"patchify.bias is of type torch.int64 and here of torch.float32"):
        begin_from(network(DiT, 1), old | {"patchify.bias": torch.zeros(16, dtype=torch.int64)})
    with pytest.raises(ValueError, match="none of its tensors has a counterpart"):
        begin_from(new, LabelClassifier().state_dict())
    assert all(torch.equal(before[name], value) for name, value in new.state_dict().items())
    for settings in ({"in_channels": 3}, {"patch_size": 4}, {"in_channels": 1}):
        for kind in (DiT, UNet):
            with pytest.raises(ValueError, match="which is no growth"):
                begin_from(network(kind, 1, **settings), network(kind, 0).state_dict())


def test_weights_of_fewer_bits_are_taken_in_the_networks_own_type() -> None:
    new = network(DiT, 1)
    old = {name: value.half() for name, value in network(DiT, 0).state_dict().items()}
    begin_from(new, old)
    assert all(v.dtype == torch.float32 and torch.equal(v, old[n].float()) for n, v in new.state_dict().items())


def test_a_module_stands_for_its_tensors() -> None:
    every = ["a.0.w", "a.0.b", "a.1.w", "b.w"]
    assert named(["a.0.w", "a.0.b", "b.w"], every) == ["a.0 (2 tensors)", "b"]
    assert named(["a.0.w"], every) == ["a.0.w"]
