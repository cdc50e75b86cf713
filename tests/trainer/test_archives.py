"""ImageNet's three archives, unpacked; small ones of the same structure stand in."""

import errno
import gzip
import io
import itertools
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
from cases import assert_line, cases
from image_trees import read_tree, write_tree
from scipy.io import savemat

from examples.imagenet import prepare
from examples.imagenet.data import archives
from examples.imagenet.data.archives import Counts, unpack

WNIDS = ("n00000003", "n00000001")  # in the order of their ILSVRC2012_ID
TRUTH = (2, 1, 1, 2, 1)
COUNTS = Counts(classes=2, train=5, validation=5)
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def tar_of(files, mode="w"):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def mat(**values):
    raw = io.BytesIO()
    savemat(raw, values)
    return raw.getvalue()


KINDS = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
GROUPS = [(1, WNIDS[0], "a"), (2, WNIDS[1], "b"), (3, "n00000009", "group")]
META = mat(synsets=np.array(GROUPS, KINDS).reshape(-1, 1))


def devkit(meta=META, labels=TRUTH):
    lines = "".join(f"{line}\n" for line in labels).encode()
    folder = "ILSVRC2012_devkit_t12/data"
    truth = f"{folder}/ILSVRC2012_validation_ground_truth.txt"
    return tar_of({f"{folder}/meta.mat": meta, truth: lines}, "w:gz")


def images(name, numbers):
    return {f"{name.format(i)}.JPEG": name.format(i).encode() * 300 for i in numbers}


TRAIN = {wnid: images(f"{wnid}_{{}}", range(2 + i)) for i, wnid in enumerate(WNIDS)}
VALIDATION = images("ILSVRC2012_val_{:08}", range(1, 6))
PLACED = {f"train/{k}/{name}": raw for k in WNIDS for name, raw in TRAIN[k].items()}
for label, (name, raw) in zip(TRUTH, VALIDATION.items(), strict=True):
    PLACED[f"val/{WNIDS[label - 1]}/{name}"] = raw
FILES = {
    TRAIN_TAR: tar_of({f"{wnid}.tar": tar_of(TRAIN[wnid]) for wnid in WNIDS}),
    VAL_TAR: tar_of(VALIDATION),
    DEVKIT: devkit(),
}
# The path of an unpacked image, whatever its number.
OFFICIAL = r"train/(n\d{8})/\1_\d+\.JPEG|val/n\d{8}/ILSVRC2012_val_\d{8}\.JPEG"


@pytest.fixture
def official(tmp_path):
    return write_tree(tmp_path / "archives", FILES)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def assert_refused(message, official, out, counts=COUNTS):
    """What is unpacked before the fault is found is whole and in its place."""
    with pytest.raises(ValueError, match=message):
        list(unpack(official, out, counts))
    assert read_tree(out).items() <= PLACED.items()


def test_archives_are_unpacked_with_each_image_under_its_class(official, out):
    assert list(unpack(official, out, COUNTS)) == [True] * 10
    assert read_tree(out) == PLACED


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_stopped_unpacking_goes_on_where_it_was(official, out, after):
    first = unpack(official, out, COUNTS)
    assert all(itertools.islice(first, after))
    first.close()
    part = next(iter(PLACED))
    (out / part).write_bytes(b"cut")  # of another size than in the archive
    again = list(unpack(official, out, COUNTS))
    assert (len(again), sum(again)) == (10, 10 - after + 1)
    assert read_tree(out) == PLACED


@pytest.mark.parametrize("name", FILES)
def test_a_missing_archive_is_named(official, out, name):
    (official / name).unlink()
    assert_refused(rf"--archives: .* has no {name} .*image-net", official, out)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.5, 0.7])
def test_an_archive_cut_anywhere_is_refused_by_name(official, out, name, share):
    # The last images end well before a tar's padding does.
    content = len(FILES[name].rstrip(b"\0"))
    (official / name).write_bytes(FILES[name][: int(content * share)])
    assert_refused(rf"{name} .*download it again", official, out)


def test_an_archive_that_ends_after_a_whole_image_is_refused(official, out):
    (official / VAL_TAR).write_bytes(tar_of(dict(list(VALIDATION.items())[:-1])))
    assert_refused(r"img_val\.tar is .* contains 4 images instead of 5", official, out)


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.9])
def test_a_wrong_bit_in_the_development_kit_is_refused(official, out, share):
    raw = bytearray(FILES[DEVKIT])
    raw[int(len(raw) * share)] ^= 16
    (official / DEVKIT).write_bytes(raw)
    assert_refused(r"devkit_t12\.tar\.gz is damaged", official, out)


