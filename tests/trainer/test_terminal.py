"""Text from outside on the terminal: no markup, no control characters, one line."""

from pathlib import Path

import image_trees as images
import pytest
from cases import cases

from examples.imagenet import cli, prepare
from examples.imagenet.terminal import Terminal, printable

ESCAPES = "\x1b]0;title\x07\x1b[31mred\r\n[red]:smile:[/notes]"
SHOWN = r"\x1b]0;title\x07\x1b[31mred\r\n[red]:smile:[/notes]"

pytestmark = pytest.mark.usefixtures("cache")


@cases(
    "text, shown",
    plain=("AlexNet: ‖w‖ × 2, 5 %", "AlexNet: ‖w‖ × 2, 5 %"),
    control=(ESCAPES, SHOWN),
    c1=("a\x9b31m", r"a\x9b31m"),
    surrogate=("caf\udce9", r"caf\udce9"),
    reversed=("\u202etxt.exe", r"\u202etxt.exe"),
    separator=("a\u2028b", r"a\u2028b"),
)
def test_printable_text_is_one_line_that_says_what_was_there(text, shown, capsys):
    assert printable(text) == shown
    Terminal().print(text)
    assert capsys.readouterr().out == f"{shown}\n"


@pytest.fixture
def odd(tmp_path):
    """A tree with a file that is named as markup would end, and others alike."""
    files = {"train/a[/notes]": b"", "train/cat/[red].png": b"broken"}
    files |= {f"train/cat/{ESCAPES.split('/')[0]}.png": b"broken"}
    tree = images.two_classes(tmp_path / "tree [lars] [/b]")
    return images.write_tree(tree, files)


def lines(text):
    found = text.split("\n")
    assert all(line.isprintable() for line in found), text
    return found


def test_the_trainer_prints_brackets_in_paths_as_they_are(
    odd, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "plot_logs", lambda *_: None)
    out = tmp_path / "r6/exp [lars] 1"
    words = "--network alexnet_bn_small --width 0.25 --pixels 28 --epochs 1"
    words += " --warmup-epochs 0 --batch-size 4 --devices 1 --broken blank"
    words += " --checkpoints 0 --validation-images 4"
    cli.main([*words.split(), "--data", str(odd), "--out", str(out)])
    said = lines(capsys.readouterr().out)
    assert f"log and curves: {out}/log.jsonl, {out}/curves.png" in said
    assert f"2 images could not be read; {out}/log.jsonl names them" in said
    note = "note: train: folders inside class folders, not read: 1 ('a[/notes]')"
    assert any("a[/notes]" in line for line in said), note


def test_prepare_prints_brackets_in_paths_as_they_are(odd, capsys):
    assert prepare.main([str(odd)]) == 1
    said = lines(capsys.readouterr().out)
    assert any(f"{odd}/train/cat/[red].png" in line for line in said)
    assert any("a[/notes]" in line for line in said)


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_the_last_line_of_an_error_has_no_control_characters(
    error, monkeypatch, capsys
):
    def fail(config):
        raise error(ESCAPES)

    monkeypatch.setattr(cli, "run", fail)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    said = capsys.readouterr().err.rstrip("\n") or end.value.code
    assert said == f"error: {SHOWN}"


def test_the_error_of_prepare_has_its_remedy_on_lines_of_its_own(tmp_path):
    folder = Path(tmp_path, "[b]\n[/b]")
    (folder / "train").mkdir(parents=True)
    with pytest.raises(SystemExit) as end:
        prepare.main([str(folder)])
    first, *rest = lines(end.value.code)
    assert first.startswith("error: DIR: got ")
    assert r"[b]\n[/b]'" in first
    assert "image-net.org" in " ".join(rest)
