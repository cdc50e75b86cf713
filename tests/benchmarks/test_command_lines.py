"""The commands of the benchmarks."""

import runpy
import sys

import pytest
from small_runs import ROOT

PATHS = [
    path
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    # Those named torch_ run in another environment and read standard input.
    if "__main__" in path.read_text() and not path.name.startswith("torch_")
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_an_unknown_flag_is_refused_before_anything_runs(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--no-such-flag"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err
