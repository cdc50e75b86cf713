"""The check of a data directory: what is counted, what is named, the exit status."""

import os
import re
import signal
import struct

import pytest
from image_trees import (
    encoded,
    picture,
    png,
    write_classes,
    write_flawed_tree,
    write_tree,
)

from examples.imagenet import prepare
from examples.imagenet.data.archives import Counts

pytestmark = pytest.mark.usefixtures("cache")


def test_a_sound_tree_is_counted_and_ends_with_status_0(tmp_path, capsys):
    root = write_classes(tmp_path / "tree", {"cat": 3, "dog": 6, "eel": 4})
    write_classes(root, {"cat": 1, "dog": 1, "eel": 2}, "val")
    wide, small = encoded(picture(0, 20, 90)), encoded(picture(0, 3, 2), "BMP")
    write_tree(root, {"val/cat/wide.PNG": wide, "val/dog/small.bmp": small})
    assert prepare.main([str(root), "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"train\W+13\W+3\W+3\W+4\W+6\W", out)
    assert re.search(r"validation\W+6\W+3\W+2\W+2\W+2\W", out)
    assert re.search(r"smallest: 2×3 pixels, '.*small.bmp'", out)
    assert re.search(r"largest: 90×20 pixels, '.*wide.PNG'", out)
    assert "decoded 19 images" in out
    assert "0 broken images" in out
    assert "unusual" not in out


def test_each_flaw_is_counted_and_named_and_ends_with_status_1(tmp_path, capsys):
    root, report = write_flawed_tree(tmp_path / "tree"), tmp_path / "broken.tsv"
    assert prepare.main([str(root), "--report", str(report)]) == 1
    out = capsys.readouterr().out
    for line in (
        r"train: classes without an image: 1 \('eel'\)",
        r"test: classes without an image: 2 \('dog', 'eel'\)",
        r"unusual but readable: 1 × CMYK JPEG named \.jpeg, .* '.*cmyk\.JPEG'",
        r"unusual but readable: 1 × PNG named \.jpg, .* '.*really_png\.jpg'",
        r"unusual but readable: 1 × grey JPEG named \.jpg, .* '.*grey\.jpg'",
        r"broken: '.*cut\.jpg': Premature end of JPEG file",
        r"broken: '.*corrupt\.jpg': .+",
        r"broken: '.*empty\.jpg': an empty file",
        r"broken: '.*words\.jpg': no image.*",
        r"broken: '.*dangling\.png': No such file or directory",
        "5 broken images",
        "missing: 1 of 3 classes have no image in train",
        "missing: 2 of 3 classes have no image in test",
    ):
        assert len(re.findall(f"^{line}$", out, re.MULTILINE)) == 1, line
    rows = [line.split("\t") for line in report.read_text().splitlines()]
    found = sorted(os.path.basename(path) for path, _ in rows)
    listed = ["corrupt.jpg", "cut.jpg", "dangling.png", "empty.jpg", "words.jpg"]
    assert found == listed


@pytest.mark.parametrize(
    "flag", [("--workers", "0"), ("--report", "absent/broken.tsv")], ids=["no", "where"]
)
def test_values_that_no_check_can_use_are_refused_at_once(tmp_path, capsys, flag):
    with pytest.raises(SystemExit) as stopped:
        prepare.main([str(tmp_path), *flag])
    assert stopped.value.code == 2
    assert f"{flag[0]}: got " in capsys.readouterr().err


def test_a_single_broken_image_ends_with_status_1(tmp_path):
    root = write_classes(tmp_path / "tree", {"cat": 1})
    assert prepare.main([str(root)]) == 0
    write_tree(root, {"train/cat/broken.png": png(0)[:-9]})
    assert prepare.main([str(root)]) == 1


def test_no_more_than_20_broken_images_are_printed_and_all_reported(tmp_path, capsys):
    files = {f"train/cat/{i}.png": b"" for i in range(25)}
    root, report = write_tree(tmp_path / "tree", files), tmp_path / "broken.tsv"
    assert prepare.main([str(root), "--report", str(report)]) == 1
    out = capsys.readouterr().out
    assert out.count("broken: ") == 20
    assert "25 broken images" in out
    assert len(report.read_text().splitlines()) == 25


@pytest.mark.parametrize("train", [3, 4])
def test_imagenets_images_are_counted_where_its_classes_are(
    tmp_path, monkeypatch, capsys, train
):
    monkeypatch.setattr(prepare, "ILSVRC2012", Counts(2, 4, 5))
    root = write_classes(tmp_path, {"n00000001": 1, "n00000002": train - 1})
    write_classes(root, {"n00000001": 2, "n00000002": 3}, "val")
    short = "missing: ImageNet has 4 images in train, not 3\n"
    assert prepare.main([str(root)]) == (train < 4)
    assert (short in capsys.readouterr().out) == (train < 4)


def test_without_a_report_the_working_directory_need_not_be_writable(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(prepare.os, "access", lambda path, mode: False)
    assert prepare.main([str(write_classes(tmp_path, {"cat": 2}))]) == 0
    with pytest.raises(SystemExit):
        prepare.main([str(tmp_path), "--report", "a.tsv"])
    assert "--report: got 'a.tsv'" in capsys.readouterr().err


def test_a_missing_directory_is_answered_with_how_to_get_imagenet(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: --data: ") as stopped:
        prepare.main([str(tmp_path / "absent")])
    for name in ("img_train.tar (137.85 GB)", "img_val.tar", "devkit_t12.tar.gz"):
        assert f"ILSVRC2012_{name}" in str(stopped.value)
    assert "--archives" in str(stopped.value)


def test_idx_files_are_said_to_be_such(tmp_path, capsys):
    for stem, n in (("train", 6), ("t10k", 2)):
        header, labels = (
            struct.pack(">4I", 0x803, n, 5, 4),
            struct.pack(">2I", 0x801, n),
        )
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(header + bytes(20 * n))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(labels + bytes(range(n)))
    assert prepare.main([str(tmp_path)]) == 0
    expected = "IDX files, 6 images to train, 2 to test, 6 classes"
    assert expected in capsys.readouterr().out


def test_an_interrupt_ends_it_with_the_shells_status(tmp_path, monkeypatch, capsys):
    def interrupted(raw):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "decode", interrupted)
    root = write_classes(tmp_path / "tree", {"cat": 200})
    with pytest.raises(SystemExit) as stopped:
        prepare.main([str(root)])
    assert stopped.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().out.endswith("starts the check again\n")
