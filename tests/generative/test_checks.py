"""An option or a range is written once, as the annotation of an argument, and whoever builds the object is held to it."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from generative import degradations, networks, objectives, samplers, schedules
from generative.checks import checked, hints_of, restricts
from generative.ranges import Count, Positive, Share


@checked("part")
@dataclass(frozen=True)
class Part:
    kind: Literal["plain", "fancy"] = "plain"
    count: Count = 1
    shares: tuple[Share, Share] = (0.0, 1.0)
    limit: Positive | None = None
    weight: float | Tensor = -1.0  # neither range nor options: anything goes


class Base(nn.Module):
    def __init__(self, width: Count, name: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)


@checked("module")
class Module(Base):
    def __init__(self, depths: Sequence[Count] = (1,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depths = list(depths)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Part("odd"), "part.kind=odd must be 'plain' or 'fancy'."),
        (lambda: Part(count=0), "part.count=0 must be greater than or equal to 1."),
        (lambda: Part(count=2.0), "part.count=2.0 must be a whole number."),
        (lambda: Part(count=True), "part.count=True must be a whole number."),
        (lambda: Part(shares=(0.5, 2)), "part.shares=(0.5, 2) item 1 must be less than or equal to 1."),
        (lambda: Part(limit=math.nan), "part.limit=nan must be a finite number or null."),
        (lambda: Part(limit=0), "part.limit=0 must be greater than 0 or null."),
        (lambda: Part("odd", 0), "part.kind=odd must be 'plain' or 'fancy'."),  # the first one, always
        (lambda: replace(Part(), count=-1), "part.count=-1 must be greater than or equal to 1."),
        (lambda: Module(width=0), "module.width=0 must be greater than or equal to 1."),  # also what goes to the base
        (lambda: Module([2, 0], width=1), "module.depths=[2, 0] item 1 must be greater than or equal to 1."),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"must be") as error:
        build()
    assert str(error.value) == message


def test_what_fits_is_built_as_ever() -> None:
    part = Part("fancy", 3, [0, 0.5], None, weight=torch.ones(2))
    assert (part.kind, part.count, part.shares) == ("fancy", 3, [0, 0.5])
    assert pickle.loads(pickle.dumps(Part(count=7))) == copy.deepcopy(Part(count=7)) == Part(count=7)
    assert Module((1, 2), width=3).layer.in_features == 3
    assert list(inspect.signature(Part).parameters) == ["kind", "count", "shares", "limit", "weight"]
    with pytest.raises(TypeError, match="unknown"):
        Part(unknown=1)


def test_annotations_of_the_base_count_where_arguments_are_handed_on() -> None:
    assert {name for name, hint in hints_of(Module).items() if restricts(hint)} == {"depths", "width"}


def test_an_annotation_that_names_nothing_is_told_or_left_out_alone() -> None:
    def init(self, width: Count, layer: Missing) -> None:  # noqa: F821
        """As a class that imports a type for type checkers only."""

    others = type("Others", (), {"__init__": init})
    assert hints_of(others) == {"width": Count, "return": type(None)}
    own = checked("part")(others)
    with pytest.raises(NameError, match="Others names Missing, which is not known"):
        own(1, None)


def test_no_subclass_loses_the_range_of_what_it_overrides() -> None:
    classes = [
        value
        for package in (degradations, networks, objectives, samplers, schedules)
        for value in vars(package).values()
        if isinstance(value, type)
    ]
    lost = [
        f"{kind.__name__}.{name}"
        for kind in classes
        for base in kind.__mro__[1:-1]
        for name, hint in hints_of(base).items()
        if restricts(hint) and name in vars(kind).get("__annotations__", {}) and not restricts(hints_of(kind)[name])
    ]
    assert classes
    assert not lost
