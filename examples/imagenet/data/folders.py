"""Images read from class folders while training runs, as a source of the trainer's.

Training's crop and mirror of image i are a function of (seed, epoch, i), whoever reads
it and in whatever batch. An image that cannot be read is named, and one colour stands
in for it, unless the run ends there. Refuses a folder that has gone altogether.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..config import Augment
from .arrays import hold_out
from .batches import Indexed, Loaded, cores
from .dataset import Broken, Dataset
from .index import Index, Tree, cache_folder, read_index, recall, remember
from .pixels import DECODERS, BrokenImage, decode, for_evaluation, for_training

_SAMPLE = 2_000  # training images whose pixels give mean and deviation

Colour = tuple[float, float, float]


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class ImageFolder(Indexed):
    """One split, each image of which is read when it is taken."""

    tree: Tree
    pixels: int
    augment: Augment
    blank: tuple[int, int, int]  # stands in for an image that cannot be read
    workers: int | None = None  # threads; None: one for each core

    @property
    def size(self) -> int:
        return self.tree.size

    @property
    def threads(self) -> int:
        return self.workers or cores()

    def content(self) -> Iterable[bytes]:
        return self.tree.names.tobytes(), self.tree.labels.tobytes()

    def take(self, index: np.ndarray) -> Loaded:
        def view(place: int, image: np.ndarray) -> tuple[np.ndarray, bool]:
            return for_evaluation(image, self.pixels, self.augment), False

        return self._load(index, view)._replace(mirror=None)

    def take_augmented(
        self, index: np.ndarray, seed: int, epochs: np.ndarray
    ) -> Loaded:
        # Seeded again for each image: a new one would take ten times as long.
        random = np.random.RandomState()

        def view(place: int, image: np.ndarray) -> tuple[np.ndarray, bool]:
            random.seed([seed, epochs[place], index[place]])
            return for_training(image, self.pixels, self.augment, random)

        loaded = self._load(index, view)
        return loaded._replace(mirror=None) if self.augment == "center" else loaded

    def _load(
        self,
        index: np.ndarray,
        view: Callable[[int, np.ndarray], tuple[np.ndarray, bool]],
    ) -> Loaded:
        images = np.empty((len(index), self.pixels, self.pixels, 3), np.uint8)
        mirror = np.zeros(len(index), np.bool_)
        broken = []
        for place, i in enumerate(index):
            try:
                images[place], mirror[place] = view(place, read_image(self.tree, i))
            except (OSError, BrokenImage) as error:
                broken.append(Broken(self.tree.path(i), explain(self.tree, error)))
                images[place] = self.blank
        return Loaded(images, self.tree.labels[index], mirror, tuple(broken))


def read_image(tree: Tree, i: int) -> np.ndarray:
    """Image i as it is stored; raises OSError or BrokenImage."""
    with open(tree.path(i), "rb") as file:
        return decode(file.read())


def explain(tree: Tree, error: OSError | BrokenImage) -> str:
    """Why one image cannot be read; raises OSError if the whole folder has gone."""
    if isinstance(error, BrokenImage):
        return str(error)
    if not tree.folder.is_dir():
        raise OSError(
            f"--data: {str(tree.folder)!r} is gone; bring it back, then resume"
        ) from error
    return error.strerror or str(error)


def load_folder(
    source: str,
    validation_images: int,
    pixels: int,
    augment: Augment,
    workers: int | None = None,
) -> Dataset:
    """The splits of a tree of class folders, as `read_index` finds them.

    Without a folder of validation images: the end of a fixed permutation of training.
    """
    index = read_index(source)
    train, validation = _split(index, validation_images)
    test = index.test or train.take(np.arange(0))
    mean, std = _moments(train, pixels, augment)
    blank = (round(mean[0]), round(mean[1]), round(mean[2]))
    folder = partial(
        ImageFolder, pixels=pixels, augment=augment, blank=blank, workers=workers
    )
    return Dataset(
        folder(train),
        folder(validation),
        folder(test),
        len(index.classes),
        (pixels, pixels, 3),
        mean,
        std,
        index.notes,
    )


def _split(index: Index, validation_images: int) -> tuple[Tree, Tree]:
    if index.validation:
        return index.train, index.validation
    kept, held = hold_out(index.train.size, validation_images)
    return index.train.take(kept), index.train.take(held)


def _moments(tree: Tree, pixels: int, augment: Augment) -> tuple[Colour, Colour]:
    """Mean and standard deviation of each channel over a fixed sample, cached.

    The sample is spread evenly over the images; a file of it that changes, or another
    decoder, makes another key.
    """
    n = min(tree.size, _SAMPLE)
    sample = tree.take(np.arange(n) * tree.size // n)
    cache, key = cache_folder(), _fingerprint(sample)
    name = f"moments 2 {os.path.abspath(tree.folder)} {pixels} {augment}"
    found = recall(cache, name, key)
    if found is None:
        counts = _histogram(sample, pixels, augment)
        if not counts.any():
            raise ValueError(
                f"--data: none of {n} images in {str(tree.folder)!r} can be read;"
                " examples.imagenet.prepare names the reasons"
            )
        value = np.arange(256)
        total = counts.sum(axis=1)
        mean = counts @ value / total
        squares = counts * (value - mean[:, None]) ** 2
        std = np.sqrt(squares.sum(axis=1) / total)
        found = mean.tolist(), std.tolist()
        remember(cache, name, key, found)
    mean, std = found
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _fingerprint(tree: Tree) -> str:
    digest = hashlib.sha256(DECODERS.encode())
    for i, name in enumerate(tree.names):
        try:
            stat = os.stat(tree.path(i))
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            state = "cannot be read"
        digest.update(name + b"\0" + state.encode() + b"\0")
    return digest.hexdigest()


def _histogram(tree: Tree, pixels: int, augment: Augment) -> np.ndarray:
    """How often each channel has each value, int64 [3, 256]."""

    def count(i: int) -> np.ndarray:
        try:
            image = for_evaluation(read_image(tree, i), pixels, augment)
        except (OSError, BrokenImage) as error:
            explain(tree, error)
            return np.zeros((3, 256), np.int64)
        channels = np.moveaxis(image, -1, 0)
        return np.stack([np.bincount(c.ravel(), minlength=256) for c in channels])

    with ThreadPoolExecutor() as pool:
        every = list(pool.map(count, range(tree.size)))
    total: np.ndarray = np.sum(every, axis=0)
    return total
