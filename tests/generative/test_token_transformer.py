"""The transformer over tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.networks import TokenTransformer
from generative.types import Condition


def transformer(labelled: bool = False, std: float = 0.2, **settings: float) -> TokenTransformer:
    """A network that is far from its initial values."""
    torch.manual_seed(0)
    net = TokenTransformer(10, 4, dim=32, depth=2, num_heads=2, label_factors=(3, 4) if labelled else (), **settings)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std)
    return net.eval()


def tokens(rows: int = 3) -> Tensor:
    return torch.randint(11, (rows, 16), generator=torch.Generator().manual_seed(1))


def test_there_is_an_input_but_no_output_for_the_mask() -> None:
    net = transformer()
    assert (net.num_codes, net.mask_token, net.num_tokens) == (10, 10, 16)
    logits = net(torch.full((2, 16), net.mask_token), Condition())
    assert logits.shape == (2, 16, 10)
    assert logits.dtype is torch.float32


def test_at_first_nothing_is_preferred_by_much_and_blocks_are_identities() -> None:
    torch.manual_seed(0)
    net = TokenTransformer(512, 8, dim=192, depth=2, num_heads=6, label_factors=(3, 4))
    labels = torch.eye(12)[:2]
    codes = torch.full((2, 64), net.mask_token)
    logits = net(codes, Condition(labels=labels))
    assert torch.equal(logits, net(codes, Condition()))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.arange(128))
    uniform = torch.tensor(512.0).log()
    assert abs(loss - uniform) < 0.2
    x = torch.randn(2, 64, 192)
    assert torch.equal(net.blocks[0](x, net.labels(labels, 2)), x)


def test_every_token_sees_every_other_in_both_directions() -> None:
    net = transformer()
    before = tokens(1)
    for changed in (0, 7, 15):
        after = before.clone()
        after[0, changed] = (after[0, changed] + 1) % 11
        difference = (net(after, Condition()) - net(before, Condition())).abs().amax(dim=-1)
        assert (difference > 1e-4).all()


def test_rows_do_not_see_each_other() -> None:
    net, batch = transformer(), tokens()
    alone = torch.cat([net(row[None], Condition()) for row in batch])
    torch.testing.assert_close(net(batch, Condition()), alone)


def test_positions_tell_equal_tokens_apart() -> None:
    logits = transformer()(torch.full((1, 16), 3), Condition())[0]
    assert (torch.cdist(logits, logits) + torch.eye(16)).min() > 1e-2
    net = transformer()
    nn.init.zeros_(net.positions)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    batch = tokens(1)
    torch.testing.assert_close(net(batch[:, order], Condition()), net(batch, Condition())[:, order])


@pytest.mark.parametrize("path", ["pooled", "cross"])
def test_labels_act_by_each_path_and_the_empty_set_is_no_condition(path: str) -> None:
    net = transformer(labelled=True)
    for name, parameter in net.named_parameters():
        if ("labels.pool" if path == "cross" else "cross_attention.out") in name:
            nn.init.zeros_(parameter)
    labels = torch.zeros(4, 12)
    for row, members in enumerate([[], [1], [1, 6], [2, 5]]):
        labels[row, members] = 1
    batch = tokens(1).expand(4, -1)
    out = net(batch, Condition(labels=labels))
    torch.testing.assert_close(out[:1], net(batch[:1], Condition()), rtol=1e-4, atol=1e-4)
    distances = torch.cdist(out.flatten(1), out.flatten(1)) + 1e3 * torch.eye(4)
    assert distances.min() > 1e-3 * out.flatten(1).norm(dim=1).mean()


def test_without_label_factors_labels_are_not_looked_at() -> None:
    net, batch = transformer(), tokens()
    assert torch.equal(net(batch, Condition(labels=torch.ones(3, 24))), net(batch, Condition()))


@pytest.mark.parametrize("labelled", [False, True])
def test_every_parameter_is_trained(labelled: bool) -> None:
    net = transformer(labelled)
    net(tokens(2), Condition(labels=torch.eye(12)[[3, 7]])).square().sum().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_fresh_networks_learn_in_the_first_steps() -> None:
    """Zero at the residual branches' ends and shared embeddings must not keep each other from moving."""
    torch.manual_seed(0)
    net = TokenTransformer(10, 4, dim=32, depth=1, num_heads=2)
    target = torch.arange(16).remainder(10)[None]
    inputs = torch.full((1, 16), net.mask_token)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(net(inputs, Condition()).flatten(0, 1), target.flatten())
        parameters = list(net.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= 5e-3 * gradient.sign()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_codes_that_are_the_same_share_the_part_that_is_not_learnt_for_each() -> None:
    torch.manual_seed(0)
    codebook = torch.randn(10, 3) * torch.tensor([1.0, 20.0, 0.1]) + 5
    codebook[7] = codebook[2]
    net = TokenTransformer(10, 4, dim=32, depth=1, num_heads=2, codebook_KE=codebook)
    shared = net._table() - net.embedding.weight
    torch.testing.assert_close(shared[2], shared[7])
    assert (torch.pdist(shared[[0, 1, 2, 3, 4]]) > 0.01).all()
    assert not shared[10].any()  # the mask token has no code
    net(tokens(2), Condition()).square().sum().backward()
    assert net.from_code.weight.grad.any()
    assert "codebook" in net.state_dict()


def seeing() -> tuple[TokenTransformer, Tensor, Tensor]:
    """A network that has measured patches of 2x2 pixels; and the images and tokens it did so in."""
    torch.manual_seed(0)
    image, token = torch.rand(40, 3, 8, 8) * 2 - 1, torch.randint(9, (40, 16))  # code 9 does not occur
    net = TokenTransformer(10, 4, dim=32, depth=1, num_heads=2, pixels=True, patch_shape=(3, 2, 2))
    net.pixels.measure(image, token)
    return net, image, token


def test_patches_of_the_codes_are_those_of_the_images() -> None:
    """With one patch more for each code: the mean of all, with their deviation."""
    net, image, token = seeing()
    patches = image.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 2, 2)
    for code in (4, 9):
        own = torch.cat([patches[token.flatten() == code], patches.mean(0, keepdim=True)])
        torch.testing.assert_close(net.pixels.patch[code], own.mean(0))
        variance = (own - own.mean(0)).square().mean() + (patches - patches.mean(0)).square().mean() / len(own)
        torch.testing.assert_close(net.pixels.std[code], variance.sqrt())


