"""Calibration: draws several samples of the first test images and scores them: whether they scatter as a posterior does."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.measuring import MeasuringCallback, SetupError, first_rows
from datamodules.base import datamodule_of
from generative.checks import checked, near_matches
from generative.metrics import CalibrationMetrics, ExactPosteriorMetrics, SampleScores
from generative.metrics.by_image import ImageValues
from generative.metrics.calibration import theoretical_gap
from generative.metrics.exact_posterior import EXACT
from generative.ranges import Count
from generative.truth.reference import FIELD, reference_problem
from generative.types import Batch

MAX_SOLVER_CALLS = 128  # of the exact network, beyond which the solver is not measured alone
SOLVER_IMAGES = 64


@checked("callbacks.calibration")
class Calibration(MeasuringCallback):
    """Measures a stochastic output in test by several samples of an image.

    Mean-of-K PSNR and spread (``generative.metrics.calibration``), energy score, CRPS, coverage and rank histograms
    (``generative.metrics.scores``), also of the colours of objects in holes where the data tell where objects show.
    Where the law of the data is known and the degradation has an exact posterior, ``mean`` and samples are compared with it
    (``generative.metrics.exact_posterior``), and its own draws are scored as the output ``exact``.
    The K-curve measures the solver as well as the network: what the same solver gives with the exact network stands beside it.
    Of a module without this output, such as a regression, ``mean`` alone is: there is nothing to calibrate.

    Args:
        num_images: Test images with a smaller index are used.
        num_samples: Samples per image, at least 2.
        output: Name of the output that is a sample.

    Raises:
        ValueError: If there are fewer than 2 samples.

    Attributes:
        results: Metrics of the last test; empty without the output.
        record: Split, number of images and samples, definitions, theory and rank histograms behind ``results``.
    """

    tasks = frozenset({"restore", "inpaint"})

    def __init__(self, num_images: Count = 256, num_samples: Count = 16, output: str = "sample") -> None:
        super().__init__()
        self.num_images = num_images
        self.num_samples = num_samples
        self.output = output
        self._metrics = CalibrationMetrics(num_samples, output)
        self._scores = SampleScores()
        self._exact: ExactPosteriorMetrics | None = None
        self._is_set_up = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out whether the exact posterior is known, or say once why not of data whose law is.

        Raises:
            SetupError: The module restores nothing, or has samples by another name.
        """
        super().setup(trainer, pl_module, stage)
        if self._is_set_up:
            return
        samples = getattr(pl_module, "outputs", {}).keys() - {"mean"}
        if samples and self.output not in samples:
            raise SetupError(
                f"callbacks.calibration.output={self.output} is no output of {type(pl_module).__name__} that could scatter: "
                f"{near_matches(self.output, samples)}"
            )
        self._is_set_up = True
        data = datamodule_of(trainer)
        prior, degradation = getattr(data, "prior", None), getattr(data, "degradation", None)
        if prior is None or degradation is None:
            return
        try:
            self._exact = ExactPosteriorMetrics(prior, degradation, self.output)
        except ValueError as reason:
            trainer.print(f"No comparison with the exact posterior: {reason}")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for metrics in filter(None, (self._metrics, self._scores, self._exact)):
            metrics.reset(pl_module.device)

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
        batch, restored = outputs["batch"], outputs["outputs"]
        rows = first_rows(batch, self.num_images)
        if len(rows) == 0:
            return
        subset, samples = batch.select(rows), None
        mean = restored["mean"][rows] if "mean" in restored else None
        names = {self.output}
        if self.output in restored:
            with trainer.precision_plugin.forward_context():
                several = [
                    module.images_of(subset, module.evaluation_randomness(subset, f"calibration/{k}"), names)[
                        self.output
                    ]
                    for k in range(self.num_samples)
                ]
            samples = torch.stack(several)
            self._metrics.update(samples, subset, mean)
            self._scores.update(samples, subset, self.output, _objects(trainer, subset))
        if self._exact is not None:
            exact = self._exact.update(subset, mean, samples, module.evaluation_randomness(subset, EXACT))
            if exact is not None:
                self._scores.update(exact, subset, EXACT, _objects(trainer, subset))

    def _of_solver(self, module: Any) -> dict[str, float]:
        """Measure the module's solver alone, with the exact network in the place of its own, where it has one and few steps."""
        make, outputs = getattr(module, "exact_network", None), getattr(module, "outputs", {})
        if make is None or self.output not in outputs or outputs[self.output].num_network_calls > MAX_SOLVER_CALLS:
            return {}
        batch, degradation = reference_problem(SOLVER_IMAGES, module.device)
        network = make(FIELD, degradation)
        if network is None:
            return {}
        metrics = ExactPosteriorMetrics(FIELD, degradation, self.output)
        metrics.reset(module.device)
        times, module.sampling_times = module.sampling_times, None  # nobody asks how long the exact network takes
        with module.answered_by(network):
            draws = (module.evaluation_randomness(batch, f"calibration/{k}") for k in range(self.num_samples))
            samples = [module.images_of(batch, randomness, {self.output})[self.output] for randomness in draws]
        module.sampling_times = times
        metrics.update(batch, None, torch.stack(samples), module.evaluation_randomness(batch, EXACT))
        found = metrics.compute()
        bias, spread = found[f"posterior_bias/{self.output}"], found[f"posterior_spread/{self.output}"]
        gaps = {f"solver_gap/mean_of_{k}": theoretical_gap(k, bias, spread) for k in self._metrics.num_averaged}
        return gaps | {f"solver_spread/{self.output}": spread}

    def values_by_image(self) -> dict[str, ImageValues]:
        return self._scores.by_image.merged()

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        kinds = list(filter(None, (self._metrics, self._scores, self._exact)))
        results: dict[str, float] = {}
        definitions: dict[str, Any] = {}
        for metrics in kinds:
            results |= metrics.compute()
            definitions |= metrics.definition()
        if f"spread/{self.output}" in results:
            results |= self._of_solver(module)
        record = {
            "split": "test",
            "num_images": max(metrics.num_images for metrics in kinds),
            "num_samples": self.num_samples,
            "rank_histograms": self._scores.histograms,
            "definitions": definitions,
        }
        return results, record if results else {}


def _objects(trainer: Trainer, batch: Batch) -> Tensor | None:
    masks = datamodule_of(trainer).object_masks("test", batch.index)
    return None if masks is None else masks.to(batch.image.device)
