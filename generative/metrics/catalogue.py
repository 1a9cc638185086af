"""What a metric is: each file next to this one lists its own as ``METRICS``, and whoever shows or compares numbers asks here.

A value is named ``<key>/<output>``. The key is that of a listed metric, or of a variant of one: what it is measured with and
what it is of follow the metric's own key, as in ``fd_label_classifier_paired`` or ``label_accuracy_assisted_std``. Nobody
else takes a key apart.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Better = Literal["higher", "lower"]
STD = "std"  # ends the key of the spread of what an evaluation draws several times
EQUAL = 1e-6  # relative: values that differ by less are the same


@dataclass(frozen=True)
class Table:
    """Metrics that are shown side by side.

    Attributes:
        order: Its place among the tables, the smallest first.
    """

    title: str
    order: int


OTHERS = Table("other metrics", 1000)


@dataclass(frozen=True)
class Variant:
    """The same formula for something else.

    Attributes:
        suffix: Follows the key of the metric; one word in small letters.
        words: Follow the metric's words.
        table: Where it is shown.
    """

    suffix: str
    words: str
    table: Table


@dataclass(frozen=True)
class Pooled:
    """How a value follows from the mean of something else over all images.

    Attributes:
        key: What the mean is of, as it is kept image by image.
        value: Turns means into values.
    """

    key: str
    value: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A metric as a reader meets it.

    Attributes:
        key: Its name in records and logs: small letters, digits and underscores.
        words: Its name in a heading.
        unit: Its unit; empty without one.
        better: Whether ``higher`` or ``lower`` is better; None where neither is.
        digits: Decimals that are shown; None for four significant digits.
        table: Where it is shown; there the listed order holds.
        definition: How it is measured, in a sentence.
        case: What stands after the slash where it is no output, such as ``set of labels``.
        placeholder: What stands for the part after the slash where the definition is recorded, such as ``<share>``.
        bounds: Those of the cases that bound the others and do not compete with them.
        minor: Whether it is shown only where all metrics are.
        leading: Whether it is among the first to look at: it is drawn.
        variants: What else the formula is used for.
        in_hole: Whether the pixels of holes alone count.
        of_features: Whether it is measured on features; the extractor's name then follows the key.
        features: Of a variant, the extractor's name in words.
        spread_of: Of a standard deviation, the key of the metric that it is of.
        pooled: How it follows from a mean over the images; None for what is itself such a mean.
        main_of: Tasks of which it is a first answer to "how good".
        output: Where it is one, the output that it is the score of; empty where a case stands in its place.
        nominal: Where neither side is better, the value that is right; None where none is.
        sides: What a value below the nominal one says, and one above it.
        perfect_costs: Of an error, by how much at most the least one grows for images whose law is that of the clean ones; 0
            where that is not known.
        against: Key of the metric that is lost where this one is gained by guidance: both are drawn against each other.

    Raises:
        ValueError: If ``better`` is neither word, or there are less than no digits.
    """

    key: str
    words: str
    unit: str = ""
    better: Better | None = None
    digits: int | None = None
    table: Table = OTHERS
    definition: str = ""
    case: str = ""
    placeholder: str = ""
    bounds: tuple[str, ...] = ()
    minor: bool = False
    leading: bool = False
    variants: tuple[Variant, ...] = ()
    in_hole: bool = False
    of_features: bool = False
    features: str = ""
    spread_of: str = ""
    pooled: Pooled | None = None
    main_of: tuple[str, ...] = ()
    output: str = ""
    nominal: float | None = None
    sides: tuple[str, str] = ("too low", "too high")
    against: str = ""
    perfect_costs: float = 0.0

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower", None):
            raise ValueError(f"The metric {self.key} has better={self.better!r}: choose higher, lower or None.")
        if self.digits is not None and self.digits < 0:
            raise ValueError(f"The metric {self.key} has digits={self.digits}, which must be at least 0.")

    def variant(self, *suffixes: str, features: str = "") -> Metric:
        """Return the metric of something else.

        Args:
            *suffixes: Suffixes of its ``variants``, and ``std`` for the standard deviation of its draws.
            features: Name of the extractor, where it is ``of_features``.

        Returns:
            The metric, with the key that its values are recorded under.

        Raises:
            ValueError: It has no such variant.
        """
        known = {variant.suffix: variant for variant in self.variants}
        unknown = [suffix for suffix in suffixes if suffix not in known and suffix != STD]
        if features and not self.of_features:
            unknown.append(features)
        if unknown:
            raise ValueError(f"The metric {self.key} has no variant {unknown[0]}.")
        chosen = [known[suffix] for suffix in suffixes if suffix != STD]
        table = chosen[-1].table if chosen else self.table
        words = "".join([self.words, *(variant.words for variant in chosen)])
        if features:
            table = Table(f"{table.title}, features of the {features.replace('_', ' ')}", table.order)
        key = "_".join(filter(None, [self.key, features, *suffixes]))
        found = replace(self, key=key, words=words, features=features.replace("_", " "), table=table)
        if STD in suffixes:
            mean = found.key.removesuffix(f"_{STD}")
            found = replace(
                found, words=f"{words}, standard deviation", better=None, leading=False, main_of=(), spread_of=mean
            )
        return found

    def _parsed(self, rest: Sequence[str]) -> Metric | None:
        """Return the variant whose key continues with these words, or None where there is none."""
        words, suffixes = list(rest), list[str]()
        known = {STD, *(variant.suffix for variant in self.variants)}
        while words and words[-1] in known:
            suffixes.insert(0, words.pop())
        if words and not self.of_features:
            return None
        return self.variant(*suffixes, features="_".join(words))

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is, 0 where neither is."""
        return {"higher": 1, "lower": -1, None: 0}[self.better]

    @property
    def name(self) -> str:
        """Its words with extractor and unit."""
        return ", ".join(filter(None, [self.words, self.features, self.unit]))

    def sentence(self, output: str, value: float) -> str:
        """Write a value in running text, such as ``PSNR mean 21.30 dB``."""
        words = self.words if self.words[1:2].isupper() else self.words[:1].lower() + self.words[1:]
        return " ".join(filter(None, [words, output, self.text(value), self.unit]))

    @property
    def arrow(self) -> str:
        """Points to the better side; empty where neither is."""
        return {1: "↑", -1: "↓", 0: ""}[self.sign]

    @property
    def heading(self) -> str:
        """Words and extractor, and in a line below the unit and the arrow."""
        words = ", ".join(filter(None, [self.words, self.features]))
        return f"{words}\n{self.unit} {self.arrow}".replace("\n ", "\n").strip()

    def text(self, value: float | None, spread: float | None = None) -> str:
        """Write a value with the metric's decimals.

        Args:
            value: The value; None where there is none.
            spread: Its standard deviation, or None.

        Returns:
            Text, such as ``21.30`` or ``21.30 ± 0.05``; empty without a value.
        """
        if value is None:
            return ""
        text = f"{value:.4g}" if self.digits is None else f"{value:.{self.digits}f}"
        return text if spread is None else f"{text} {self.spread_text(value, spread)}"

    def spread_text(self, value: float, spread: float) -> str:
        """Write a standard deviation with the decimals of its mean.

        Args:
            value: The mean.
            spread: The standard deviation.

        Returns:
            Text, such as ``± 0.05``, or ``± <0.01`` where it is smaller than the last decimal shows.
        """
        if self.digits is None:
            return f"± {spread:.2g}"
        least = 10.0**-self.digits
        is_told = not spread < least / 2 or spread < EQUAL * abs(value)
        return f"± {spread:.{self.digits}f}" if is_told else f"± <{least:g}"


METRICS = (
    Metric(
        "loss", "Loss", "", "lower", 3, Table("training", 900), "mean of the objective over the images of the split"
    ),
)


def definitions(metrics: Iterable[Metric]) -> dict[str, str]:
    """Return the definition of each metric by its key, with the placeholder after it where there is one."""
    return {value_name(metric.key, metric.placeholder): metric.definition for metric in metrics}


@functools.cache
def listed() -> dict[str, Metric]:
    """Gather the metrics of all files of this package by key, those of a table in the order of their file.

    Raises:
        ValueError: If two files list the same key, or a key is none.
    """
    package = __name__.rpartition(".")[0]
    found: dict[str, Metric] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        for metric in getattr(importlib.import_module(f"{package}.{module.name}"), "METRICS", ()):
            if not re.fullmatch(r"[a-z0-9_]+", metric.key):
                raise ValueError(f"The metric {metric.key!r} needs a key of small letters, digits and underscores.")
            if metric.key in found:
                raise ValueError(f"The metric {metric.key} is listed twice, once in {package}.{module.name}.")
            found[metric.key] = metric
    return found


@functools.cache
def metric_of(key: str) -> Metric:
    """Find a metric.

    Args:
        key: The part of a value's name before the slash.

    Returns:
        The listed metric or a variant of one; for any other key one with its own words, no direction and no unit.
    """
    parts = key.split("_")
    for end in range(len(parts), 0, -1):
        base = listed().get("_".join(parts[:end]))
        if base is not None and (found := base._parsed(parts[end:])) is not None:
            return found
    spread_of = key.removesuffix(f"_{STD}") if parts[-1] == STD else ""
    return Metric(key, key.replace("_", " ").capitalize(), spread_of=spread_of)


def split_name(name: str) -> tuple[str, str]:
    """Take ``<key>/<output>`` apart; a user's value may have no output."""
    key, _, output = name.partition("/")
    return key, output


