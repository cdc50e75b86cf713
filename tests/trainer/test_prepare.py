"""The check of a data directory: what is counted, what is named, the exit status."""

import re
import signal
from pathlib import Path

import image_trees as images
import numpy as np
import pytest
from cases import assert_usage, cases

from examples.imagenet import prepare
from examples.imagenet.data import folders
from examples.imagenet.data.archives import Counts
from examples.imagenet.data.arrays import Split

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def check(capsys):
    """Checks a directory; returns the exit status and what is printed."""

    def run(root, *flags):
        status = prepare.main([str(root), *map(str, flags)])
        return status, capsys.readouterr().out

    return run


def test_a_sound_tree_is_counted_and_ends_with_status_0(tmp_path, check):
    root = images.write_classes(tmp_path / "tree", {"cat": 3, "dog": 6, "eel": 4})
    images.write_classes(root, {"cat": 1, "dog": 1, "eel": 2}, "val")
    wide = images.encoded(images.picture(0, 20, 90))
    small = images.encoded(images.picture(0, 3, 2), "BMP")
    images.write_tree(root, {"val/cat/wide.PNG": wide, "val/dog/small.bmp": small})
    status, out = check(root, "--workers", 2)
    assert status == 0
    assert re.search(r"train\W+13\W+3\W+3\W+4\W+6\W", out)
    assert re.search(r"validation\W+6\W+3\W+2\W+2\W+2\W", out)
    assert re.search(r"smallest: 2×3 pixels, '.*small.bmp'", out)
    assert re.search(r"largest: 90×20 pixels, '.*wide.PNG'", out)
    assert "decoded 19 images" in out
    assert "0 broken images" in out
    assert "unusual" not in out


def test_each_flaw_is_counted_and_named_and_ends_with_status_1(tmp_path, check):
    root, report = images.write_flawed_tree(tmp_path / "tree"), tmp_path / "broken.tsv"
    status, out = check(root, "--report", report)
    assert status == 1
    for line in (
        r"train: classes without an image: 1 \('eel'\)",
        r"test: classes without an image: 2 \('dog', 'eel'\)",
        r"unusual but readable: 1 × CMYK JPEG named \.jpeg, .* '.*cmyk\.JPEG'",
        r"unusual but readable: 1 × PNG named \.jpg, .* '.*really_png\.jpg'",
        r"unusual but readable: 1 × grey JPEG named \.jpg, .* '.*grey\.jpg'",
        r"broken: '.*cut\.jpg': not a whole image \(Premature end of JPEG file\)",
        r"broken: '.*corrupt\.jpg': .+",
        r"broken: '.*empty\.jpg': the file is empty",
        r"broken: '.*words\.jpg': not a JPEG, PNG, BMP or WebP image.*",
        r"broken: '.*dangling\.png': No such file or directory",
        "5 broken images",
        "missing: 1 of 3 classes have no image in train",
        "missing: 2 of 3 classes have no image in test",
    ):
        assert len(re.findall(f"^{line}$", out, re.MULTILINE)) == 1, line
    rows = [line.split("\t") for line in report.read_text().splitlines()]
    assert sorted(Path(path).name for path, _ in rows) == images.BROKEN


ODD_NAMES = ["a\tb.png", "a\nb.png", "a\r\nb.png", "a\\tb.png", "a\\\\.png"]
ESCAPED = {r"\\": "\\", r"\t": "\t", r"\n": "\n", r"\r": "\r"}


def test_the_list_has_one_line_for_each_image_whatever_its_name(tmp_path, check):
    files = {f"train/cat/{name}": b"" for name in ODD_NAMES}
    root, report = images.write_tree(tmp_path / "tree", files), tmp_path / "broken.tsv"
    check(root, "--report", report)
    lines = report.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    rows = [line.split("\t") for line in lines]
    assert {reason for _, reason in rows} == {"the file is empty"}
    read = [re.sub(r"\\.", lambda match: ESCAPED[match[0]], path) for path, _ in rows]
    assert sorted(read) == sorted(str(root / "train" / "cat" / x) for x in ODD_NAMES)


