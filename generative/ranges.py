"""Ranges that arguments are annotated with; ``generative.checks`` checks values against them."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
AtLeastTwo = Annotated[int, Ge(2)]
WholeNumber = Annotated[int, Ge(0)]
AtLeastOne = Annotated[float, Ge(1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Channels = Literal[1, 3]  # grey or RGB
BelowOne = Annotated[float, Ge(0), Lt(1)]