def spoken(name: str) -> str:
    """Write a value's name in words, such as ``PSNR, dB of mean``."""
    key, output = split_name(name)
    return f"{metric_of(key).name} of {output}" if output else metric_of(key).name


def output_order(output: str) -> tuple[tuple[float, int, str], ...]:
    """Return the key by which outputs and cases are sorted: numbers by value, then names, short ones first.

    Those of several parts with slashes between are sorted by the first part, then the next.
    """

    def place(part: str) -> tuple[float, int, str]:
        try:
            return float(part), 0, part
        except ValueError:
            return math.inf, len(part), part

    return tuple(map(place, output.split("/")))


def ordered(names: Iterable[str], has_spreads: bool = False) -> list[Metric]:
    """Find the metrics of values and sort them as they are shown.

    Args:
        names: Names of values, or keys alone.
        has_spreads: Whether standard deviations stand for themselves too, and not in the cells of their means alone.

    Returns:
        The metrics, table by table.
    """
    present = set(names)
    outputs: dict[str, set[str]] = {}
    for key, output in map(split_name, present):
        outputs.setdefault(key, set()).add(output)
    metrics = [
        m for m in map(metric_of, outputs) if has_spreads or not outputs[m.key] <= outputs.get(m.spread_of, set())
    ]
    places = {key: place for place, key in enumerate(listed())}

    def place(metric: Metric) -> tuple[int, int, str, int, str]:
        own = max((key for key in places if f"{metric.key}_".startswith(f"{key}_")), key=len, default="")
        return metric.table.order, len(metric.table.title), metric.table.title, places.get(own, len(places)), metric.key

    return sorted(metrics, key=place)


def value_name(key: str, output: str) -> str:
    """Put key and output together; the output may be empty."""
    return f"{key}/{output}" if output else key