def test_help_says_how_the_list_is_escaped(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    shown = " ".join(re.sub("[│╮╯]", " ", capsys.readouterr().out).split())
    assert r"\\, \t, \n and \r stand for a backslash, a tab, a newline and" in shown


@cases(
    "flags",
    workers="--workers 0",
    many_workers="--workers 1000000000000",
    report="--report absent/broken.tsv",
)
def test_values_that_no_check_can_use_are_refused_at_once(tmp_path, capsys, flags):
    flag, value = flags.split()
    arguments = [str(tmp_path), flag, value]
    assert_usage(f"{flag}: got ", arguments, capsys, prepare.main)


def test_a_single_broken_image_ends_with_status_1(tmp_path, check):
    root = images.write_classes(tmp_path / "tree", {"cat": 1})
    assert check(root)[0] == 0
    images.write_tree(root, {"train/cat/broken.png": images.png(0)[:-9]})
    assert check(root)[0] == 1


def test_no_more_than_20_broken_images_are_printed_and_all_reported(tmp_path, check):
    files = {f"train/cat/{i}.png": b"" for i in range(25)}
    root, report = images.write_tree(tmp_path / "tree", files), tmp_path / "broken.tsv"
    status, out = check(root, "--report", report)
    assert status == 1
    assert out.count("broken: ") == 20
    assert "25 broken images" in out
    assert len(report.read_text().splitlines()) == 25


@pytest.mark.parametrize("train", [3, 4])
def test_images_of_imagenets_classes_are_counted(tmp_path, monkeypatch, check, train):
    monkeypatch.setattr(prepare, "ILSVRC2012", Counts(2, 4, 5))
    root = images.write_classes(tmp_path, {"n00000001": 1, "n00000002": train - 1})
    images.write_classes(root, {"n00000001": 2, "n00000002": 3}, "val")
    status, out = check(root)
    assert status == (train < 4)
    short = "missing: ImageNet has 4 images in train, not 3\n"
    assert (short in out) == (train < 4)


def test_only_a_report_needs_a_folder_to_write_in(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare.os, "access", lambda path, mode: False)
    root = str(images.write_classes(tmp_path, {"cat": 2}))
    assert prepare.main([root]) == 0
    refused = "--report: got 'a.tsv'"
    assert_usage(refused, [root, "--report", "a.tsv"], capsys, prepare.main)


def test_a_missing_directory_is_answered_with_how_to_get_imagenet(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: DIR: .*not a folder") as stopped:
        prepare.main([str(tmp_path / "absent")])
    for name in ("img_train.tar (137.85 GB)", "img_val.tar", "devkit_t12.tar.gz"):
        assert f"ILSVRC2012_{name}" in str(stopped.value)
    assert "--archives" in str(stopped.value)
    with pytest.raises(SystemExit, match=r"^error: DIR: .* has no images"):
        prepare.main([str(tmp_path)])


def test_idx_files_are_said_to_be_such(tmp_path, check):
    train, test = (Split(np.zeros((n, 5, 4)), np.arange(n)) for n in (6, 2))
    folder = images.write_idx_folder(tmp_path, train=train, t10k=test)
    report = str(tmp_path / "broken.tsv")
    with pytest.raises(SystemExit, match=r"error: --report: got .*; leave it out"):
        prepare.main([str(folder), "--report", report])
    status, out = check(folder)
    assert status == 0
    assert "IDX files, 6 images to train, 2 to test, 6 classes" in out


def test_an_interrupt_ends_it_with_the_shells_status(tmp_path, monkeypatch, capsys):
    def interrupted(raw):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "decode", interrupted)
    root = images.write_classes(tmp_path / "tree", {"cat": 200})
    with pytest.raises(SystemExit) as stopped:
        prepare.main([str(root)])
    assert stopped.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().out.endswith("starts the check again\n")
