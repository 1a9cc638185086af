"""A module says what it is, and what it does not say is one sentence before the first step."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from callbacks import Evaluation
from generative.randomness import Randomness
from generative.types import Batch, LossOutput
from launch import build
from launch.errors import UserError
from lightning_modules import Card, GenerativeModule, Output, TrainingModule
from lightning_modules.contract import OnDemand
from lightning_modules.generative_module import MAX_TRIED_CALLS


class Whole(GenerativeModule):
    tasks = frozenset({"generate"})
    card = Card("title", "use", "limits")

    def __init__(self, calls: float = 2) -> None:
        super().__init__(nn.Linear(1, 1), lambda groups: torch.optim.SGD(groups, lr=0.1), lambda step: 1.0, 1)
        self.calls, self.made = calls, 0

    @property
    def outputs(self) -> dict[str, Output]:
        return {"sample": Output(self.calls)}

    @property
    def uses_labels(self) -> bool:
        return False

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        return LossOutput(batch.image.mean())

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        self.made += 1
        return {"sample": torch.zeros_like(batch.image)}


def images() -> Batch:
    return Batch(torch.zeros(2, 1, 4, 4), torch.arange(2))


def build_of(kind: type, **members: Any) -> TrainingModule:
    """Build a class with other members, as a config that names it does."""
    global Changed
    Changed = type("Changed", (kind,), members)
    config = OmegaConf.create({"seed": 0, "module": {"_target_": f"{__name__}.Changed"}})
    return build.build_module(config)


def names(*outputs: str) -> property:
    return property(lambda self: {name: Output(1) for name in outputs})


class Judge(TrainingModule):
    tasks = frozenset({"judge"})
    card = Card("title", "use", "limits")

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1), lambda groups: torch.optim.SGD(groups, lr=0.1), lambda step: 1.0, 1)

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        return LossOutput(batch.image.mean())


@pytest.mark.parametrize(
    ("kind", "members", "message"),
    [
        (Whole, {"tasks": None}, r"Changed\.tasks=None must be a frozenset of .* restore, inpaint, generate"),
        (Whole, {"tasks": frozenset({"draws"})}, r"Changed\.tasks=.*draws.* must be a frozenset"),
        (Whole, {"tasks": {"generate"}}, r"Changed\.tasks=.* must be a frozenset"),
        (Whole, {"card": None}, r"Changed\.card is missing"),
        (GenerativeModule, {"tasks": frozenset({"generate"})}, r"Changed lacks loss, outputs, sample: see docs"),
        (Judge, {"tasks": frozenset({"restore"})}, r"Changed makes images, .*GenerativeModule"),
        (Whole, {"outputs": property(lambda self: {})}, r"Changed\.outputs must be a dict of"),
        (Whole, {"outputs": property(lambda self: {"sample": 3})}, r"Changed\.outputs must be a dict of"),
        (Whole, {"outputs": property(lambda self: {"sample": Output(-1)})}, r"network calls .* at least 0"),
        (Whole, {"outputs": property(lambda self: {"sample": Output(None)})}, r"network calls .* one be given"),
        (
            Whole,
            {"part_keys": ("tokenizer",)},
            r"part_keys=\['tokenizer'\], parts and parts_record must be of the same",
        ),
        (
            Whole,
            {"parts_record": lambda self: {"judge": {}}},
            r"part_keys=\[\], parts and parts_record must be of the same",
        ),
        (Whole, {"outputs": names("drawing")}, r"task generate, .* called sample: it has drawing"),
        (Whole, {"tasks": frozenset({"restore"}), "outputs": names("x")}, r"task restore, .* called sample or mean"),
        (Whole, {"tasks": frozenset({"reconstruct"})}, r"task reconstruct, .* called reconstruction: it has sample"),
        (
            Whole,
            {"uses_labels": GenerativeModule.uses_labels},
            r"must say whether it draws of labels: define uses_labels",
        ),
    ],
)
def test_what_is_missing_is_one_sentence_when_it_is_built(kind: type, members: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_of(kind, **members)
    assert "\n" not in str(caught.value)


def test_what_is_whole_is_built() -> None:
    assert isinstance(build_of(Whole), Whole)
    assert isinstance(build_of(Judge), Judge)
    assert not hasattr(Judge, "sample")


def sampling(make: Callable[[Batch], dict[str, Tensor]]) -> dict[str, Any]:
    return {"sample": lambda self, batch, randomness: make(batch)}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (sampling(lambda batch: {"drawing": batch.image}), r"makes drawing, but its outputs are sample"),
        (sampling(lambda batch: {}), r"makes nothing, but its outputs are sample"),
        (sampling(lambda batch: {"sample": batch.image[:, :, :2]}), r"sample of the shape \(2, 1, 2, 4\)"),
    ],
)
def test_other_images_than_it_says_are_refused_before_the_first_step(members: dict[str, Any], message: str) -> None:
    module = build_of(Whole, **members)
    with pytest.raises(ValueError, match=message):
        module.try_outputs(images())


def test_one_image_is_tried_where_it_costs_little_and_leaves_no_trace() -> None:
    module = Whole()
    state = torch.random.get_rng_state()
    module.try_outputs(images())
    assert module.made == 1
    assert module.training
    assert module.network.training
    assert torch.equal(torch.random.get_rng_state(), state)
    costly = Whole(calls=MAX_TRIED_CALLS + 1)
    costly.try_outputs(images())
    assert costly.made == 0


@pytest.mark.parametrize(("precision", "mixed"), [("32-true", False), ("bf16-mixed", True), ("16-mixed", True)])
def test_the_image_is_tried_in_the_precision_of_the_steps(precision: str, mixed: bool) -> None:
    tried = []

    def made(batch: Batch) -> dict[str, Tensor]:
        tried.append(torch.is_autocast_enabled("cpu"))
        return {"sample": batch.image}

    module = build_of(Whole, **sampling(made))
    build.check_data(module, SimpleNamespace(batch=lambda *_: images()), SimpleNamespace(precision=precision))
    assert tried == [mixed]
    assert not torch.is_autocast_enabled("cpu")


def test_images_are_made_where_a_callback_asks_and_once() -> None:
    module = Whole()
    module.tasks = frozenset({"restore"})
    step = module.evaluation_step(images())
    assert module.made == 0
    assert step["outputs"] is step["outputs"]
    assert module.made == 1
    assert set(step) == {"batch", "outputs"}


def test_what_draws_from_noise_answers_to_no_image() -> None:
    module = Whole()
    step = module.evaluation_step(images())
    assert step["outputs"] == {}
    assert module.made == 0


def test_a_judge_has_nothing_to_measure_by_its_images() -> None:
    callback = Evaluation()
    callback.metrics = callback.metrics_of(Judge())
    callback.take(Judge().evaluation_step(images()))
    assert callback.metrics.compute() == {}


def test_calls_are_timed_while_that_is_asked_for() -> None:
    module = Whole()
    module.images_of(images(), None)
    assert module.sampling_times is None
    module.sampling_times = []
    module.images_of(images(), None)
    module.images_of(images(), None, {"sample"})  # less is made
    ((size, seconds),) = module.sampling_times
    assert size == 2
    assert seconds >= 0


def test_entries_are_made_in_the_context_that_they_are_given() -> None:
    def precision() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    entries = OnDemand({}, {"product": lambda: torch.ones(1, 1) @ torch.ones(1, 1)}, precision)
    assert len(entries) == 1
    assert entries["product"].dtype == torch.bfloat16
