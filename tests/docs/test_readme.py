"""Law: what the README shows runs, and the examples show what they say."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
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


def test_weights_kept_in_bfloat16_stand_still_and_master_weights_do_not():
    from examples import mixed_precision

    results = mixed_precision.main()
    full = results["float32", "float32"]
    master, half = results["float32", "bfloat16"], results["bfloat16", "bfloat16"]
    # Losses were 0.0495, 0.0500 and 0.0670 when written.
    assert master.loss < 1.05 * full.loss
    assert half.loss > 1.2 * full.loss
    assert min(full.moved[-10:]) > 0.9
    assert max(half.moved[-10:]) < 0.1


def test_tables_are_those_of_the_committed_results(monkeypatch):
    from benchmarks import report

    monkeypatch.chdir(ROOT)
    pages = report.pages()
    assert {str(page) for page in pages} >= {"README.md", "benchmarks/README.md"}
    for page, text in pages.items():
        assert page.read_text() == text, f"{page} is not of the results: make report"


def test_demo_used_the_rates_of_the_committed_sweep():
    run = json.loads((ROOT / "benchmarks/results/demo.json").read_text())
    sweep = json.loads((ROOT / "benchmarks/results/demo_sweep.json").read_text())
    best = {name: method["best"] for name, method in sweep["methods"].items()}
    assert best == {row["method"]: row["learning_rate"] for row in run["rows"]}
