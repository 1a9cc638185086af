"""Likelihood: how probable test images are to a model that knows, beside the exact answer where the law is known."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer

from callbacks.measuring import MeasuringCallback, SetupError, first_rows
from datamodules.base import datamodule_of
from generative.checks import checked
from generative.float32 import whole_float32
from generative.likelihood import CALLS_PER_STEP, bits_per_dimension, of_levels, with_level_noise
from generative.metrics.exact_posterior import EXACT
from generative.metrics.likelihood import NLL, LikelihoodMetrics
from generative.ranges import Count
from generative.truth import check_posterior, posteriors
from generative.types import Batch

OUTPUT = "sample"  # whose law is measured
NOISE = "likelihood/levels"  # purpose of the noise of one grey level


@checked("callbacks.likelihood")
class Likelihood(MeasuringCallback):
    """Measures bits per dimension in test, of modules that know them; of data of a known law also the exact ones.

    Images with pixels that are known exactly are left out: these have no density.

    Args:
        num_images: Test images with a smaller index are used.
        num_calls: Network calls an image, those of a flow forward and backward.
    """

    def __init__(self, num_images: Count = 64, num_calls: Count = 128) -> None:
        super().__init__()
        self.num_images = num_images
        self.num_calls = max(CALLS_PER_STEP, num_calls)
        self._metrics = LikelihoodMetrics()
        self._is_set_up = self._has_exact = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module knows a likelihood, and find out whether the exact one is known of data whose law is.

        Raises:
            SetupError: It does not.
        """
        if not getattr(pl_module, "knows_likelihood", False):
            raise SetupError(
                f"callbacks.likelihood: {type(pl_module).__name__} knows no likelihood of images as it is set here, as only "
                "diffusion and flows from noise in pixels do, without guidance by a degraded image: leave it out."
            )
        if self._is_set_up:
            return
        self._is_set_up = True
        data = datamodule_of(trainer)
        prior, degradation = getattr(data, "prior", None), getattr(data, "degradation", None)
        try:
            if prior is not None and getattr(pl_module, "restores", False) and degradation is not None:
                check_posterior(prior.law, degradation, prior.image_size)
            self._has_exact = prior is not None
        except ValueError as reason:
            trainer.print(f"No exact likelihood beside that of the module: {reason}")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._metrics.reset(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module: Any = pl_module
        rows = first_rows(outputs["batch"], self.num_images)
        if len(rows) == 0:
            return
        with (
            torch.inference_mode(False),
            trainer.precision_plugin.forward_context(),
            whole_float32(outputs["batch"].image.device),
        ):
            subset = outputs["batch"].select(rows).map(torch.clone)  # gradients pass through them
            if subset.validity is not None:
                subset = subset.select((subset.validity == 0).flatten(1).all(1).nonzero()[:, 0])
            if len(subset.image):
                draws = module.evaluation_randomness(subset, "likelihood")
                continuous = with_level_noise(subset.image, module.evaluation_randomness(subset, NOISE))
                bits = module.bits_per_dimension(subset, continuous, draws, self.num_calls)
                self._metrics.update(bits, OUTPUT, subset.index)
                self._of_law(trainer, module, subset, continuous)

    def _of_law(self, trainer: Trainer, module: Any, batch: Batch, continuous: torch.Tensor) -> None:
        if not self._has_exact:
            return
        data: Any = datamodule_of(trainer)
        prior, degradation = data.prior, getattr(data, "degradation", None)
        x_BCP = continuous.flatten(2).cpu().double()
        if not getattr(module, "restores", False) or degradation is None:
            nats_B = -prior.law.log_density(x_BCP)
        else:
            nats_B = torch.empty(len(x_BCP), dtype=torch.float64)
            for rows_R, law in posteriors(prior.law, degradation, *batch.observed()):
                nats_B[rows_R] = -law.log_density(x_BCP[rows_R])
        bits_B = bits_per_dimension(of_levels(nats_B, continuous), continuous)
        self._metrics.update({NLL: bits_B}, EXACT, batch.index)

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        results = self._metrics.compute()
        record = {
            "split": "test",
            "num_images": self._metrics.num_images,
            "num_network_calls": self.num_calls,
            "definitions": self._metrics.definition(),
        }
        return results, record if results else {}
