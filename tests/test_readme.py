"""Law: what the README shows runs, and the quickstart learns."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_code_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
    shown = capsys.readouterr().out
    assert "1 of 4 leaves" in shown
    assert "conv/kernel" in shown


def test_quickstart_learns(capsys):
    from examples import quickstart

    assert quickstart.main() > 0.95  # 98.7 % when written; chance is 10 %
    assert "dense2/kernel" in capsys.readouterr().out


def test_table_is_that_of_the_committed_run():
    from examples.imagenet.demo import cells

    run = json.loads((ROOT / "benchmarks/results/demo.json").read_text())
    for row in run["rows"]:
        assert "| " + " | ".join(cells(row)) + " |" in README.read_text()
    sweep = json.loads((ROOT / "benchmarks/results/demo_sweep.json").read_text())
    best = {name: method["best"] for name, method in sweep["methods"].items()}
    assert best == {row["method"]: row["learning_rate"] for row in run["rows"]}
