"""Labels as sets of object tokens, and cross-attention to them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from generative.networks.attention import CrossAttention
from generative.networks.labels import LabelTokens


def multi_hot(*sets: list[int], num_labels: int = 24) -> Tensor:
    labels = torch.zeros(len(sets), num_labels)
    for row, members in zip(labels, sets, strict=True):
        row[members] = 1
    return labels


@pytest.mark.parametrize("factors", [(10,), (3, 8), (2, 3, 4)])
def test_a_label_is_the_sum_of_its_digits(factors: tuple[int, ...]) -> None:
    layer = LabelTokens(factors, 16)
    layer.mlp = nn.Identity()
    values = itertools.product(*(range(size) for size in factors))
    expected = [sum(e[d] for e, d in zip(layer.factors, digits, strict=True)) for digits in values]
    torch.testing.assert_close(layer.label_tokens(), torch.stack(expected))


def test_labels_of_clevr_share_shape_and_colour() -> None:
    layer = LabelTokens((3, 8), 16)
    layer.mlp = nn.Identity()
    table = layer.label_tokens()
    shape, colour = layer.factors
    assert len(table) == 24
    torch.testing.assert_close(table[13] - table[5], shape[1] - shape[0])  # labels 8 apart: the next shape
    torch.testing.assert_close(table[13] - table[12], colour[5] - colour[4])


def test_mask_and_pooled_vector_are_those_of_the_set() -> None:
    layer = LabelTokens((3, 8), 16)
    objects = layer(multi_hot([4, 17, 9], [], [4]), 3)
    assert objects.tokens.shape == (25, 16)
    assert objects.mask.nonzero()[:, 1].tolist() == [0, 5, 10, 18, 0, 0, 5]
    null, *objects_after = torch.nn.functional.silu(objects.tokens)
    torch.testing.assert_close(objects.pooled[1], layer.pool(null))
    torch.testing.assert_close(objects.pooled[2], layer.pool(null + objects_after[4]))
    expected = layer.pool(null + objects_after[17] + objects_after[4] + objects_after[9])
    torch.testing.assert_close(objects.pooled[0], expected)


def test_no_labels_are_empty_sets() -> None:
    layer = LabelTokens((3, 8), 16)
    for a, b in zip(layer(None, 3), layer(torch.zeros(3, 24), 3), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("order", list(itertools.permutations([2, 11, 23])))
def test_cross_attention_reads_the_set_and_nothing_else(order: tuple[int, ...]) -> None:
    """Plain softmax attention over the null token and the objects, listed in any order."""
    labels, layer = LabelTokens((3, 8), 12), CrossAttention(16, 2, token_dim=12)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    objects = labels(multi_hot([], [2, 11, 23]), 2)
    x = torch.randn(2, 5, 16)
    result = layer(x, objects)
    for row, members in enumerate([[], order]):
        tokens = torch.stack([labels.null, *(labels.label_tokens()[i] for i in members)])
        heads = []
        for head in range(2):
            channels = slice(8 * head, 8 * head + 8)
            q = x[row] @ layer.q.weight[channels].T
            k, v = tokens @ layer.kv.weight[:16][channels].T, tokens @ layer.kv.weight[16:][channels].T
            q = layer.q_norm.weight * q / q.square().mean(-1, keepdim=True).sqrt()
            k = layer.k_norm.weight * k / k.square().mean(-1, keepdim=True).sqrt()
            weights = (q @ k.T / 8**0.5).exp()
            heads.append(weights / weights.sum(-1, keepdim=True) @ v)
        torch.testing.assert_close(result[row], layer.out(torch.cat(heads, dim=-1)), rtol=1e-4, atol=1e-4)


def test_bad_factors_and_labels_are_refused() -> None:
    for factors in [(), (3, 0)]:
        with pytest.raises(ValueError, match="network.label_factors"):
            LabelTokens(factors, 8)
    with pytest.raises(ValueError, match=r"24 labels, but the batch has labels of shape \(2, 10\)"):
        LabelTokens((3, 8), 8)(torch.zeros(2, 10), 2)
