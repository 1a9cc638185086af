"""How many masked tokens are guessed right: one mean for each masked share, over batches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from generative.metrics.catalogue import Metric, Table, definitions
from generative.metrics.means import NamedMeans

METRICS = (
    Metric(
        "token_accuracy", "Token accuracy", "", "higher", 3, Table("token accuracy", 70), case="masked share",
        definition="share of the masked tokens whose most likely code is the right one, where this share of an image's "
        "tokens is masked at random; mean over the images",
    ),
)  # fmt: skip


class TokenAccuracyMetrics:
    """Collects the accuracies of images.

    Attributes:
        num_images: Images of all ranks behind the last ``compute``.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._means = NamedMeans()

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Forget all images.

        Args:
            device: Where the sums live: the device over which the ranks talk.
        """
        self.num_images = 0
        self._means.reset(device)

    def update(self, accuracies: dict[str, Tensor]) -> None:
        """Take in a batch.

        Args:
            accuracies: (B,) values by the name of the masked share.
        """
        for share, accuracy_B in accuracies.items():
            self._means.add(share, accuracy_B)

    def compute(self) -> dict[str, float]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Returns:
            ``token_accuracy/<share>``.
        """
        means = self._means.compute()
        self.num_images = max((int(mean.weight) for mean in means.values()), default=0)
        return {f"token_accuracy/{share}": mean.value for share, mean in means.items()}

    @staticmethod
    def definition() -> dict[str, str]:
        """Say what each metric means, for the record beside the numbers.

        Returns:
            A sentence per metric.
        """
        return definitions(METRICS)
