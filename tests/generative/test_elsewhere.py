"""Whatever device the tensors of a batch are on, all that is made of them is made there, and the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from elsewhere import Elsewhere, SecondDevice, away, moved
from torch import Tensor, nn

from generative.baselines import diffused, mean_colour, nearest
from generative.degradations import (
    Affine,
    BlockMask,
    BrushMask,
    CannyEdges,
    Degradation,
    Downsample,
    GaussianBlur,
    GaussianNoise,
    Greyscale,
    Jpeg,
    Mixture,
    MotionBlur,
    PoissonNoise,
    Quantisation,
    SaltAndPepper,
    Sequential,
)
from generative.denoiser import Denoiser
from generative.flow_map import FlowMap
from generative.guidance import ClassifierFreeGuidance, ClassifierGuidance, LabelDropout, TrainedGuidance
from generative.inpainting import KnownPixels, composite, gray_patches, token_mask
from generative.likelihood import diffusion_nats, flow_nats, with_level_noise
from generative.metrics import CalibrationMetrics, RestorationMetrics, SampleScores
from generative.metrics.fusion import FusionMetrics
from generative.metrics.label_kept import LabelKeptMetrics, judged_labels, visibility
from generative.metrics.restoration import hole_mask
from generative.networks import DiT, TokenTransformer
from generative.objectives.diffusion import DiffusionObjective
from generative.objectives.masked_tokens import GammaRatio, MaskedTokenObjective, near_codes, token_accuracy
from generative.patch_evidence import code_patches, patch_evidence
from generative.posterior_guidance import DPS, MMPS, PiGDM, RePaint
from generative.randomness import IndexRandomness
from generative.samplers import DDIM, Ancestral, DPMSolverPP2M, Euler, FlowMapSampler, Heun, MaskedTokenSampler
from generative.schedules.noise import NoiseSchedule
from generative.types import Batch, Condition

B, SIZE = 3, 16
HOLE = BlockMask(8)
Move = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _second_device() -> Iterator[None]:
    with SecondDevice():
        yield


def images(channels: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(B, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draws(device: torch.device | str, purpose: str = "test") -> IndexRandomness:
    return IndexRandomness.for_images(0, purpose, torch.arange(B), device)


def alike(made: Callable[[Move], Any], tolerance: float = 0.0) -> None:
    """Make something here and there, and compare: tensors of there are to stay there."""
    here, there = made(lambda tensor: tensor), made(away)
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (here, there)), strict=True):
        if isinstance(one, Tensor):
            assert isinstance(other, Elsewhere)
            torch.testing.assert_close(other.cpu(), one, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            assert other == pytest.approx(one, nan_ok=True)


DEGRADATIONS: dict[str, Degradation] = {
    "affine": Affine([-20, 20], [0.8, 1.2], [-0.1, 0.1], [-10, 10]),
    "block": BlockMask([3, 8], num_blocks=2, fill=[-1, 1], image_size=32),
    "brush": BrushMask([1, 3], [2, 4], [3, 6]),
    "blur": GaussianBlur([0.5, 2]),
    "canny": CannyEdges([0.5, 1]),
    "motion": MotionBlur([2, 5]),
    "nearest": Downsample(3, "nearest", rounded=True),
    "bicubic": Downsample(2, kernel="bicubic"),
    "noise": GaussianNoise([0.1, 0.5]),
    "greyscale": Greyscale(),
    "jpeg": Jpeg([10, 90]),
    "jpeg of whole colours": Jpeg(20, subsample_chroma=False),
    "poisson": PoissonNoise([5, 20]),
    "levels": Quantisation([2, 6]),
    "salt": SaltAndPepper([0.1, 0.3]),
    "mixture": Mixture({"noise": GaussianNoise(0.2), "pair": Mixture({"jpeg": Jpeg(30), "hole": HOLE})}),
    "sequence": Sequential({"blur": GaussianBlur(1.0), "mixture": Mixture({"a": GaussianNoise(0.2), "b": HOLE})}),
}


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradations(name: str) -> None:
    for training in (True, False):

        def made(move: Move, training: bool = training) -> Any:
            image = move(images())
            return DEGRADATIONS[name](image, draws(image.device), training)

        alike(made)


def test_baselines() -> None:
    degraded, validity, _ = HOLE(images(), draws("cpu"))
    for make in (mean_colour, diffused):
        alike(lambda move, make=make: make(move(degraded), move(validity)))
    alike(lambda move: nearest(move(degraded), move(validity), [move(images().flip(0)), move(images().flip(3))]))


def answers(channels: int = 1, num_times: int = 1, labels: int = 0, move: Move = lambda tensor: tensor) -> nn.Module:
    """A network with weights that matter, there where it is moved to."""
    torch.manual_seed(0)
    network = DiT(
        image_size=8, in_channels=channels, condition_channels=0, num_times=num_times, num_outputs=2, dim=16, depth=1,
        num_heads=2, label_factors=[labels] if labels else (),
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network if move is not away else moved(network)


GUIDANCES = {
    "mmps": MMPS(HOLE),
    "mmps of noise after a blur": MMPS(Sequential({"blur": GaussianBlur(1.0), "noise": GaussianNoise(0.1)})),
    "mmps of fewer pixels": MMPS(Downsample(2)),
    "pigdm": PiGDM(HOLE),
    "dps of motion": DPS(Sequential({"motion": MotionBlur(3, 30), "noise": GaussianNoise(0.1)})),
    "repaint": RePaint(HOLE, rounds=2, jump=5),
}


@pytest.mark.parametrize("name", GUIDANCES)
def test_guidance_by_a_degraded_image(name: str) -> None:
    guidance = GUIDANCES[name]
    assert guidance.degradation is not None
    degraded, validity, _ = guidance.degradation(images(1, 8), draws("cpu", "degradation"))

    @torch.no_grad()
    def made(move: Move) -> Tensor:
        denoiser = Denoiser(answers(move=move), NoiseSchedule(num_timesteps=20), "v")
        own = draws(move(degraded).device)
        wrapped = guidance.wrap(denoiser, move(degraded), move(validity), own)
        return DDIM(num_steps=3)(wrapped, own.normal(1, 8, 8), Condition(), own)

    alike(made, 1e-5)


def test_samplers_of_diffusions_and_what_moves_their_estimates() -> None:
    labels = torch.eye(4)[:B]
    degraded, validity, _ = BlockMask(4)(images(1, 8), draws("cpu", "degradation"))

    @torch.no_grad()
    def made(move: Move, sampler: Any) -> Tensor:
        network = ClassifierFreeGuidance(2.0, rescale=0.5).wrap(answers(labels=4, move=move))
        denoiser = Denoiser(network, NoiseSchedule("cosine", num_timesteps=20), "v")
        denoiser = ClassifierGuidance(lambda image, labels: (image.flatten(1)[:, :4] * labels).sum(1)).wrap(denoiser)
        denoiser = KnownPixels(move(degraded), move(validity)).in_denoiser(denoiser)
        own = draws(move(labels).device)
        return sampler(denoiser, own.normal(1, 8, 8), Condition(labels=move(labels)), own)

    for sampler in (DDIM(3, eta=0.5, threshold="dynamic"), Ancestral(3, variance="large"), DPMSolverPP2M(3)):
        alike(lambda move, sampler=sampler: made(move, sampler), 1e-5)


def test_samplers_of_flows() -> None:
    labels = torch.eye(4)[:B]
    degraded, validity, _ = BlockMask(4)(images(1, 8), draws("cpu", "degradation"))
    learnt = TrainedGuidance()

    @torch.no_grad()
    def made(move: Move, sampler: Any) -> Tensor:
        flow_map = FlowMap(answers(num_times=3, labels=4, move=move), guided=True)
        flow_map = KnownPixels(move(degraded), move(validity)).in_flow_map(flow_map)
        own, condition = draws(move(labels).device), Condition(labels=move(labels))
        condition = replace(condition, guidance=learnt.shares(condition.labels))
        assert LabelDropout(0.5, 0.5)(condition.labels, own).shape == labels.shape
        return sampler(flow_map, own.normal(1, 8, 8), condition), learnt.draw(condition.labels, own)

    for sampler in (FlowMapSampler(2), Euler(2), Heun(2)):
        alike(lambda move, sampler=sampler: made(move, sampler), 1e-5)


def test_likelihoods_and_the_loss_of_a_diffusion() -> None:
    def made(move: Move) -> Any:
        image, schedule = move(images(1, 8)), NoiseSchedule(num_timesteps=20)
        own = draws(image.device)
        denoiser, condition = Denoiser(answers(move=move), schedule, "v"), Condition()
        flow_map = FlowMap(answers(num_times=2, move=move))
        found = DiffusionObjective(weight="min_snr", logit_mean=0.0, terminal_share=0.3)(
            denoiser, image, condition, own
        )
        with torch.no_grad():
            diffusion = diffusion_nats(denoiser, image, condition, own, 4)
        return found.loss.detach(), diffusion, flow_nats(flow_map, with_level_noise(image, own), condition, own, 1)

    alike(made, 1e-4)


def test_tokens_from_holes_to_pictures() -> None:
    image, codes = images(3, 16), 6
    tokens = torch.randint(codes, (B, 16), generator=torch.Generator().manual_seed(1))
    degraded, validity, _ = BlockMask(6)(image, draws("cpu", "degradation"))
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_codes": codes, "grid_size": 4, "dim": 16, "depth": 1, "num_heads": 2}

    def made(move: Move) -> Any:
        torch.manual_seed(0)
        network = TokenTransformer(**settings).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
        network = network if move is not away else moved(network)
        there, seen = move(tokens), (move(degraded), move(validity))
        unknown = token_mask(seen[1], 4, 1)
        patches, std = code_patches(move(image), there, codes)
        evidence = patch_evidence(*seen, patches.flatten(1), 4, std)
        condition, own = Condition(), draws(there.device)
        sampled = [
            MaskedTokenSampler(3, order=order, revisions=1)(network, there, unknown, condition, own, evidence)
            for order in ("confidence", "halton", "random")
        ]
        objective = MaskedTokenObjective(GammaRatio(), hole_share=0.5, target_std=0.5)
        loss = objective(network, there, unknown, condition, own, near_codes(patches, 0.5))
        accuracy = token_accuracy(network, there, 0.5, condition, own)
        pictures = composite(*seen, move(image), 2), gray_patches(move(image), unknown, 4)
        return sampled, loss.loss.detach(), loss.logs["accuracy"], accuracy, pictures

    with torch.no_grad():
        alike(made, 1e-4)


def test_metrics_of_pictures_samples_and_objects() -> None:
    image = images(3, 48)
    degraded, validity, kind = Mixture({"hole": BlockMask(20), "noise": GaussianNoise(0.1)})(image, draws("cpu"))
    batch = Batch(image, torch.arange(B), degraded=degraded, validity=validity, kind=kind)
    samples = (image + 0.3 * torch.randn(4, *image.shape)).clamp(-1, 1)
    objects, labels = torch.zeros(B, 5, 48, 48, dtype=torch.bool), torch.eye(5)[:B]
    objects[:, :3, 10:30, 10:30] = True

    def made(move: Move) -> Any:
        there, sampled, shown = batch.map(move), move(samples), move(objects)
        restored, fusion, kept = RestorationMetrics(), FusionMetrics(), LabelKeptMetrics()
        calibration, scores = CalibrationMetrics(4), SampleScores()
        restored.update({"sample": sampled[0]}, there)
        fusion.update({"sample": sampled[0]}, there)
        calibration.update(sampled, there, sampled.mean(0))
        scores.update(sampled, there, objects_BLHW=shown)
        seen = judged_labels(move(torch.rand(B, 5, generator=torch.Generator().manual_seed(2))), True)
        visible = visibility(shown, hole_mask(there.validity))
        kept.update({"sample": seen}, move(labels), move(labels), there.index, ["hole", "noise", "hole"], visible)
        values = [each.compute() for each in (restored, fusion, kept, calibration, scores)]
        return values, [part.mean.item() for part in restored.by_image.merged().values()]

    here, there = made(lambda tensor: tensor), made(away)
    assert all(math.isfinite(value) for value in here[1])
    for one, other in zip(here[0], there[0], strict=True):
        assert other == pytest.approx(one, rel=1e-5, nan_ok=True)
    assert there[1] == pytest.approx(here[1], rel=1e-5)
