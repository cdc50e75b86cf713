"""Law: the tour runs alone, and shows what it shows when run again."""

import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from examples.notebooks.execute import NOTEBOOK, strip

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?%?")
# Training magnifies roundings. That of gradients at its end is relative. That of
# accuracies is in percentage points: JAX 0.10 and 0.12 differ by up to 0.3.
RELATIVE = {"layers": 0.2}
POINTS = 0.5

# Runs the cells and prints what each of them printed and how many pictures it drew.
# The repository cannot be imported, even if it is installed as an editable package.
RUN = """
import contextlib, io, json, sys
sys.modules |= {"benchmarks": None, "examples": None}
from matplotlib import pyplot

pyplot.show = lambda: None
names, shown = {"__name__": "__main__"}, {}
for cell, source in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(compile(source, cell, "exec"), names)
    shown[cell] = text.getvalue(), len(pyplot.get_fignums())
    pyplot.close("all")
print(json.dumps(shown))
"""


def notebook():
    return json.loads(NOTEBOOK.read_text())


def cells():
    return [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]


def shown(cell):
    """What the cell printed, and how many pictures it drew."""
    outputs = cell["outputs"]
    text = "".join("".join(x["text"]) for x in outputs if x["output_type"] == "stream")
    return text, sum("image/png" in x.get("data", {}) for x in outputs)


def numbers(text, percent):
    found = (x.replace(",", "") for x in NUMBER.findall(text))
    return [float(x.rstrip("%")) for x in found if x.endswith("%") == percent]


def run(source, tmp_path, *path):
    """Runs a program with the cells as its input, in an empty folder.

    Beside what is installed it can import what is in `path`.
    """
    (tmp_path / "empty").mkdir()
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "MPLBACKEND": "agg",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        input=json.dumps({cell["id"]: "".join(cell["source"]) for cell in cells()}),
        cwd=tmp_path / "empty",
        env=env,
        capture_output=True,
        text=True,
    )


def test_every_cell_shows_again_what_is_kept_without_the_repository(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "lars_optax").symlink_to(ROOT / "lars_optax")
    done = run(RUN, tmp_path, package)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert list(again) == [cell["id"] for cell in cells()]
    for cell in cells():
        (text, pictures), (found, drawn) = shown(cell), again[cell["id"]]
        assert NUMBER.sub("#", found).split() == NUMBER.sub("#", text).split()
        rel = RELATIVE.get(cell["id"], 2e-3)
        assert numbers(found, False) == pytest.approx(numbers(text, False), rel=rel)
        accuracies = pytest.approx(numbers(text, True), abs=POINTS)
        assert numbers(found, True) == accuracies
        assert drawn == pictures
    assert not any((tmp_path / "empty").iterdir())


def test_the_install_cell_says_what_to_set_where_the_package_is_missing(tmp_path):
    hide = "import sys; sys.modules['lars_optax'] = None\n"
    first = cells()[0]
    assert first["id"] == "install"
    done = run(hide + "".join(first["source"]), tmp_path)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "set SOURCE to the folder of a clone" in done.stderr


def test_at_the_large_batch_lars_comes_closer_to_the_small_batch_than_sgd():
    (cell,) = [cell for cell in cells() if cell["id"] == "sweep"]
    small, large, lars = (
        numbers(line, True)[1] for line in shown(cell)[0].splitlines()[1:]
    )
    assert large < lars < small


def test_what_is_kept_is_of_one_whole_run_and_small():
    assert [c["execution_count"] for c in cells()] == list(range(1, len(cells()) + 1))
    kinds = {(x["output_type"], x.get("name")) for c in cells() for x in c["outputs"]}
    assert kinds == {("stream", "stdout"), ("display_data", None)}
    stripped = deepcopy(notebook())
    strip(stripped)
    assert stripped == notebook(), "keep outputs with examples/notebooks/execute.py"
    assert NOTEBOOK.stat().st_size < 600_000