def test_known_pixels_of_a_patch_are_evidence_for_its_code() -> None:
    """Without what is learnt, they are a power of Gaussian likelihoods of the known pixels; unknown ones may hold anything."""
    net, _, _ = seeing()
    nn.init.zeros_(net.pixels.embed.weight)
    image, validity = torch.rand(2, 3, 8, 8) * 2 - 1, (torch.rand(2, 1, 8, 8) < 0.5).float()
    inputs = torch.full((2, 16), net.mask_token)
    plain = net(inputs, Condition())
    added = net(inputs, Condition(torch.cat([image, validity], dim=1))) - plain
    block, known = image[1, :, 2:4, 4:6], validity[1, 0, 2:4, 4:6] > 0
    normal = torch.distributions.Normal(net.pixels.patch[:, :, known], net.pixels.std[:, None, None])
    expected = normal.log_prob(block[:, known]).flatten(1).sum(1) * net.pixels.log_power.exp()
    torch.testing.assert_close(added[1, 6] - added[1, 6, 0], expected - expected[0], rtol=1e-4, atol=1e-4)
    other = torch.where(validity > 0, image, torch.rand_like(image))
    torch.testing.assert_close(net(inputs, Condition(torch.cat([other, validity], dim=1))), plain + added)
    torch.testing.assert_close(net(inputs, Condition(torch.zeros(2, 4, 8, 8))), plain)


def test_known_pixels_reach_other_tokens_and_all_that_sees_them_learns() -> None:
    net, _, _ = seeing()
    for block in net.blocks:  # the identity at first
        nn.init.normal_(block.attention.out.weight)
    image = torch.rand(1, 4, 8, 8)
    changed = image.clone()
    changed[:, :, :2, :2] = 0
    inputs = torch.full((1, 16), net.mask_token)
    logits = net(inputs, Condition(image))
    assert (net(inputs, Condition(changed)) - logits)[0, 1:].abs().amax(dim=-1).amin() > 0
    F.cross_entropy(logits[0], torch.arange(16) % 10).backward()
    assert net.pixels.embed.weight.grad.any()
    assert net.pixels.log_power.grad.any()


def test_neighbours_have_similar_positions_at_first() -> None:
    net = TokenTransformer(10, 8, dim=64, depth=1, num_heads=2)
    position = net.positions.detach()
    similarity = F.cosine_similarity(position[27], position, dim=-1).view(8, 8)  # row 3, column 3
    assert similarity[3, 4] > similarity[3, 7]
    assert similarity[2, 3] > similarity[6, 3]


def test_dropout_acts_in_training_alone() -> None:
    net, batch = transformer(dropout=0.5), tokens()
    assert torch.equal(net(batch, Condition()), net(batch, Condition()))
    net.train()
    assert not torch.equal(net(batch, Condition()), net(batch, Condition()))


@pytest.mark.parametrize("bad", [{"dim": 100, "num_heads": 6}, {"dropout": 1.0}], ids=str)
def test_settings_out_of_range_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=rf"network\.{next(iter(bad))}={next(iter(bad.values()))}"):
        TokenTransformer(10, 4, **bad)
