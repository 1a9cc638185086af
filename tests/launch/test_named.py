"""What a config names and is not there is told in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.compose import compose_config
from launch.errors import UserError

FILES = {
    "named_typo": "from lightning_moduls import DDPM\n",
    "named_broken": "\n\nWORD = undefined\n",
    "named_grammar": "def f(:\n",
    "named_good": "class Network: ...\n",
}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "module._target_=named_typo.M",
            r"module\._target_=named_typo\.M: .*No module named 'lightning_moduls' \(.*line 1\)\.",
        ),
        (
            "network._target_=named_broken.N",
            r"network\._target_=.*NameError: name 'undefined' .*named_broken\.py, line 3\)\.",
        ),
        ("+callbacks.x._target_=named_grammar.C", r"callbacks\.x\._target_=.*SyntaxError: .*named_grammar\.py, line 1"),
        ("network._target_=named_good.Netwrk", r"named_good has no Netwrk; did you mean Network\?$"),
        ("optimizer._target_=named_nowhere.N", "there is no module named_nowhere; its folder must be"),
    ],
)
def test_what_is_named_and_cannot_be_imported_is_told_with_file_and_line(
    override: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in FILES.items():
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=sentence):
        compose_config(["experiment=regression_dit", override])
