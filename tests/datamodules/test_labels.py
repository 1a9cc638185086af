"""The label vocabulary, its multi-hot vectors, and files and draws of label sets."""

import json
from pathlib import Path

import pytest
import torch

from datamodules.labels import (
    COLOURS,
    LABEL_FACTORS,
    LABELS,
    SHAPES,
    check_label_factors,
    draw_label_sets,
    multi_hot,
    parse_labels,
    read_label_sets,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "iclevr"


def test_labels_are_shape_major_and_split_into_shape_and_colour():
    assert len(LABELS) == 24
    assert [LABELS[i] for i in (0, 1, 8, 16, 23)] == [
        *("gray cube", "red cube", "gray sphere", "gray cylinder", "yellow cylinder"),
    ]
    for i, name in enumerate(LABELS):
        shape, colour = divmod(i, LABEL_FACTORS[1])
        assert name == f"{list(COLOURS)[colour]} {SHAPES[shape]}"


def test_multi_hot_counts_each_label_once():
    vectors = multi_hot([["gray cube"], ["yellow cylinder", "red sphere"], []], LABELS)
    assert vectors.dtype == torch.float32
    assert [row.nonzero()[:, 0].tolist() for row in vectors] == [[0], [9, 23], []]


@pytest.mark.parametrize("text", ["red cube, blue sphere", " RED   cube ,Blue Sphere,", "blue sphere,red cube"])
def test_labels_are_read_in_any_case_and_with_any_blanks(text):
    assert torch.equal(parse_labels(text, LABELS), multi_hot([["red cube", "blue sphere"]], LABELS)[0])


def test_vocabularies_with_capitals_are_read():
    assert parse_labels("dog", ["Cat", "Dog"]).tolist() == [0, 1]


@pytest.mark.parametrize(("text", "named"), [("red cube, pink cone", "'pink cone'"), ("", "''"), (" , ", "' , '")])
def test_text_without_known_labels_is_named_and_the_labels_are_listed(text, named):
    with pytest.raises(ValueError, match=named) as error:
        parse_labels(text, LABELS)
    assert all(name in str(error.value) for name in LABELS)


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_label_sets_are_read_in_order(tmp_path):
    sets = [["cyan cube"], ["red sphere", "gray cube"]]
    assert torch.equal(read_label_sets(write(tmp_path / "test.json", sets), LABELS), multi_hot(sets, LABELS))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[", "test.json is not JSON"),
        ({"a": ["red cube"]}, "test.json is not a list of lists"),
        ([], "test.json is not a list of lists"),
        ([["red cube"], "red cube"], "test.json: set 1 .* is not a list of label names"),
        ([["red cube"], [3]], "test.json: set 1 .* is not a list of label names"),
        ([["red cube"], ["blue sphere"], []], "test.json: set 2 .* is empty"),
        ([["pink cone"]], "test.json: set 0 .* unknown label 'pink cone'; the labels are gray cube"),
        ([["red cube", "red cube"]], "test.json: set 0 .* 'red cube' more than once"),
    ],
)
def test_bad_label_sets_are_named_with_file_and_position(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_label_sets(write(tmp_path / "test.json", content), LABELS)
    assert "\n" not in str(error.value)


def test_missing_file_of_label_sets_has_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist: set data\.test_json"):
        read_label_sets(tmp_path / "none.json", LABELS, "set data.test_json=FILE")


@pytest.mark.parametrize(("name", "total"), [("test", 72), ("new_test", 84)])
def test_drawn_label_sets_are_fixed_distinct_and_complete(name, total):
    sets = draw_label_sets(name)
    assert sets.shape == (32, 24)
    assert sets.sum() == total
    assert set(sets.sum(1).tolist()) <= {1, 2, 3}
    assert len(sets.unique(dim=0)) == 32
    counts = sets.sum(0)
    assert counts.min() >= 3
    assert counts.max() - counts.min() <= 1
    assert torch.equal(sets, draw_label_sets(name))


def test_factors_must_go_with_the_words():
    check_label_factors((3, 8), LABELS)
    check_label_factors((24,), LABELS[::-1])
    check_label_factors((3, 8), [f"label{i}" for i in range(24)])  # names of one word say nothing
    colour_major = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    check_label_factors((8, 3), colour_major)
    for factors, names in (((3, 8), colour_major), ((8, 3), LABELS), ((3, 8), (LABELS[1], LABELS[0], *LABELS[2:]))):
        with pytest.raises(ValueError, match=r"set data\.label_factors=\[24\]"):
            check_label_factors(factors, names)


@pytest.mark.skipif(not REAL.exists(), reason=f"i-CLEVR is not in {REAL}")
@pytest.mark.parametrize(("name", "total"), [("test", 72), ("new_test", 84)])
def test_public_label_sets_are_of_the_drawn_sizes(name, total):
    sets = read_label_sets(REAL / f"{name}.json", LABELS)
    assert sets.sum() == total
    assert sorted(sets.sum(1).tolist()) == sorted(draw_label_sets(name).sum(1).tolist())
    assert tuple(json.loads((REAL / "objects.json").read_text())) == LABELS
