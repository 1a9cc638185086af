"""Restorers whose estimates are judged in training: what is trained and kept, and what is refused.

That they resume exactly and are exported without their judges: tests/lightning_modules/test_regression_first.py.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import PropertyMock, patch

import pytest
import torch
from helpers import TINY_DIT
from torchvision.models.vgg import cfgs, make_layers

from generative.judges import perceptual
from generative.judges.perceptual import PerceptualLoss
from generative.randomness import StepRandomness, generator_for
from generative.types import Batch
from launch import build
from launch.compose import compose_config
from launch.errors import UserError

FLOW, REGRESSION = "experiment=meanflow_dit", "experiment=regression_dit"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16's own architecture with random weights, in torchvision's file."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}, path)
    return path


def batch() -> Batch:
    image, degraded = torch.rand(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(image, torch.arange(4), degraded=degraded, validity=torch.zeros_like(image))


def test_the_perceptual_term_is_the_distance_of_the_estimate(weights: Path) -> None:
    judge = ["perceptual=vgg16", f"perceptual.weights={weights}", "module.image_terms.perceptual_weight=0.7"]
    judged, plain = (build.build_module(compose_config([REGRESSION, *TINY_DIT, *own])) for own in (judge, []))
    plain.load_state_dict(judged.state_dict())
    draws = StepRandomness(generator_for(0, "test"), 4)
    output, error = judged.loss(batch(), draws), plain.loss(batch(), draws).loss
    expected = PerceptualLoss(weights)(plain.sample(batch(), draws)["mean"], batch().image).mean()
    assert judged.sample(batch(), draws)["mean"].abs().max() < 1  # nothing was cut
    torch.testing.assert_close(output.loss, error + 0.7 * expected)
    output.loss.backward()
    assert not any(p.requires_grad for p in judged.perceptual.network.parameters())
    assert not any("perceptual" in key for key in judged.state_dict())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([FLOW, "module.image_terms.max_time=0.5"], r"max_time=0\.5 has no effect on module=MeanFlow: nobody judges"),
        (
            [REGRESSION, "discriminator=patch", "module.image_terms.max_time=0.5"],
            r"max_time.*a regression has no times",
        ),
        (
            [REGRESSION, "discriminator=patch", "module.image_terms.perceptual_weight=1"],
            "there is no perceptual distance",
        ),
        (["experiment=ddpm_scenes", "discriminator=patch"], "discriminator=patch has no effect on module=DDPM"),
        ([FLOW, "discriminator=patch", "module.image_terms.max_time=2"], r"module\.image_terms\.max_time"),
    ],
)
def test_what_is_set_without_effect_is_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build.build_module(compose_config(overrides))


def test_missing_weights_small_images_and_sharding_are_one_sentence(weights: Path, monkeypatch) -> None:
    monkeypatch.setattr(perceptual, "VGG_URL", "file:///nowhere/vgg16.pth")
    with pytest.raises(UserError, match=r"perceptual\.weights"):
        build.build_module(compose_config([FLOW, "perceptual=vgg16", "perceptual.weights=/nowhere.pth"]))
    small = [FLOW, "data=gauss", "data.image_size=8", "perceptual=vgg16", f"perceptual.weights={weights}",
             "data.num_train=4", "data.num_val=4", "data.num_test=4"]  # fmt: skip
    config = compose_config(small)
    with pytest.raises(UserError, match="at least 16 x 16 pixels"):
        build.check_data(build.build_module(config), build.build_datamodule(config))
    module = build.build_module(compose_config([FLOW, *TINY_DIT, "discriminator=patch"]))
    sharded = patch.object(type(module), "device_mesh", PropertyMock(return_value=object()))
    with sharded, pytest.raises(ValueError, match="trainer=fsdp cannot train a discriminator"):
        module.configure_model()
