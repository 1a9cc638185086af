"""How close a set of generated or restored images is to a reference set, by torch-fidelity's formulas in float64.

Frechet distance: Heusel et al., arXiv 1706.08500, eq. 6. Kernel distance: Binkowski et al., arXiv 1801.01401, sec. 4.
Inception score: Salimans et al., arXiv 1606.03498, sec. 4. Precision and recall: Kynkaanniemi et al., arXiv 1904.06991,
eqs. 1 and 2. Only with Inception are they called ``fid`` and ``kid``.

Shape suffixes: N images, B batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from generative.metrics.catalogue import Metric, Table, Variant, metric_of
from generative.metrics.features import INCEPTION, FeatureExtractor, Features, FeatureSet

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's
SCORE_SPLITS = 10  # Salimans et al.
NEIGHBOURS = 3  # Kynkaanniemi et al.
SEED = 2020  # torch-fidelity's: draws the subsets and splits
DISTANCES_AT_A_TIME = 2048  # rows of the matrix of distances

TABLE = Table("images against the reference", 40)
PAIRED = Variant("paired", " to clean", Table("restored images against the clean ones", 30))
FRECHET = (
    "Frechet distance of Gaussians fitted to the features of all generated and all reference images "
    "(fid_statistics_to_metric)"
)
KERNEL = (
    "unbiased squared maximum mean discrepancy with the kernel (x y / D + 1)^3, averaged over random subsets "
    "(kid_features_to_metric); it may be negative, and is for equal sets"
)
METRICS = (
    Metric("fid", "FID", "", "lower", 2, TABLE, FRECHET, leading=True, variants=(PAIRED,)),
    Metric("kid", "KID", "", "lower", 5, TABLE, KERNEL, variants=(PAIRED,)),
    Metric(
        "inception_score", "Inception score", "", "higher", 2, TABLE,
        f"exponential of the mean Kullback-Leibler divergence of p(class | image) from p(class), averaged over "
        f"{SCORE_SPLITS} random splits; logits without bias (isc_features_to_metric)",
    ),
    Metric("fd", "FD", "", "lower", 2, TABLE, FRECHET, leading=True, variants=(PAIRED,), of_features=True),
    Metric("kd", "KD", "", "lower", 5, TABLE, KERNEL, variants=(PAIRED,), of_features=True),
    Metric(
        "precision", "Precision", "", "higher", 3, TABLE,
        f"share of the generated images inside the {NEIGHBOURS}-nearest-neighbour balls of the reference images; the first "
        "images of the larger set, as many as in the smaller one (prc_features_to_metric)",
        minor=True, of_features=True,
    ),
    Metric(
        "recall", "Recall", "", "higher", 3, TABLE,
        f"share of the reference images inside the {NEIGHBOURS}-nearest-neighbour balls of the generated images; the same "
        "images (prc_features_to_metric)",
        minor=True, of_features=True,
    ),
)  # fmt: skip
# Fewer images have no covariance, no pair, no k-th neighbour, an empty split.
LEAST_IMAGES = {
    "frechet": 2,
    "kernel": 2,
    "precision": NEIGHBOURS + 1,
    "recall": NEIGHBOURS + 1,
    "inception_score": SCORE_SPLITS,
}


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of the images that generated ones are compared with.

    Attributes:
        features: (N, D) float32 features.
        description: Which images they are of, for the record.
    """

    features: Tensor
    description: str


