"""DDPM and MeanFlow in the latents of an autoencoder: what holds in pixels holds there, and what is decoded is measured."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import read_json, tiny, train_here
from omegaconf import DictConfig
from round_trips import IN_THE_MIDDLE, alone, assert_round_trips, assert_same_samples
from torch import Tensor, nn

from datamodules.base import ImageDataModule
from generative.networks import Autoencoder, GaussianBottleneck
from generative.spaces import Latents, LatentSpace
from generative.types import Batch
from launch.build import build_datamodule, build_module
from launch.checking import check_values
from launch.compose import compose_config
from launch.errors import UserError, as_user_error

PARADIGMS = ["ddpm_scenes", "meanflow_scenes"]
CELLS = [(experiment, task) for experiment in PARADIGMS for task in ("generate", "restore", "inpaint")]
FEW = ["data.num_train=16", "data.num_val=2", "data.num_test=4"]


@pytest.fixture(scope="module")
def outputs(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    own = [f"paths.outputs={folder}", "network.channels=[16,16]", "callbacks.image_grid=null", *FEW]
    train_here(folder / "autoencoder_scenes" / "run", "experiment=autoencoder_scenes", *own)
    shutil.copytree(tokenizer, folder / "vqgan_scenes" / "run")
    return folder


def settings(outputs: Path, experiment: str, *overrides: str) -> DictConfig:
    choices = [o for o in overrides if o.startswith("task=")]
    own = ["space=auto", f"paths.outputs={outputs}", *overrides]
    config = compose_config([f"experiment={experiment}", *tiny(experiment, *choices), *own])
    check_values(config)
    return config


@cache
def data_of(outputs: Path, task: str) -> ImageDataModule:
    return build_datamodule(settings(outputs, "ddpm_scenes", f"task={task}"))


def built(outputs: Path, experiment: str, task: str, *overrides: str) -> tuple[Any, ImageDataModule]:
    return build_module(settings(outputs, experiment, f"task={task}", *overrides)).eval(), data_of(outputs, task)


def first_training_batch(data: ImageDataModule) -> Batch:
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


@pytest.mark.parametrize(("experiment", "task"), [CELLS[2], CELLS[3]])
def test_a_cell_trains_resumes_evaluates_exports_and_makes_images(experiment: str, task: str, outputs: Path) -> None:
    run = train_here(
        outputs / experiment / task,
        f"experiment={experiment}",
        f"task={task}",
        f"paths.outputs={outputs}",
        "space=auto",
        *alone(experiment, f"task={task}"),
        *FEW,
        *IN_THE_MIDDLE,
    )
    of_run, of_export = assert_round_trips(run, outputs / f"{experiment}_{task}")
    assert_same_samples(of_run, of_export, classes=24, channels=3)
    assert of_run.space.scale() == of_export.space.scale() != LatentSpace(of_run.space.latents).scale()
    assert Path(of_export.space.latents.path) == run.path / "export" / "space" / "model.safetensors"
    recorded = read_json(run.path / "run.json")["parts"]["space"]
    assert recorded["hash"] == of_run.space.latents.hash


@pytest.mark.parametrize(("experiment", "task"), CELLS)
def test_a_cell_works_on_latents_and_answers_in_pixels(experiment: str, task: str, outputs: Path) -> None:
    """Its settings follow from the autoencoder; known pixels are exact, and what it is bound by stands beside its outputs."""
    module, data = built(outputs, experiment, task, "sampler.num_steps=2")
    module.measure(data)
    batch = first_training_batch(data)
    module.loss(batch, module.evaluation_randomness(batch)).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert module.space.encoded(batch).shape == (8, 4, 8, 8)
    batch = data.batch("test", range(4))
    with torch.no_grad():
        images = module.images_of(batch, module.evaluation_randomness(batch))
        states = list(module.states(batch, module.evaluation_randomness(batch)))
        step = module.offered(batch, **module.makers(batch))
    assert [state.z.shape for state in states] == [state.image.shape for state in states] == [batch.image.shape] * 2
    torch.testing.assert_close(step["reconstruction"], module.space.latents.network(batch.image).image.clamp(-1, 1))
    if task == "generate":
        torch.testing.assert_close(states[-1].z.clamp(-1, 1), images["sample"])
        return
    assert module.condition(batch).image.shape == (4, 4 * 4**2, 8, 8)
    assert step["outputs"].keys() == {"sample", "mean", "reconstruction"} | (
        {"composite"} if task == "inpaint" else set()
    )
    known = (batch.validity > 0).expand_as(batch.image)
    for name in ("sample", "mean", "composite") if task == "inpaint" else ():
        assert torch.equal(step["outputs"][name][known], batch.image[known])


def test_latents_come_from_the_cache_and_have_unit_deviation(outputs: Path, tmp_path: Path) -> None:
    config = settings(outputs, "ddpm_scenes", "data.horizontal_flip=true", f"paths.cache_dir={tmp_path}")
    module, data = build_module(config).eval(), build_datamodule(config)
    module.measure(data)
    batch = first_training_batch(data)
    mirrored = (batch.image != data.batch("train", batch.index).image).flatten(1).any(1)
    assert mirrored.any()
    assert not mirrored.all()
    torch.testing.assert_close(batch.encoded, module.space.latents.encode(batch.image))
    values = data._encoded.values
    standard = module.space._standardised(values.flatten(0, 1))
    std, mean = torch.std_mean(standard, dim=(0, 2, 3))
    torch.testing.assert_close(std, torch.ones(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-4)
    assert values.shape == (64, 2, 4, 8, 8)
    module.space.latents.encode = None  # were it asked, this would fail
    module.measure(data)
    assert module.loss(first_training_batch(data), module.evaluation_randomness(batch)).loss.isfinite()


def identity() -> Latents:
    """An autoencoder whose latents are the pixels."""
    network = Autoencoder(32, 3, GaussianBottleneck(3), [4], [0], [1], [0])
    network.encoder, network.decoder = nn.Conv2d(3, 6, 1), nn.Identity()
    with torch.no_grad():
        network.encoder.weight.copy_(torch.eye(3).repeat(2, 1)[:, :, None, None])
        network.encoder.bias.zero_()
    return Latents(network, "identity")


@pytest.mark.parametrize(("experiment", "task"), CELLS)
def test_latents_that_are_pixels_give_what_pixels_give(experiment: str, task: str, outputs: Path) -> None:
    own = ["module.known_in_path=true"] if task == "inpaint" else []
    own += ["sampler.threshold=none"] if experiment == "ddpm_scenes" else []
    module, data = built(outputs, experiment, task, "space=pixel", "sampler.num_steps=2", *own)
    for p in module.network.parameters():  # its last layer begins as zero
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    batch = data.batch("test", range(4))

    @torch.no_grad()
    def everything() -> dict[str, Tensor]:
        states = list(module.states(batch, module.evaluation_randomness(batch)))
        loss = {"loss": module.loss(batch, module.evaluation_randomness(batch)).loss}
        return loss | {"z": states[0].z} | module.images_of(batch, module.evaluation_randomness(batch))

    expected = everything()
    module.space = LatentSpace(identity())
    for name, found in everything().items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4)


def test_a_latent_is_known_where_all_that_it_depends_on_is() -> None:
    """The fill of a hole is none of it, whatever the encoder sees of its surroundings."""
    torch.manual_seed(0)
    network = Autoencoder(16, 3, GaussianBottleneck(2), [8, 8, 8], [1, 1, 0], [3, 1, 1], [0, 0, 0])
    space = LatentSpace(Latents(network, "seeing"))
    image, validity = torch.rand(1, 3, 16, 16) * 2 - 1, torch.ones(1, 1, 16, 16)
    validity[..., 5, 6] = 0
    degraded = torch.where(validity > 0, image, 0.7)
    known = space.known(Batch(image, torch.arange(1), degraded=degraded, validity=validity))
    assert (space.latents.dilation, known.validity.sum()) == (1, 4 * 4 - 3 * 3)
    clean = space.encoded(Batch(image, torch.arange(1)))
    assert torch.equal(known.image * known.validity, clean * known.validity)


def begin(outputs: Path, overrides: str) -> None:
    """Compose and build a run; no data are looked at."""
    places = {"ae": "autoencoder_scenes/run", "tokens": "vqgan_scenes/run", "nothing": "nothing"}
    experiment, *rest = overrides.format(**{name: outputs / folder for name, folder in places.items()}).split()
    with as_user_error():
        config = compose_config([f"experiment={experiment}", *rest])
        check_values(config)
        module = build_module(config)
        module.check_data(SimpleNamespace(**config.data, splits=None))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "ddpm_scenes data=scenes64 network=unet_tiny space={ae}",
            r"space=.* was trained on images of 32 pixels and 3",
        ),
        ("ddpm_scenes data.channels=1 space={ae}", r"space=.* 3 channels, but the data have 32 and 1: choose"),
        (
            "ddpm_scenes space={tokens}",
            r"space=.* is no autoencoder: its latents are codes.*experiment=autoencoder_scenes",
        ),
        ("ddpm_scenes space={nothing}", r"^space=\S*nothing: there is no such run folder\.$"),
        (
            "ddpm_scenes space=auto paths.outputs={nothing}",
            r"^space=auto: no finished autoencoder of scenes at 32 pixels",
        ),
        ("maskgit_scenes tokenizer={ae}", r"is an autoencoder without codes"),
        ("regression_dit space={ae}", r"has no effect on module=RegressionRestorer"),
        ("maskgit_scenes space={ae}", r"has no effect on module=MaskGIT"),
        ("ddpm_scenes tokenizer={tokens}", r"has no effect on module=DDPM"),
        ("ddpm_scenes space={ae} sampler.threshold=clip", r"sampler\.threshold=clip .* set sampler\.threshold=none"),
        ("ddpm_scenes space={ae} module.classifier_guidance=1", r"classifier_guidance=1 .* or space=pixel"),
        ("meanflow_scenes space={ae} module.source=degraded", r"source=degraded .* not encoded.* or space=pixel"),
    ],
)
def test_what_does_not_fit_is_one_sentence(overrides: str, message: str, outputs: Path) -> None:
    with pytest.raises(UserError, match=message):
        begin(outputs, overrides)