@cases(
    "raw, reason",
    empty_meta=(devkit(b""), "meta.mat cannot be read"),
    meta_without_synsets=(devkit(mat()), "'synsets'"),
    meta_of_numbers=(devkit(mat(synsets=5)), "meta.mat cannot"),
    meta_of_matlab_7_3=(devkit(b"MATLAB" + bytes(118) + b"\0\2IM"), "HDF"),
    meta_with_wrong_bytes=(
        devkit(META[:200] + b"\xff" * 40 + META[240:]),
        "meta.mat cannot be read",
    ),
    words=(devkit(labels=["two"] * 5), "invalid literal"),
    bomb=(gzip.compress(bytes(2**26 + 1)), "more than 67,108,864 bytes"),
)
def test_an_odd_development_kit_is_refused(official, out, raw, reason):
    (official / DEVKIT).write_bytes(raw)
    assert_refused(rf"devkit_t12\.tar\.gz is damaged.*{reason}", official, out)


def sparse(name):
    """A member of a kilobyte that claims a terabyte, almost all of it a hole."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + (2**40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


@cases(
    "raw, reason",
    sparse=(sparse("ILSVRC2012_val_00000001.JPEG"), "no file may be sparse"),
    digits_of_another_alphabet=(
        tar_of({"ILSVRC2012_val_0000000١.JPEG": b"x"}),
        "every name must match",
    ),
    twice=(
        2 * FILES[VAL_TAR][: 15 * 512] + bytes(1024),  # the first image, twice
        "contains 'ILSVRC2012_val_00000001.JPEG' twice",
    ),
)
def test_odd_members_are_refused(official, out, raw, reason):
    (official / VAL_TAR).write_bytes(raw)
    assert_refused(rf"img_val\.tar is .* {reason}", official, out)


def test_a_full_disk_is_told_with_the_path(official, out, monkeypatch):
    def full(*files):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=r"_0\.JPEG' cannot be written: No space"):
        list(unpack(official, out, COUNTS))
    assert not read_tree(out)


@pytest.mark.parametrize("field", Counts._fields)
def test_a_wrong_number_is_refused(official, out, field):
    counts = COUNTS._replace(**{field: 4})
    message = r"contains [25] .* instead of 4\); download it again"
    assert_refused(message, official, out, counts)


@cases("name", up="../{}", root="/tmp/{}", down="inner/{}", other_suffix="{}.exe")
@pytest.mark.parametrize("archive", [TRAIN_TAR, VAL_TAR])
def test_members_of_other_names_are_refused(official, out, archive, name):
    if archive == VAL_TAR:
        files = {name.format("ILSVRC2012_val_00000001.JPEG"): b"x"}
    else:
        files = {"n00000003.tar": tar_of({name.format("n00000003_0.JPEG"): b"x"})}
    (official / archive).write_bytes(tar_of(files))
    assert_refused("every name must match", official, out)


@pytest.mark.parametrize("name", FILES)
def test_damaged_copies_of_archives_write_files_of_official_names_alone(
    official, out, name, damaged_copies
):
    reasons, unpacked = [], 0
    for raw in damaged_copies([FILES[name]]):
        (official / name).write_bytes(raw)
        try:
            list(unpack(official, out, COUNTS))
            unpacked += 1
        except ValueError as error:
            reasons.append(str(error))
        # An image's name may be damaged, and still be an official one.
        found = read_tree(out).keys() - PLACED.keys()
        assert all(re.fullmatch(OFFICIAL, path) for path in found)
        shutil.rmtree(out, ignore_errors=True)
    print(f"{name}: {len(reasons)} refused, {unpacked} unpacked")
    assert reasons
    assert all(name in reason for reason in reasons)
    assert [path.name for path in out.parent.iterdir()] == ["archives"]


@pytest.mark.usefixtures("cache")
def test_prepare_unpacks_and_then_checks(official, out, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "ILSVRC2012", COUNTS)
    for unpacked, there in ((10, 0), (0, 10)):
        # The images are mere words.
        assert prepare.main([str(out), "--archives", str(official)]) == 1
        said = capsys.readouterr().out
        assert f"unpacked {unpacked} images; {there} were there already" in said
        assert "10 broken images" in said


def test_prepare_ends_with_the_archives_fault(tmp_path):
    arguments = [str(tmp_path), "--archives", str(tmp_path)]
    assert_line("--archives: .* has no ILSVRC2012", arguments, prepare.main)
