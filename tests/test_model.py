"""A model in Python: tensors are used as they are, and what it cannot use is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import triptych
from generative.types import Batch
from triptych.demo import SHIPPED


@pytest.fixture(scope="module")
def models() -> dict[str, triptych.Model]:
    return {path.name: triptych.load(path, device="cpu") for path in SHIPPED}


@pytest.fixture
def restorer(models: dict[str, triptych.Model]) -> triptych.Model:
    return models["meanflow_digits"]


@pytest.fixture
def filler(models: dict[str, triptych.Model]) -> triptych.Model:
    return models["maskgit_scenes"]


def noise(model: triptych.Model) -> Tensor:
    """A picture between the levels of files, in range."""
    shape = (model.channels, model.image_size, model.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.inference_mode()
def made(model: triptych.Model, batch: Batch, name: str) -> Tensor:
    randomness = model.module.evaluation_randomness(batch, "generate")
    return model.module.images_of(batch, randomness, {name})[name][0]


def test_a_restorer_sees_what_the_degradation_has_made(restorer: triptych.Model) -> None:
    noisy = restorer.degrade(restorer.examples[0], "noise_sigma", 1.0, kind="torch").picture
    assert noisy.abs().max() > 1.2  # this noise is not clipped
    batch = Batch(noisy[None], torch.tensor([0]), degraded=noisy[None], validity=torch.zeros_like(noisy[None, :1]))
    for name in ("mean", "sample"):
        answered = restorer.restore(noisy, kind="torch")
        assert torch.equal(answered.mean if name == "mean" else answered.samples[0], made(restorer, batch, name))
    assert restorer.restore(noisy, 0).mean.size == (restorer.image_size,) * 2


def test_what_is_known_around_a_hole_stays_exactly(filler: triptych.Model) -> None:
    clean, hole = noise(filler), torch.zeros((filler.image_size,) * 2, dtype=torch.bool)
    hole[8:14, 8:14] = True
    (filled,) = filler.fill(clean, hole, kind="torch").samples
    assert torch.equal(filled[:, ~hole], clean[:, ~hole])
    assert not torch.equal(filled[:, hole], clean[:, hole])
    assert np.asarray(filler.fill(clean, hole).samples[0]).dtype == np.uint8
    mask = torch.where(hole, 1.0, -1.0)[None].requires_grad_()
    assert torch.equal(filler.fill(clean, mask, kind="torch").samples[0], filled)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, f: r.restore([noise(r)] * 2), "list is no picture: give one file"),
        (lambda r, f: r.restore(None), "NoneType is no picture: give one file"),
        (lambda r, f: f.fill(noise(f), None), "NoneType is no picture"),
        (lambda r, f: r.restore(noise(r) / 0), "values that are no numbers"),
        (lambda r, f: r.restore((noise(r) + 1) * 127.5), r"values from .* to 25\d.* is no picture: give floats in \[-1, 1\]"),
        (lambda r, f: r.degrade(noise(r) * 2), r"values from -.* is no picture"),
        (lambda r, f: f.fill(noise(f) * 2, np.eye(f.image_size, dtype=bool)), "is no picture: give floats"),
        (lambda r, f: r.restore(noise(r), 1.5), "1.5 images cannot be made: ask for a whole number"),
        (lambda r, f: r.restore(noise(r), seed=1.5), "seed=1.5 must be a whole number"),
        (lambda r, f: r.degrade(noise(r), seed=-1), "seed=-1 must be a whole number"),
        (lambda r, f: triptych.load(SHIPPED[0], device="gpu"), "device=gpu is no device of this machine: choose auto"),
        (lambda r, f: triptych.load(SHIPPED[0], device="cuda:99"), "device=cuda:99 is no device of this machine"),
        (lambda r, f: r.steps(noise(r), labels="red cube"), "labels= and guidance_scale= are of what is drawn"),
        (lambda r, f: r.steps(noise(r), guidance_scale=2.0), "labels= and guidance_scale= are of what is drawn"),
        (lambda r, f: r.steps(noise(r), marked="white"), "marked= says what marks the hole"),
        (lambda r, f: r.steps(hole=np.eye(4, dtype=bool)), "hole= and marked= are of a picture"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(
    call: Callable[..., Any], message: str, restorer: triptych.Model, filler: triptych.Model
) -> None:
    with pytest.raises(triptych.UserError, match=message):
        call(restorer, filler)
