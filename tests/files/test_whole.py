"""Files appear whole or not at all, also where several write them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from files.cache import cached
from files.whole import WriteError, whole_file


def test_several_writers_of_one_file_each_write_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def write(number: int) -> None:
        with whole_file(path, "w") as file:
            for _ in range(200):
                file.write(f"{number}\n")
                file.flush()

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(write, range(40)):
            lines = path.read_text().split()
            assert len(lines) == 200
            assert len(set(lines)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_writer_left_is_used_up(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.tmp").write_text("half of a much longer text")
    with whole_file(tmp_path / "a.txt", "w") as file:
        file.write("whole")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "whole")]


def test_of_several_writers_that_may_not_replace_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "sub" / f"{'a' * 250}.txt"  # a name as long as names can be

    def write(number: int) -> bool:
        try:
            with whole_file(path, "w", replace=False) as file:
                file.write(f"{number}\n" * 200)
        except WriteError as error:
            assert "File exists" in str(error)  # noqa: PT017 - most of the writers
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        first = [number for number, stays in enumerate(pool.map(write, range(40))) if stays]
    assert path.read_text() == f"{first[0]}\n" * 200
    assert len(first) == len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("memory_map", [False, True])
def test_a_full_disk_costs_the_cache_and_not_the_run(memory_map: bool, tmp_path: Path, file_limit) -> None:
    path = tmp_path / "sub" / "a.pt"
    file_limit(100_000)
    with pytest.warns(UserWarning, match=r"a\.pt could not be written: File too large.*set paths\.cache_dir"):
        tensors = cached(path, lambda: {"x": torch.arange(100_000)}, memory_map)
    assert torch.equal(tensors["x"], torch.arange(100_000))
    assert not list(path.parent.iterdir())
