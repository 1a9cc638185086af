"""Names of labels and sets of them: the vocabulary of i-CLEVR, multi-hot vectors, and the files of label sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generative.randomness import generator_for

COLOURS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
SHAPES = ("cube", "sphere", "cylinder")
LABELS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
NUM_LABELS = len(LABELS)
LABEL_FACTORS = (len(SHAPES), len(COLOURS))  # label i is shape i // 8 in colour i % 8

# How many sets of each size the public label sets hold: 72 and 84 labels in 32 sets.
SET_SIZES = {"test": {1: 6, 2: 12, 3: 14}, "new_test": {2: 12, 3: 20}}
_SETS_SEED = 0


def multi_hot(names_per_image: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> Tensor:
    """Encode sets of labels.

    Args:
        names_per_image: N sets of label names.
        vocabulary: The L label names in order.

    Returns:
        (N, L) float32 vectors of 0 and 1.

    Raises:
        ValueError: If a name is not in the vocabulary.
    """
    number = {name: i for i, name in enumerate(vocabulary)}
    vectors = torch.zeros(len(names_per_image), len(vocabulary))
    for vector, names in zip(vectors, names_per_image, strict=True):
        for name in names:
            if name not in number:
                raise ValueError(f"there is no label {name!r}; the labels are {', '.join(vocabulary)}")
            vector[number[name]] = 1
    return vectors


def parse_labels(text: str, vocabulary: Sequence[str]) -> Tensor:
    """Read a list of labels such as ``"red cube, blue sphere"``, in any case and with any blanks.

    Args:
        text: Label names between commas.
        vocabulary: The L label names in order.

    Returns:
        (L,) float32 vector of 0 and 1.

    Raises:
        ValueError: If a name is not in the vocabulary, or there is none.
    """
    known = {name.casefold(): name for name in vocabulary}
    names = [name for part in text.split(",") if (name := " ".join(part.casefold().split()))]
    if not names:
        raise ValueError(f"{text!r} names no label; the labels are {', '.join(vocabulary)}")
    return multi_hot([[known.get(name, name) for name in names]], vocabulary)[0]


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        remedy: What to do where it is missing, for the message.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} does not exist: {remedy}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also what is not UTF-8, or lists a hundred thousand deep
        raise ValueError(f"{path} is not JSON ({error}): replace it by the published file") from error


def check_labels(names: Any, vocabulary: Sequence[str], where: str) -> None:
    """Check one set of labels as it comes from a file.

    Args:
        names: What should be a list of distinct label names, one or more.
        vocabulary: The label names.
        where: File and position, for the message.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} is not a list of label names")
    if not names:
        raise ValueError(f"{where} is empty: give one label or more")
    unknown = [name for name in names if name not in vocabulary]
    if unknown:
        raise ValueError(f"{where} has the unknown label {unknown[0]!r}; the labels are {', '.join(vocabulary)}")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{where} has the label {repeated[0]!r} more than once: name it once")


def read_label_sets(path: str | Path, vocabulary: Sequence[str], remedy: str = "check its path") -> Tensor:
    """Read sets of labels to draw, such as i-CLEVR's ``test.json``.

    Args:
        path: A JSON file with a list of lists of label names.
        vocabulary: The L label names in order.
        remedy: What to do where the file is missing, for the message.

    Returns:
        (S, L) float32 vectors of 0 and 1.

    Raises:
        ValueError: If the file holds anything else, or a set is empty, repeats a label or has an unknown one.
    """
    sets = read_json(Path(path), remedy)
    if not isinstance(sets, list) or not sets:
        raise ValueError(f"{path} is not a list of lists of label names")
    for position, names in enumerate(sets):
        check_labels(names, vocabulary, f"{path}: set {position} (counted from 0)")
    return multi_hot(sets, vocabulary)


def draw_label_sets(name: str) -> Tensor:
    """Draw sets of the embedded vocabulary, as many and as large as the public ones and always the same.

    Args:
        name: ``test`` or ``new_test``.

    Returns:
        (32, 24) float32 vectors of 0 and 1: different sets, in which the labels occur equally often but for one.
    """
    generator = generator_for(_SETS_SEED, f"label_sets/{name}")
    sizes = [size for size, count in SET_SIZES[name].items() for _ in range(count)]
    num_labels = len(LABELS)
    while True:
        # Sets are cut from permutations laid end to end; one across a joint may repeat a label, then all are redrawn.
        rounds = -(-sum(sizes) // num_labels)
        numbers = torch.cat([torch.randperm(num_labels, generator=generator) for _ in range(rounds)])[: sum(sizes)]
        vectors = torch.stack([torch.zeros(num_labels).index_fill(0, part, 1) for part in numbers.split(sizes)])
        if vectors.sum() == sum(sizes) and len(vectors.unique(dim=0)) == len(sizes):
            return vectors


def check_label_factors(label_factors: Sequence[int], vocabulary: Sequence[str]) -> None:
    """Check that labels which agree in a factor agree in a word, where names have as many words as there are factors.

    Args:
        label_factors: Radices of the label numbers, the first one for the most significant digit.
        vocabulary: The label names in order.

    Raises:
        ValueError: If the numbers' digits do not go with the names' words.
    """
    words = [name.split() for name in vocabulary]
    num_factors = len(label_factors)
    if num_factors < 2 or any(len(name) != num_factors for name in words):
        return
    rest = torch.arange(len(vocabulary))
    digits: list[list[int]] = []
    for factor in reversed(label_factors):
        digits.insert(0, (rest % factor).tolist())
        rest = rest // factor
    for digit, factor in zip(digits, label_factors, strict=True):
        if not any(
            len({(d, name[k]) for d, name in zip(digit, words, strict=True)}) == factor for k in range(num_factors)
        ):
            raise ValueError(
                f"data.label_factors={list(label_factors)} does not go with the order of the labels "
                f"({', '.join(vocabulary[:3])}, ...): set data.label_factors=[{len(vocabulary)}]"
            )
