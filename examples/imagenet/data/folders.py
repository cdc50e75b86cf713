"""Images read from class folders during training, as sources of batches.

How training crops and mirrors image i depends on the seed, the epoch and i alone. An
image file that cannot be read is reported, and an image of one colour stands in for it.
Raises OSError if the whole folder has disappeared.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Augment
from .arrays import hold_out
from .batches import Indexed, Loaded, cores
from .dataset import Broken, Dataset
from .index import Tree, cache_folder, read_index, recall, remember
from .pixels import DECODERS, BrokenImage, Decoded, decode, for_evaluation, for_training

_MOST_BYTES = 2**27  # of one file
# Of each split, what tells two data sets apart besides the names of all images.
_SIZES, _CONTENTS = 20_000, 200  # files whose size and whose content is compared
_READERS = 32  # threads for that, which mostly wait for the disk
_SAMPLE = 2_000  # training images whose pixels give the mean and standard deviation

Colour = tuple[float, ...]  # red, green and blue, from 0 to 255


@dataclass(frozen=True, eq=False)  # == of arrays gives an array, not True or False
class ImageFolder(Indexed):
    """The images of one split, each read from its file whenever it is needed."""

    tree: Tree
    pixels: int  # side of the images as the network gets them
    augment: Augment
    blank: tuple[int, ...]  # colour that stands in for an image that cannot be read
    workers: int | None = None  # number of threads that read; None: one for each core

    @property
    def size(self) -> int:
        return self.tree.size

    @property
    def threads(self) -> int:
        return self.workers or cores()

    def content(self) -> Iterable[bytes]:
        yield self.tree.names.tobytes()
        yield self.tree.labels.tobytes()
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(_size, _spread(self.tree, _SIZES))
            yield from pool.map(_digest, _spread(self.tree, _CONTENTS))

    def take_augmented(
        self, index: np.ndarray, seed: int, epochs: np.ndarray
    ) -> Loaded:
        if self.augment == "center":
            return self.take(index)
        seeds = np.column_stack([np.full(len(index), seed), epochs, index])
        return self.take(index, seeds)

    def take(self, index: np.ndarray, seeds: np.ndarray | None = None) -> Loaded:
        """Returns the images of these indices, read from their files and cropped.

        They are cropped as in evaluation if `seeds` is None. Otherwise image `index[i]`
        is augmented as in training, with `seeds[i]` for the random numbers.
        """
        images = np.empty((len(index), self.pixels, self.pixels, 3), np.uint8)
        mirror = np.zeros(len(index), np.bool_)
        random = np.random.RandomState()  # seeded anew for each image, which is cheaper
        broken = []
        for place, i in enumerate(index):
            try:
                image = read_image(self.tree, i).pixels
                if seeds is None:
                    images[place] = for_evaluation(image, self.pixels, self.augment)
                else:
                    random.seed(seeds[place])
                    drawn = for_training(image, self.pixels, self.augment, random)
                    images[place], mirror[place] = drawn
            except (OSError, BrokenImage) as error:
                broken.append(Broken(self.tree.path(i), explain(self.tree, error)))
                images[place] = self.blank
        labels = self.tree.labels[index]
        return Loaded(images, labels, None if seeds is None else mirror, tuple(broken))


def read_image(tree: Tree, i: int) -> Decoded:
    """Returns image i of a split as it is stored.

    Raises OSError if its file cannot be read, BrokenImage if it is not a whole image.
    """
    return decode(read_file(tree.path(i)))


def read_file(path: str) -> bytes:
    """Returns the bytes of an image file.

    Raises OSError if it cannot be read, and BrokenImage if it is not a regular file or
    too large to be an image.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise BrokenImage("not a file, but a pipe, a device or the like")
        if found.st_size > _MOST_BYTES:
            raise BrokenImage(
                f"{found.st_size:,} bytes; a file may have at most {_MOST_BYTES:,}"
            )
        return file.read(found.st_size)


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _spread(tree: Tree, most: int) -> Iterator[str]:
    """Yields the paths of at most so many images, evenly spread over the tree."""
    n = min(tree.size, most)
    return (tree.path(i * tree.size // n) for i in range(n))


def _size(path: str) -> bytes:
    try:
        return f"{os.stat(path).st_size} ".encode()
    except OSError:
        return b"- "


def _digest(path: str) -> bytes:
    try:
        return hashlib.sha256(read_file(path)).digest()
    except (OSError, BrokenImage):
        return b"-"


def explain(tree: Tree, error: OSError | BrokenImage) -> str:
    """Returns the reason why reading an image of the split `tree` raised `error`.

    Raises OSError if the whole folder of the split no longer exists.
    """
    if isinstance(error, BrokenImage):
        return str(error)
    if not tree.folder.is_dir():
        raise OSError(
            f"--data: {str(tree.folder)!r} no longer exists; restore it, then resume"
            " the run"
        ) from error
    return error.strerror or str(error)


def load_folder(
    source: str,
    validation_images: int,
    pixels: int,
    augment: Augment,
    workers: int | None = None,
) -> Dataset:
    """Returns the data set in a folder with train/CLASS/, val/CLASS/ and test/CLASS/.

    If the folder has no validation images, the validation split is the last
    `validation_images` images of a fixed permutation of the training images.
    """
    classes, train, validation, test, notes = read_index(source)
    if validation is None:
        kept, rest = hold_out(train.size, validation_images)
        train, validation = train.take(kept), train.take(rest)
    mean, std, broken = _moments(train, pixels, augment)
    trees = train, validation, test or train.take(np.arange(0))
    options = pixels, augment, tuple(map(round, mean)), workers
    training, held, testing = (ImageFolder(tree, *options) for tree in trees)
    shape = (pixels, pixels, 3)
    return Dataset(
        training, held, testing, len(classes), shape, mean, std, notes, broken
    )


def _moments(
    tree: Tree, pixels: int, augment: Augment
) -> tuple[Colour, Colour, tuple[Broken, ...]]:
    """Returns mean and standard deviation of each colour channel, and broken images.

    The channels are those of a sample that is spread evenly over the images. The broken
    images are those of the sample that cannot be read. If there are none, the result is
    cached until a file of the sample changes or another decoder is installed.
    """
    n = min(tree.size, _SAMPLE)
    sample = tree.take(np.arange(n) * tree.size // n)
    cache, key = cache_folder(), _fingerprint(sample)
    name = f"moments 3 {os.path.abspath(tree.folder)} {pixels} {augment}"
    found = recall(cache, name, key)
    broken: tuple[Broken, ...] = ()
    if not _are_moments(found):
        counts, broken = _histogram(sample, pixels, augment)
        if not counts.any():
            raise ValueError(
                f"--data: none of {n} images in {str(tree.folder)!r} can be read; run"
                " python -m examples.imagenet.prepare to see why"
            )
        value = np.arange(256)
        total = counts.sum(axis=1)
        mean = counts @ value / total
        squares = counts * (value - mean[:, None]) ** 2
        std = np.sqrt(squares.sum(axis=1) / total)
        found = mean.tolist(), std.tolist()
        if not broken:
            remember(cache, name, key, found)
    mean, std = map(tuple, found)
    return mean, std, broken


def _are_moments(value: Any) -> bool:
    """Whether a value from the cache is a mean and a deviation of each channel."""
    match value:
        case [[float(), float(), float()], [float(), float(), float()]]:
            return all(0 <= x <= 255 for part in value for x in part)
    return False


def _fingerprint(tree: Tree) -> str:
    """Returns a digest that changes if an image file or the image decoder changes.

    It covers the names, sizes and modification times of the files, not their bytes.
    """
    digest = hashlib.sha256(DECODERS.encode())
    for i, name in enumerate(tree.names):
        try:
            found = os.stat(tree.path(i))
            state = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:
            state = "cannot be read"
        digest.update(name + b"\0" + state.encode() + b"\0")
    return digest.hexdigest()


def _histogram(
    tree: Tree, pixels: int, augment: Augment
) -> tuple[np.ndarray, tuple[Broken, ...]]:
    """Returns the count of each pixel value in each colour channel, int64 [3, 256].

    Also returns the images that cannot be read, whose pixels are not counted.
    """

    def count(i: int) -> np.ndarray | Broken:
        try:
            image = for_evaluation(read_image(tree, i).pixels, pixels, augment)
        except (OSError, BrokenImage) as error:
            return Broken(tree.path(i), explain(tree, error))
        channels = np.moveaxis(image, -1, 0)
        return np.stack([np.bincount(c.ravel(), minlength=256) for c in channels])

    total, broken = np.zeros((3, 256), np.int64), []
    with ThreadPoolExecutor() as pool:
        for found in pool.map(count, range(tree.size)):
            if isinstance(found, Broken):
                broken.append(found)
            else:
                total += found
    return total, tuple(broken)
