"""Labels as a set of objects: one token per label, a null token, and their pooled vector.

A label such as "red cube" is the sum of one embedding per factor (shape, colour), so that a rare combination shares what
is known of its parts. A multi-hot row says which tokens are in the set; nothing depends on an order of the objects.

Shape legend: B batch, L labels, N = 1 + L candidate tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.networks.growth import of_labels, quiet


class ObjectTokens(NamedTuple):
    """The labels of a batch as networks see them.

    Attributes:
        tokens: (N, D) candidate tokens that the whole batch shares: the null token, then one per label.
        mask: (B, N) bool, true for the tokens in the set of a row; the null token is in every set.
        pooled: (B, D) sum over each set, after a nonlinearity and before a linear layer.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class LabelTokens(nn.Module):
    """Embeds multi-hot labels as sets of object tokens.

    Label i has the mixed-radix digits of i, most significant first: with factors (3, 8), i // 8 is the shape and i % 8
    the colour. The null token is in every set; a set of it alone means "no condition".

    All L labels are candidates and the mask picks: as the candidates are the same for every row, their keys and values
    cost N rows and not B * N, there is no largest set, and no count that a GPU would have to tell the CPU.
    """

    def __init__(self, label_factors: Sequence[int], dim: int) -> None:
        """Build the embeddings.

        Args:
            label_factors: Number of values of each factor, all positive; their product is L.
            dim: Width D of the tokens.

        Raises:
            ValueError: There is no factor, or one without values.
        """
        super().__init__()
        if not label_factors or min(label_factors) < 1:
            raise ValueError(
                f"network.label_factors={list(label_factors)} must be one or more positive numbers, such as [3,8] for "
                "3 shapes in 8 colours; an empty list builds a network without labels."
            )
        self.num_labels = math.prod(label_factors)
        self.factors = of_labels(nn.ParameterList(torch.randn(size, dim) for size in label_factors))
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.RMSNorm(dim, eps=1e-6))
        self.null = nn.Parameter(torch.randn(dim))
        self.pool = quiet(nn.Linear(dim, dim, bias=False))

    def label_tokens(self) -> Tensor:
        """Return the token of each label.

        Returns:
            (L, D) tokens.
        """
        table, *others = self.factors
        for values in others:
            table = (table[:, None] + values).flatten(0, 1)
        return self.mlp(table)

    def forward(self, labels_BL: Tensor | None, batch_size: int) -> ObjectTokens:
        """Embed the labels of a batch.

        Args:
            labels_BL: (B, L) multi-hot labels, or None for no condition in every row.
            batch_size: Number of rows B.

        Raises:
            ValueError: The labels are not (B, L).
        """
        if labels_BL is None:
            labels_BL = self.null.new_zeros(batch_size, self.num_labels)
        if labels_BL.shape != (batch_size, self.num_labels):
            raise ValueError(
                f"network.label_factors makes {self.num_labels} labels, but the batch has labels of shape "
                f"{tuple(labels_BL.shape)}: set network.label_factors to the factors of the data's labels."
            )
        tokens_LD = self.label_tokens()
        tokens_ND = torch.cat([self.null[None].to(tokens_LD.dtype), tokens_LD])
        mask_BN = F.pad(labels_BL > 0, (1, 0), value=True)
        return ObjectTokens(tokens_ND, mask_BN, self.pool(mask_BN.to(tokens_ND.dtype) @ F.silu(tokens_ND)))
