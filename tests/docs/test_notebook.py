"""Law: the tour runs as it stands, and shows what it shows when run again."""

import json
import re
import sys
from copy import deepcopy
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

from examples.notebooks.execute import NOTEBOOK, strip

matplotlib.use("agg")
ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
# Relative; 4 digits are printed. Training magnifies roundings, most of all in what the
# gradients are at its end.
TOLERANCE = {"train": 0.02, "run": 0.02, "table-last": 0.2}


def notebook():
    return json.loads(NOTEBOOK.read_text())


def cells():
    return [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]


def shown(cell):
    """What the cell printed, and how many pictures it drew."""
    outputs = cell["outputs"]
    text = "".join("".join(x["text"]) for x in outputs if x["output_type"] == "stream")
    return text, sum("image/png" in x.get("data", {}) for x in outputs)


def numbers(text):
    return [float(x.replace(",", "")) for x in NUMBER.findall(text)]


def test_every_cell_shows_again_what_is_kept(monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the notebook adds to it
    names = {}
    for cell in cells():
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        (text, pictures), found = shown(cell), capsys.readouterr().out
        assert NUMBER.sub("#", found).split() == NUMBER.sub("#", text).split()
        rel = TOLERANCE.get(cell["id"], 2e-3)
        assert numbers(found) == pytest.approx(numbers(text), rel=rel), cell["id"]
        assert len(pyplot.get_fignums()) == pictures
        pyplot.close("all")
    assert names["ROOT"] == ROOT


def test_it_finds_the_results_from_the_repository_too(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = {}
    exec("".join(cells()[0]["source"]), names)
    assert names["ROOT"] == ROOT


def test_what_is_kept_is_of_one_whole_run_and_small():
    assert [c["execution_count"] for c in cells()] == list(range(1, len(cells()) + 1))
    kinds = {(x["output_type"], x.get("name")) for c in cells() for x in c["outputs"]}
    assert kinds == {("stream", "stdout"), ("display_data", None)}
    stripped = deepcopy(notebook())
    strip(stripped)
    assert stripped == notebook(), "keep outputs with examples/notebooks/execute.py"
    assert NOTEBOOK.stat().st_size < 600_000
