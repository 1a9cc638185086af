"""How many masked tokens are guessed right: one mean for each masked share, over batches and ranks."""

from __future__ import annotations

from torch import Tensor

from generative.metrics.catalogue import Metric, Table
from generative.metrics.means import MeanMetrics

METRICS = (
    Metric(
        "token_accuracy", "Token accuracy", "", "higher", 3, Table("token accuracy", 70), case="masked share",
        placeholder="<share>",
        definition="share of the masked tokens whose most likely code is the right one, where this share of an image's "
        "tokens is masked at random; mean over the images",
    ),
)  # fmt: skip


class TokenAccuracyMetrics(MeanMetrics):
    """Collects the accuracies of images."""

    metrics = METRICS

    def update(self, accuracies: dict[str, Tensor]) -> None:
        """Take in a batch.

        Args:
            accuracies: (B,) values by the name of the masked share.
        """
        for share, accuracy_B in accuracies.items():
            self._means.add(f"token_accuracy/{share}", accuracy_B)