class GenerationMetrics:
    """Collects the features of generated images over batches and ranks and compares them with a reference set.

    The features are ordered by the images' indices before anything is drawn or summed, so the result depends neither on
    the batch size nor on the number of ranks.

    Args:
        output: Name of the generated output, used in the metrics' names.

    Attributes:
        num_images: Generated images of all ranks behind the last ``compute``.
        skipped: Why a metric is absent from the last ``compute``, by its name.
    """

    def __init__(self, extractor: FeatureExtractor, output: str = "sample") -> None:
        self.extractor = extractor
        self.output = output
        self.num_images = 0
        self.skipped: dict[str, str] = {}
        self._names = metric_names(extractor.name)
        self._details: dict[str, Any] = {}
        self._set = FeatureSet()

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Forget all images.

        Args:
            device: The device over which the ranks talk.
        """
        self.num_images = 0
        self.skipped, self._details = {}, {}
        self._set.reset(device)
        # Apple's MPS has no float64.
        self._device = torch.device("cpu" if torch.device(device).type == "mps" else device)

    @torch.no_grad()
    def update(self, image_BCHW: Tensor, index_B: Tensor) -> None:
        """Take in a batch of generated images.

        Args:
            image_BCHW: (B, C, H, W) images on the extractor's device; clamped to [-1, 1] and rounded to 8 bits.
            index_B: (B,) int64 indices of the images among all that are generated.
        """
        features, logits = self.extractor(image_BCHW)
        # 8 bits know no NaN: what a diverged model generates must not pass for an image.
        finite = image_BCHW.flatten(1).isfinite().all(1)
        self._set.add(index_B, Features(features.masked_fill(~finite[:, None], torch.nan), logits))

    @torch.no_grad()
    def compute(self, reference: ReferenceFeatures, paired: bool = False) -> dict[str, float]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Args:
            reference: The images to compare with.
            paired: Whether they are the truths of the very images that were taken in. Then the two distances alone are
                measured, as ``fid_paired`` and ``kid_paired``.

        Returns:
            The metrics of ``definition``, named ``<metric>/<output>``, without those in ``skipped``.
        """
        features, logits = self._set.merged()
        self._names = metric_names(self.extractor.name, paired)
        self.skipped = {}
        self.num_images = len(features)
        self._details = {"reference": reference.description, "num_reference": len(reference.features)}
        num_broken = int((~features.isfinite().all(1)).sum())
        if num_broken:
            reason = f"{num_broken} of the {self.num_images} generated images are not finite"
            self.skipped = dict.fromkeys(self._names.values(), reason)
            return {}
        self._find_small_sets(len(reference.features))
        values = self._distances(features.double(), reference.features.double())
        if logits is not None and self._wanted("inception_score"):
            values["inception_score"], spread = inception_score(logits.double())
            self._details["inception_score_std_over_splits"] = spread
        return {f"{self._names[metric]}/{self.output}": value for metric, value in values.items()}

    def _find_small_sets(self, num_reference: int) -> None:
        smaller = min(self.num_images, num_reference)
        for metric, name in self._names.items():
            available = self.num_images if metric == "inception_score" else smaller
            if available < LEAST_IMAGES[metric]:
                self.skipped[name] = f"needs {LEAST_IMAGES[metric]} images, got {available}"

    def _wanted(self, metric: str) -> bool:
        return metric in self._names and self._names[metric] not in self.skipped

    def _distances(self, generated_ND: Tensor, reference_ND: Tensor) -> dict[str, float]:
        values = {}
        if self._wanted("frechet"):
            values["frechet"] = frechet_distance(generated_ND, reference_ND)
            num_images, dim = min(len(generated_ND), len(reference_ND)), reference_ND.shape[1]
            if num_images <= dim:
                self._details["rank_deficient"] = (
                    f"{num_images} images span fewer than the {dim} dimensions of the features: the Frechet distance is "
                    "biased upwards and comparable at the same numbers of images only"
                )
        if self._wanted("kernel"):
            values["kernel"], spread = kernel_distance(generated_ND, reference_ND)
            self._details[f"{self._names['kernel']}_std_over_subsets"] = spread
        if self._wanted("precision"):
            balls = precision_recall(generated_ND, reference_ND, self._device)
            values["precision"], values["recall"] = balls
        return values

    def definition(self) -> dict[str, Any]:
        """Say what the metrics of the last ``compute`` mean, for the record next to the numbers.

        Returns:
            Plain values: a sentence per metric, numbers of images, reference set, extractor, what was skipped and why.
        """
        return {
            **{name: metric_of(name).definition for name in self._names.values()},
            "library": f"torch-fidelity {version('torch-fidelity')}",
            "num_generated": self.num_images,
            **self._details,
            "extractor": self.extractor.definition(),
            "skipped": dict(self.skipped),
        }


def metric_names(extractor: str, paired: bool = False) -> dict[str, str]:
    """Name the metrics on an extractor.

    Args:
        extractor: Name of the extractor.
        paired: Whether they compare images with their own truths.

    Returns:
        Name by kind of metric; the Inception score is Inception's alone.
    """
    features = "" if extractor == INCEPTION else extractor
    kinds = {"frechet": "fd", "kernel": "kd"} if features else {"frechet": "fid", "kernel": "kid"}
    if not paired:
        kinds |= {"precision": "precision", "recall": "recall"} | (
            {} if features else {"inception_score": "inception_score"}
        )
    suffixes = (PAIRED.suffix,) if paired else ()
    return {kind: metric_of(key).variant(*suffixes, features=features).key for kind, key in kinds.items()}


def frechet_distance(generated_ND: Tensor, reference_ND: Tensor) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the features' means and unbiased covariances.

    Args:
        generated_ND: (N, D) float64 features on the CPU.
        reference_ND: (M, D) float64 features on the CPU.

    Returns:
        The distance, which rounding may leave slightly below 0.
    """
    statistics = [fid_features_to_statistics(features) for features in (generated_ND, reference_ND)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kernel_distance(generated_ND: Tensor, reference_ND: Tensor) -> tuple[float, float]:
    """Return the kernel distance over random subsets of at most 1000 images.

    Args:
        generated_ND: (N, D) float64 features on the CPU.
        reference_ND: (M, D) float64 features on the CPU.

    Returns:
        Mean, which may be below 0, and standard deviation over the subsets.
    """
    sizes = {len(generated_ND), len(reference_ND)}
    subset_size = min(KID_SUBSET_SIZE, *sizes)
    measured = kid_features_to_metric(
        generated_ND,
        reference_ND,
        kid_subsets=1 if sizes == {subset_size} else KID_SUBSETS,  # a subset of all images is always the same
        kid_subset_size=subset_size,
        rng_seed=SEED,
        verbose=False,
    )
    return measured["kernel_inception_distance_mean"], measured["kernel_inception_distance_std"]


def precision_recall(generated_ND: Tensor, reference_ND: Tensor, device: torch.device | str) -> tuple[float, float]:
    """Return precision and recall of as many images of each set, as the paper asks for.

    Args:
        generated_ND: (N, D) float64 features.
        reference_ND: (M, D) float64 features.
        device: Where the distances are computed.

    Returns:
        Precision and recall in [0, 1].
    """
    num_images = min(len(generated_ND), len(reference_ND))
    measured = prc_features_to_metric(
        generated_ND[:num_images].to(device),
        reference_ND[:num_images].to(device),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=DISTANCES_AT_A_TIME,
        save_cpu_ram=True,
        verbose=False,
    )
    return measured["precision"], measured["recall"]


def inception_score(logits_NK: Tensor) -> tuple[float, float]:
    """Return the Inception score.

    Args:
        logits_NK: (N, K) float64 class logits on the CPU, at least 10.

    Returns:
        Mean and standard deviation over the splits; the mean lies in [1, K].
    """
    measured = isc_features_to_metric(logits_NK, splits=SCORE_SPLITS, rng_seed=SEED)
    return measured["inception_score_mean"], measured["inception_score_std"]
