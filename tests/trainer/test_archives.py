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
from image_trees import write_tree
from scipy.io import savemat

from examples.imagenet import prepare
from examples.imagenet.data import archives
from examples.imagenet.data.archives import Counts, unpack

WNIDS = ("n00000003", "n00000001")  # in the order of their ILSVRC2012_ID
TRUTH = (2, 1, 1, 2, 1)
COUNTS = Counts(classes=2, train=5, validation=5)


def tar_of(files, mode="w"):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def meta_mat():
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    groups = [(1, WNIDS[0], "a"), (2, WNIDS[1], "b"), (3, "n00000009", "group")]
    raw = io.BytesIO()
    savemat(raw, {"synsets": np.array(groups, kinds).reshape(-1, 1)})
    return raw.getvalue()


def devkit(meta, labels=TRUTH):
    lines = "".join(f"{line}\n" for line in labels).encode()
    folder = "ILSVRC2012_devkit_t12/data"
    files = {
        f"{folder}/meta.mat": meta,
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": lines,
    }
    return tar_of(files, "w:gz")


TRAIN = {
    wnid: {f"{wnid}_{i}.JPEG": f"{wnid} {i}".encode() * 300 for i in range(n)}
    for wnid, n in zip(WNIDS, (2, 3), strict=True)
}
VALIDATION = {
    f"ILSVRC2012_val_{i:08}.JPEG": f"val {i}".encode() * 300 for i in range(1, 6)
}
PLACED = {
    f"train/{wnid}/{name}": raw
    for wnid, files in TRAIN.items()
    for name, raw in files.items()
} | {
    f"val/{WNIDS[label - 1]}/{name}": raw
    for label, (name, raw) in zip(TRUTH, VALIDATION.items(), strict=True)
}
FILES = {
    "ILSVRC2012_img_train.tar": tar_of(
        {f"{wnid}.tar": tar_of(files) for wnid, files in TRAIN.items()}
    ),
    "ILSVRC2012_img_val.tar": tar_of(VALIDATION),
    "ILSVRC2012_devkit_t12.tar.gz": devkit(meta_mat()),
}


OFFICIAL = (
    r"train/(n\d{8})/\1_\d+\.JPEG|val/(n\d{8})/ILSVRC2012_val_\d{8}\.JPEG"  # any number
)


@pytest.fixture
def official(tmp_path):
    return write_tree(tmp_path / "archives", FILES)


def placed(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_archives_are_unpacked_with_each_image_under_its_class(official, tmp_path):
    assert list(unpack(official, tmp_path / "out", COUNTS)) == [True] * 10
    assert placed(tmp_path / "out") == PLACED


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_stopped_unpacking_goes_on_where_it_was(official, tmp_path, after):
    out = tmp_path / "out"
    first = unpack(official, out, COUNTS)
    assert all(itertools.islice(first, after))
    first.close()
    part = next(iter(PLACED))
    (out / part).write_bytes(b"cut")  # of another size than in the archive
    again = list(unpack(official, out, COUNTS))
    assert (len(again), sum(again)) == (10, 10 - after + 1)
    assert placed(out) == PLACED


@pytest.mark.parametrize("name", FILES)
def test_a_missing_archive_is_named(official, tmp_path, name):
    (official / name).unlink()
    with pytest.raises(ValueError, match=rf"--archives: .* has no {name} .*image-net"):
        list(unpack(official, tmp_path / "out", COUNTS))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.5, 0.7])
def test_an_archive_cut_anywhere_is_refused_by_name(official, tmp_path, name, share):
    whole = FILES[name]
    # The last images end well before a tar's padding does.
    content = len(whole.rstrip(b"\0"))
    (official / name).write_bytes(whole[: int(content * share)])
    with pytest.raises(ValueError, match=rf"{name} .*download it again"):
        list(unpack(official, tmp_path / "out", COUNTS))
    assert placed(tmp_path / "out").items() <= PLACED.items()


def test_an_archive_that_ends_after_a_whole_image_is_refused(official, tmp_path):
    fewer = dict(list(VALIDATION.items())[:-1])
    (official / "ILSVRC2012_img_val.tar").write_bytes(tar_of(fewer))
    with pytest.raises(ValueError, match=r"img_val\.tar is .* holds 4 images, not 5"):
        list(unpack(official, tmp_path / "out", COUNTS))


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.9])
def test_a_wrong_bit_in_the_development_kit_is_refused(official, tmp_path, share):
    path = official / "ILSVRC2012_devkit_t12.tar.gz"
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * share)] ^= 16
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"devkit_t12\.tar\.gz is damaged"):
        list(unpack(official, tmp_path / "out", COUNTS))


