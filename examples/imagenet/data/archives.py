"""Unpacks the three ILSVRC2012 archives into train/CLASS and val/CLASS folders.

The archives are read once, from start to end, and only the images are written to disk.
An image file that already has the right size is kept, so an interrupted run can simply
be repeated. Raises ValueError if an archive is missing or damaged, has an unexpected
number of images, or contains a file without an official ILSVRC2012 name.
"""

import gzip
import io
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

_TRAIN = "ILSVRC2012_img_train.tar"
_VALIDATION = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_SIZES = {_TRAIN: "137.85 GB", _VALIDATION: "6.3 GB", _DEVKIT: "2.6 MB"}
_WNID = r"n[0-9]{8}"  # a WordNet identifier: the name of a class
_MOST_BYTES = 2**26  # of the unpacked development kit, which has 8 MB
# What a damaged archive may raise; the last three if a header holds an absurd number.
_DAMAGE = (
    *(tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error),
    *(MemoryError, OverflowError, ValueError),
)

_LINES = "\n".join(f"  {name} ({size})" for name, size in _SIZES.items())
HOW_TO = f"""To get ImageNet (ILSVRC2012): register at image-net.org, download
{_LINES}
into one folder, and run
  python -m examples.imagenet.prepare DIR --archives THAT_FOLDER
which creates DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG. To use images of your
own, put the training images of each class into a folder DIR/train/CLASS. The folders
DIR/val/CLASS, for validation, and DIR/test/CLASS, for testing, are optional."""


class Counts(NamedTuple):
    """Numbers of classes and images that the ImageNet archives must contain."""

    classes: int
    train: int
    validation: int


ILSVRC2012 = Counts(1_000, 1_281_167, 50_000)


def unpack(archives: Path, folder: Path, counts: Counts) -> Iterator[bool]:
    """Unpacks the ImageNet archives in the folder `archives` into `folder`.

    Yields once for each image: True if the image was written, False if its file already
    existed. Raises ValueError if an archive is missing, damaged or not official.
    """
    for name, size in _SIZES.items():
        if not (archives / name).is_file():
            raise ValueError(
                f"--archives: {str(archives)!r} has no {name} ({size}); download it"
                " from image-net.org into that folder"
            )
    path = archives / _DEVKIT
    try:
        truth = read_truth(path, counts)
        path = archives / _TRAIN
        yield from _unpack_train(path, folder / "train", counts)
        path = archives / _VALIDATION
        yield from _unpack_validation(path, folder / "val", truth)
    except _DAMAGE as error:
        raise ValueError(
            f"--archives: {path} is damaged, incomplete or not the official file"
            f" ({error}); download it again"
        ) from None


def read_truth(path: Path, counts: Counts) -> list[str]:
    """Reads the class of each ImageNet validation image from the development kit."""
    # Decompressed as a whole, which verifies the checksum: SciPy may crash on a damaged
    # meta.mat.
    with gzip.open(path) as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise tarfile.ReadError(f"it unpacks to more than {_MOST_BYTES:,} bytes")
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
        lines = _read(tar, "data/ILSVRC2012_validation_ground_truth.txt").split()
        wnids = _read_wnids(_read(tar, "data/meta.mat"))
    # Numbers above `counts.classes` stand for groups of classes and label no image.
    classes = {i: wnid for i, wnid in wnids.items() if 1 <= i <= counts.classes}
    truth = [classes.get(int(line), "") for line in lines]
    _check_count("labels of validation images", len(truth), counts.validation)
    foreign = {wnid for wnid in truth if not re.fullmatch(_WNID, wnid)}
    if foreign:
        raise tarfile.ReadError(
            f"its labels {sorted(foreign)} are not names of classes"
        )
    return truth


def _read_wnids(meta: bytes) -> dict[int, str]:
    """Returns the WordNet identifier of each number that meta.mat lists."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
    # SciPy's reader raises errors of many kinds.
    except Exception as error:
        raise tarfile.ReadError(f"its meta.mat cannot be read: {error!r}") from None


def _read(tar: tarfile.TarFile, end: str) -> bytes:
    for member in tar:
        if member.name.endswith("/" + end) and (file := tar.extractfile(member)):
            return file.read()
    raise tarfile.ReadError(f"it contains no file whose name ends in {end}")


def _unpack_train(path: Path, folder: Path, counts: Counts) -> Iterator[bool]:
    """Unpacks ImageNet's training archive, which has one tar file for each class."""
    classes = images = 0
    with path.open("rb") as file:
        for name, _, inner in _members(file, rf"{_WNID}\.tar"):
            wnid = name.removesuffix(".tar")
            for image, size, content in _members(inner, rf"{wnid}_[0-9]+\.JPEG"):
                yield _write(folder / wnid / image, size, content)
                images += 1
            classes += 1
    _check_count("classes", classes, counts.classes)
    _check_count("images", images, counts.train)


def _unpack_validation(path: Path, folder: Path, truth: list[str]) -> Iterator[bool]:
    """Unpacks ImageNet's validation archive; `truth[i]` is the class of image i + 1."""
    images = 0
    with path.open("rb") as file:
        for name, size, content in _members(file, r"ILSVRC2012_val_[0-9]{8}\.JPEG"):
            number = int(name[-13:-5])
            if not 1 <= number <= len(truth):
                raise tarfile.ReadError(
                    f"the development kit has no label for {name!r}"
                )
            yield _write(folder / truth[number - 1] / name, size, content)
            images += 1
    _check_count("images", images, len(truth))


def _members(file: IO[bytes], pattern: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yields name, size and content of each file in a tar file, in order.

    Raises tarfile.ReadError at a name that does not match `pattern` or occurs twice,
    and at a sparse or special file.
    """
    seen: set[str] = set()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            plain = member.isreg() and not member.issparse()
            content = tar.extractfile(member) if plain else None
            if content is None or not re.fullmatch(pattern, member.name):
                raise tarfile.ReadError(
                    f"it contains {member.name!r}, but every name must match {pattern},"
                    " and no file may be sparse"
                )
            if member.name in seen:
                raise tarfile.ReadError(f"it contains {member.name!r} twice")
            seen.add(member.name)
            yield member.name, member.size, content


def _write(target: Path, size: int, content: IO[bytes]) -> bool:
    """Writes a file and returns True; returns False if it exists with `size` bytes."""
    if target.is_file() and target.stat().st_size == size:
        return False
    beside = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            shutil.copyfileobj(content, file)
        beside.replace(target)
    except OSError as error:
        raise OSError(
            f"{str(target)!r} cannot be written: {error.strerror}; remove the cause and"
            " start again, which keeps the images that are unpacked already"
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink()
    return True


def _check_count(what: str, found: int, expected: int) -> None:
    # A tar file that was cut between two members reads as if it were complete.
    if found != expected:
        raise tarfile.ReadError(f"it contains {found:,} {what} instead of {expected:,}")
