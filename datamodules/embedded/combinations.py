"""Which scenes are shown in training and which are kept back: pairs of labels that never stand together, and how many objects.

What is kept back is kept back exactly, as the scenes are drawn and not collected: no training scene, whatever its number of
objects, has two labels of a pair that is held out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from datamodules.labels import NUM_LABELS
from generative.randomness import generator_for

MAX_OBJECTS = 3
LARGEST_SHARE = 0.5  # of all pairs; with more, a label has no partners left for scenes of three
# What a scene is: like those of training; with a pair of labels that training never shows; with more objects than it shows.
Group = Literal["shown", "held_out", "more_objects"]
SHOWN: Group = "shown"
HELD_OUT: Group = "held_out"
MORE_OBJECTS: Group = "more_objects"
SETS_OF_GROUP = 32  # as many as the public files have
_SEED = 0


@cache
def held_out_pairs(share: float) -> Tensor:
    """Return which pairs of labels (L, L) are kept back, symmetric; those of a smaller share are among those of a larger one.

    Args:
        share: Share of all pairs of different labels.
    """
    first, second = torch.triu_indices(NUM_LABELS, NUM_LABELS, offset=1)
    order = torch.randperm(len(first), generator=generator_for(_SEED, "held_out_pairs"))
    chosen = order[: round(share * len(first))]
    pairs = torch.zeros(NUM_LABELS, NUM_LABELS, dtype=torch.bool)
    pairs[first[chosen], second[chosen]] = pairs[second[chosen], first[chosen]] = True
    return pairs


@dataclass(frozen=True)
class Selection:
    """What training shows, and of that or of the rest what is drawn now.

    Attributes:
        held_out: Share of all pairs of labels that training never shows together.
        max_objects: Most objects of a training scene.
        group: Which scenes are drawn.
    """

    held_out: float = 0.0
    max_objects: int = MAX_OBJECTS
    group: Group = SHOWN

    @classmethod
    def read(cls, held_out: str | None, max_objects: int, tested: Group) -> Selection:
        """Read the settings of the data.

        Args:
            held_out: ``combinations:SHARE``, or None.
            max_objects: Most objects of a training scene.
            tested: The group that the test split is to hold.

        Returns:
            What training shows.

        Raises:
            ValueError: A setting is wrong, or training shows what is to be tested.
        """
        share = 0.0
        if held_out is not None:
            found = re.fullmatch(r"combinations:(\d*\.?\d+)", held_out)
            share = float(found.group(1)) if found else 0.0
            if not 0 < share <= LARGEST_SHARE:
                raise ValueError(
                    f"data.held_out={held_out} must be combinations:SHARE with a share of all pairs of labels above 0 and at "
                    f"most {LARGEST_SHARE}, such as combinations:0.25, or null"
                )
            if max_objects == 1:
                raise ValueError(
                    f"data.held_out={held_out} keeps pairs of labels apart, and data.max_objects=1 shows none: set 2 or 3"
                )
        selection = cls(share, max_objects)
        if tested not in (SHOWN, *selection.beyond):
            key = "data.held_out=combinations:0.25" if tested == HELD_OUT else "data.max_objects=2"
            raise ValueError(f"data.tested={tested}: training shows such scenes too; set {key}, or data.tested=shown")
        return selection

    @property
    def is_whole(self) -> bool:
        """Whether nothing is kept back."""
        return self.held_out == 0 and self.max_objects == MAX_OBJECTS

    @property
    def beyond(self) -> tuple[Group, ...]:
        """The groups of scenes that training never shows."""
        kept_back = {HELD_OUT: self.held_out > 0, MORE_OBJECTS: self.max_objects < MAX_OBJECTS}
        return tuple(group for group, is_kept_back in kept_back.items() if is_kept_back)

    @property
    def counts(self) -> tuple[int, int]:
        """Fewest and most objects of a scene."""
        if self.group == MORE_OBJECTS:
            return self.max_objects + 1, MAX_OBJECTS
        return (2 if self.group == HELD_OUT else 1), self.max_objects

    def holds(self, labels_NL: Tensor) -> Tensor:
        """Return which multi-hot sets of labels (N,), of a number of objects that fits, belong to the group."""
        pairs = held_out_pairs(self.held_out).to(labels_NL.dtype)
        has_pair = ((labels_NL @ pairs) * labels_NL).sum(1) > 0
        return has_pair if self.group == HELD_OUT else ~has_pair

    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the objects of scenes.

        Args:
            number: Number N of scenes.

        Returns:
            Which of the K objects are there (N, K), and the different labels (N, K) of all.
        """
        low, high = self.counts
        count = torch.randint(low, high + 1, (number, 1), generator=generator)
        present = torch.arange(MAX_OBJECTS) < count
        label = _permuted(number, generator)
        while len(wrong := (~self.holds(_multi_hot(label, present))).nonzero()[:, 0]):
            label[wrong] = _permuted(len(wrong), generator)
        return present, label

    def label_sets(self) -> Tensor:
        """Draw sets of labels of the group, always the same: two objects or more where there may be so many.

        Returns:
            (S, L) float32 vectors of 0 and 1, all different.
        """
        generator = generator_for(_SEED, f"label_sets/{self.group}/{self.held_out:g}/{self.max_objects}")
        found: dict[tuple[float, ...], None] = {}
        wanted = NUM_LABELS if self.counts[1] == 1 else SETS_OF_GROUP
        while len(found) < wanted:
            present, label = self.draw(SETS_OF_GROUP, generator)
            sets = _multi_hot(label, present)
            found |= dict.fromkeys(tuple(row) for row in sets[sets.sum(1) >= min(2, self.counts[1])].tolist())
        return torch.tensor(list(found)[:wanted])

    def record(self) -> dict[str, int]:
        """Say what is kept back, for the record; empty where nothing is."""
        if self.is_whole:
            return {}
        return {"held_out_pairs": int(held_out_pairs(self.held_out).sum()) // 2, "max_objects": self.max_objects}

    def key(self) -> str:
        """Return what is added to the names of the cache files; empty where nothing is kept back."""
        return "" if self.is_whole else f"-{self.group}-{self.held_out:g}-{self.max_objects}"


WHOLE = Selection()


def _permuted(number: int, generator: torch.Generator) -> Tensor:
    return torch.rand(number, NUM_LABELS, generator=generator).argsort(1)[:, :MAX_OBJECTS]


def _multi_hot(label_NK: Tensor, present_NK: Tensor) -> Tensor:
    return torch.zeros(len(label_NK), NUM_LABELS).scatter(1, label_NK, present_NK.float())
