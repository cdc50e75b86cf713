"""Law: what the README shows runs, and the quickstart learns."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


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
