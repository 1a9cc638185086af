"""A package of an extra that is missing is told from one that is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from files.packages import needed


def test_a_missing_package_is_told_from_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(ValueError, match=r"^python demo.py needs extra_package: pip install 'triptych\[demo\]'\.$"),
        needed("extra_package", extra="demo", by="python demo.py"),
    ):
        __import__("extra_package")
    for number, fault in enumerate(("import no_such_package", "from os import no_such_name", "1 / 0")):
        (tmp_path / f"broken{number}.py").write_text(fault)
        with (
            pytest.raises(ValueError, match="needs broken., installed here but broken .*: install again"),
            needed(f"broken{number}", extra="demo", by="python demo.py"),
        ):
            __import__(f"broken{number}")
    with needed("json", extra="demo", by="python demo.py"):
        __import__("json")
