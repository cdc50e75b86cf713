"""ILSVRC2012's three archives, unpacked into train/CLASS and val/CLASS.

Streams: nothing is stored twice. Files that are there with the right size are passed
over, so that a stopped run goes on. Refuses archives that are absent, cut short or of
another number of images, and members with any but the official names.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

_TRAIN = "ILSVRC2012_img_train.tar"
_VALIDATION = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_SIZES = {_TRAIN: "137.85 GB", _VALIDATION: "6.3 GB", _DEVKIT: "2.6 MB"}
_WNID = r"n\d{8}"
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)

_LINES = "\n".join(f"  {name} ({size})" for name, size in _SIZES.items())
HOW_TO = f"""To get ImageNet (ILSVRC2012): register at image-net.org, download
{_LINES}
into one folder, and run
  python -m examples.imagenet.prepare DIR --archives THAT_FOLDER
which makes DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG. Any other images in
DIR/train/CLASS, and in DIR/val and DIR/test if you like, serve as well."""


class Counts(NamedTuple):
    """How much the archives must hold."""

    classes: int
    train: int
    validation: int


ILSVRC2012 = Counts(1_000, 1_281_167, 50_000)


def unpack(archives: Path, folder: Path, counts: Counts) -> Iterator[bool]:
    """Puts each image in its place in turn; yields False for those already there."""
    for name, size in _SIZES.items():
        if not (archives / name).is_file():
            raise ValueError(
                f"--archives: {str(archives)!r} has no {name} ({size}); download it"
                " from image-net.org"
            )
    name = _DEVKIT
    try:
        truth = read_truth(archives / _DEVKIT, counts)
        name = _TRAIN
        yield from _unpack_train(archives / name, folder / "train", counts)
        name = _VALIDATION
        yield from _unpack_validation(archives / name, folder / "val", truth)
    except _DAMAGE as error:
        raise ValueError(
            f"--archives: {name} is damaged or cut short ({error}); download it again"
        ) from None


def read_truth(path: Path, counts: Counts) -> list[str]:
    """The class of each validation image, from the development kit."""
    from scipy.io import loadmat

    # Whole, for its checksum: SciPy may crash on a damaged meta.mat.
    raw = io.BytesIO(gzip.decompress(path.read_bytes()))
    with tarfile.open(fileobj=raw, mode="r:") as tar:
        lines = _read(tar, "data/ILSVRC2012_validation_ground_truth.txt").split()
        meta = loadmat(io.BytesIO(_read(tar, "data/meta.mat")), squeeze_me=True)
    synsets = np.atleast_1d(meta["synsets"])
    wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
    # Higher numbers are groups of classes.
    leaves = {i: wnid for i, wnid in wnids.items() if 1 <= i <= counts.classes}
    truth = [leaves.get(int(line), "") for line in lines]
    _check_count(path, "labels of validation images", len(truth), counts.validation)
    foreign = {wnid for wnid in truth if not re.fullmatch(_WNID, wnid)}
    if foreign:
        raise tarfile.ReadError(f"labels without a class: {sorted(foreign)}")
    return truth


def _read(tar: tarfile.TarFile, end: str) -> bytes:
    for member in tar:
        if member.name.endswith("/" + end) and (file := tar.extractfile(member)):
            return file.read()
    raise tarfile.ReadError(f"no {end} in it")


def _unpack_train(path: Path, folder: Path, counts: Counts) -> Iterator[bool]:
    """A tar of one tar for each class."""
    classes = images = 0
    with path.open("rb") as file:
        for name, _, inner in _members(path, file, rf"{_WNID}\.tar"):
            wnid = name.removesuffix(".tar")
            for image, size, content in _members(path, inner, rf"{wnid}_\d+\.JPEG"):
                yield _place(folder / wnid / image, size, content)
                images += 1
            classes += 1
    _check_count(path, "classes", classes, counts.classes)
    _check_count(path, "images", images, counts.train)


def _unpack_validation(path: Path, folder: Path, truth: list[str]) -> Iterator[bool]:
    """A tar of images, whose numbers are the places of their labels."""
    images = 0
    with path.open("rb") as file:
        for name, size, content in _members(path, file, r"ILSVRC2012_val_\d{8}\.JPEG"):
            number = int(name[-13:-5])
            if not 1 <= number <= len(truth):
                raise ValueError(f"--archives: {path} holds {name!r}, without a label")
            yield _place(folder / truth[number - 1] / name, size, content)
            images += 1
    _check_count(path, "images", images, len(truth))


def _members(
    path: Path, file: IO[bytes], pattern: str
) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of each, in order; any other name is refused."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is None or not re.fullmatch(pattern, member.name):
                raise ValueError(
                    f"--archives: {path} holds {member.name!r}, not only files named"
                    f" {pattern}; give the official archive"
                )
            yield member.name, member.size, content


def _place(target: Path, size: int, content: IO[bytes]) -> bool:
    """Writes a file, whole or not at all, unless it is there; says whether it did."""
    if target.is_file() and target.stat().st_size == size:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + ".part")
    beside.write_bytes(content.read())
    beside.replace(target)
    return True


def _check_count(path: Path, what: str, found: int, expected: int) -> None:
    # A tar that ends after a whole member reads as if it were complete.
    if found != expected:
        raise ValueError(
            f"--archives: {path} holds {found:,} {what}, not {expected:,}; it may be"
            " cut short: download it again"
        )