def mat(**values):
    raw = io.BytesIO()
    savemat(raw, values)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(devkit(b""), "meta.mat cannot be read", id="empty_meta"),
        pytest.param(devkit(mat()), "'synsets'", id="meta_without_synsets"),
        pytest.param(devkit(mat(synsets=5)), "meta.mat cannot", id="meta_of_numbers"),
        pytest.param(
            devkit(b"MATLAB" + bytes(118) + b"\0\2IM"),
            "HDF",
            id="meta_of_matlab_7_3",
        ),
        pytest.param(
            devkit(meta_mat()[:200] + b"\xff" * 40 + meta_mat()[240:]),
            "meta.mat cannot be read",
            id="meta_with_wrong_bytes",
        ),
        pytest.param(devkit(meta_mat(), ["two"] * 5), "invalid literal", id="words"),
        pytest.param(
            gzip.compress(bytes(2**26 + 1)), "more than 67,108,864 bytes", id="bomb"
        ),
    ],
)
def test_an_odd_development_kit_is_refused(official, tmp_path, raw, reason):
    (official / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"devkit_t12\.tar\.gz is damaged.*{reason}"):
        list(unpack(official, tmp_path / "out", COUNTS))


def sparse(name):
    """A member of a kilobyte that claims a terabyte, almost all of it a hole."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + (2**40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def test_a_sparse_member_is_refused(official, tmp_path):
    raw = sparse("ILSVRC2012_val_00000001.JPEG")
    (official / "ILSVRC2012_img_val.tar").write_bytes(raw)
    with pytest.raises(ValueError, match=r"img_val\.tar is .* none of them sparse"):
        list(unpack(official, tmp_path / "out", COUNTS))


def test_digits_of_other_alphabets_are_refused(official, tmp_path):
    raw = tar_of({"ILSVRC2012_val_0000000١.JPEG": b"x"})
    (official / "ILSVRC2012_img_val.tar").write_bytes(raw)
    with pytest.raises(ValueError, match="not only files named"):
        list(unpack(official, tmp_path / "out", COUNTS))


def test_a_full_disk_is_told_with_the_path(official, tmp_path, monkeypatch):
    def full(*files):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    out = tmp_path / "out"
    with pytest.raises(OSError, match=r"_0\.JPEG' cannot be written: No space"):
        list(unpack(official, out, COUNTS))
    assert not placed(out)


@pytest.mark.parametrize("field", Counts._fields)
def test_a_wrong_number_is_refused(official, tmp_path, field):
    counts = COUNTS._replace(**{field: 4})
    with pytest.raises(ValueError, match=r"holds [25] .*, not 4\); download it again"):
        list(unpack(official, tmp_path / "out", counts))


@pytest.mark.parametrize(
    "name",
    ["../{}", "/tmp/{}", "inner/{}", "{}.exe"],
    ids=["up", "root", "down", "else"],
)
@pytest.mark.parametrize(
    "archive", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]
)
def test_members_of_other_names_are_refused(official, tmp_path, archive, name):
    if "val" in archive:
        foreign = tar_of({name.format("ILSVRC2012_val_00000001.JPEG"): b"x"})
    else:
        inner = tar_of({name.format("n00000003_0.JPEG"): b"x"})
        foreign = tar_of({"n00000003.tar": inner})
    (official / archive).write_bytes(foreign)
    with pytest.raises(ValueError, match="not only files named"):
        list(unpack(official, tmp_path / "out", COUNTS))
    assert placed(tmp_path / "out").items() <= PLACED.items()


@pytest.mark.parametrize("name", FILES)
def test_damaged_copies_of_archives_write_files_of_official_names_alone(
    official, tmp_path, name, damaged_copies
):
    reasons, number = [], 0
    for number, raw in enumerate(damaged_copies([FILES[name]]), 1):
        (official / name).write_bytes(raw)
        out = tmp_path / "out" / str(number)
        try:
            list(unpack(official, out, COUNTS))
        except ValueError as error:
            reasons.append(str(error))
        found = placed(out).keys() - PLACED.keys()
        # An image's name may be damaged, and still be an official one.
        assert all(re.fullmatch(OFFICIAL, path) for path in found)
        shutil.rmtree(out, ignore_errors=True)
    print(f"{name}: {len(reasons)} refused, {number - len(reasons)} unpacked")
    assert reasons
    assert all(name in reason for reason in reasons)
    assert {path.name for path in tmp_path.iterdir()} <= {"archives", "out"}


def test_prepare_unpacks_and_then_checks(official, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(prepare, "ILSVRC2012", COUNTS)
    arguments = [str(tmp_path / "out"), "--archives", str(official)]
    assert prepare.main(arguments) == 1  # the images are mere words
    out = capsys.readouterr().out
    assert "unpacked 10 images; 0 were there already" in out
    assert "10 broken images" in out
    assert prepare.main(arguments) == 1
    assert "unpacked 0 images; 10 were there already" in capsys.readouterr().out


def test_prepare_ends_with_the_archives_fault(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: --archives: .* has no ILSVRC2012"):
        prepare.main([str(tmp_path), "--archives", str(tmp_path)])
