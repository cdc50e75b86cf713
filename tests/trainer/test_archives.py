"""ImageNet's three archives, unpacked; small ones of the same structure stand in."""

import io
import itertools
import tarfile

import numpy as np
import pytest
from image_trees import write_tree
from scipy.io import savemat

from examples.imagenet import prepare
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


def devkit():
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    groups = [(1, WNIDS[0], "a"), (2, WNIDS[1], "b"), (3, "n00000009", "group")]
    raw = io.BytesIO()
    savemat(raw, {"synsets": np.array(groups, kinds).reshape(-1, 1)})
    lines = "".join(f"{line}\n" for line in TRUTH).encode()
    folder = "ILSVRC2012_devkit_t12/data"
    files = {
        f"{folder}/meta.mat": raw.getvalue(),
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
    "ILSVRC2012_devkit_t12.tar.gz": devkit(),
}


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
    with pytest.raises(ValueError, match="may hold only files named"):
        list(unpack(official, tmp_path / "out", COUNTS))
    assert placed(tmp_path / "out").items() <= PLACED.items()


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
