"""How well a tokenizer uses its codebook: the share of codes in use, and the perplexity of their counts.

Perplexity (van den Oord et al., arXiv 1711.00937): exp of the entropy of the codes' frequencies, the number of codes that
would say as much if all were as frequent: 1 for a collapsed codebook, K for an even one.

Shape suffixes: B batch, N tokens of an image, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric as Sums

from generative.metrics.catalogue import Metric, Table, definitions

TABLE = Table("codebook", 60)
METRICS = (
    Metric(
        "codebook_usage", "Codebook usage", "", "higher", 3, TABLE, case="of", placeholder="codes",
        definition="share of the codes that at least one token of the images is",
    ),
    Metric(
        "codebook_perplexity", "Codebook perplexity", "", None, 1, TABLE, case="of", placeholder="codes",
        definition="exponential of the entropy in nats of the frequencies of the codes over all tokens",
    ),
)  # fmt: skip


class CodeCounts(Sums):
    """How often each code occurs; int64 sums that merge over ranks.

    Args:
        num_codes: Number of codes K.
    """

    full_state_update = False
    count_K: Tensor
    num_images: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.add_state("count_K", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, tokens_BN: Tensor) -> None:
        """Count the tokens of a batch.

        Args:
            tokens_BN: (B, N) codes in [0, K).
        """
        tokens = tokens_BN.to(self.count_K.device).flatten()
        self.count_K += torch.bincount(tokens, minlength=len(self.count_K))
        self.num_images += len(tokens_BN)

    def compute(self) -> Tensor:
        """Return the (K,) counts."""
        return self.count_K


class CodebookMetrics:
    """Counts codes over batches and ranks.

    Args:
        num_codes: Number of codes K; 0 for a network without codes, of which there is nothing to measure.

    Attributes:
        num_images: Images of all ranks behind the last ``compute``.
    """

    def __init__(self, num_codes: int) -> None:
        self.num_codes = num_codes
        self.num_images = 0
        self._counts = CodeCounts(num_codes)

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Forget all images.

        Args:
            device: The device over which the ranks talk.
        """
        self.num_images = 0
        self._counts = CodeCounts(self.num_codes).to(device)

    def update(self, tokens_BN: Tensor) -> None:
        """Take in a batch.

        Args:
            tokens_BN: (B, N) int64 codes.

        Raises:
            ValueError: If a token is no code.
        """
        if tokens_BN.numel() == 0:
            return
        lowest, highest = tokens_BN.min().item(), tokens_BN.max().item()
        if lowest < 0 or highest >= self.num_codes:
            raise ValueError(f"Tokens of {self.num_codes} codes lie in [{lowest}, {highest}].")
        self._counts.update(tokens_BN)

    def compute(self) -> dict[str, float]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Returns:
            The metrics of ``definition``; empty without a token.
        """
        with self._counts.sync_context():
            count_K, self.num_images = self._counts.count_K.cpu(), int(self._counts.num_images)
        if count_K.sum() == 0:
            return {}
        frequency_K = count_K.double() / count_K.sum()
        entropy = torch.special.entr(frequency_K).sum()
        return {
            "codebook_usage/codes": (count_K > 0).double().mean().item(),
            "codebook_perplexity/codes": entropy.exp().item(),
        }

    @staticmethod
    def definition() -> dict[str, str]:
        """Say what each metric means, for the record next to the numbers.

        Returns:
            A sentence per metric.
        """
        return definitions(METRICS)
