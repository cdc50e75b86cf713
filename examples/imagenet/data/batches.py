"""Batches of images that can be read in any order, read ahead by several threads.

Training sees a stream of images: all of them in the random order of epoch 0, then in
that of epoch 1, and so on. Which image stands at a place of the stream, and how it is
cropped, depends on the seed and the place alone. The number of threads, the number of
processes that share a batch, and the step at which a run is resumed do not affect the
images of a step.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np

from .dataset import Batch, Batches, Broken, DataLost, Share

_CHUNK = 32  # images that one thread reads at once


class Loaded(NamedTuple):
    """Images read from a source, with a substitute for each one named in `broken`."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    labels: np.ndarray  # int32 [n]
    # bool [n]: True where the device is to mirror the image; None: it mirrors no image
    mirror: np.ndarray | None = None
    broken: tuple[Broken, ...] = ()


class Indexed(ABC):
    """Base class of sources of batches whose images have the indices 0 to `size` − 1.

    A subclass says how many images there are and how to read those of given indices.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of images."""

    @abstractmethod
    def take(self, index: np.ndarray) -> Loaded:
        """Returns the images with these indices, cropped as for evaluation."""

    @abstractmethod
    def content(self) -> Iterable[bytes]:
        """Returns bytes that differ between sources with different images."""

    @property
    def threads(self) -> int:
        """Number of threads that read images; 0 to read without threads."""
        return 0

    def take_augmented(
        self, index: np.ndarray, seed: int, epochs: np.ndarray
    ) -> Loaded:
        """Returns the images with these indices, augmented as for training.

        Image `index[i]` is cropped as epoch `epochs[i]` of a run with this seed does.
        """
        return self.take(index)

    def training(self, seed: int, steps: range, share: Share) -> Batches:
        """Yields this process's rows of the training batch of each of these steps."""

        def read(places: np.ndarray) -> Loaded:
            epochs, index = visits(seed, places, self.size)
            return self.take_augmented(index, seed, epochs)

        for loaded in _batches(read, share, steps, self.threads):
            batch = Batch(loaded.images, loaded.labels, mirror=loaded.mirror)
            yield batch, loaded.broken

    def evaluation(self, share: Share) -> Batches:
        """Yields every image once, in batches with a mask that is False on padding."""
        last = self.size - 1

        def read(places: np.ndarray) -> Loaded:
            index = np.unique(np.minimum(places, last))
            images, labels, mirror, broken = self.take(index)
            rows = np.minimum(np.arange(len(places)), len(index) - 1)
            named = broken if places[0] <= last else ()
            return Loaded(images[rows], labels[rows], mirror, named)

        steps = range(-(-self.size // share.size))
        batches = _batches(read, share, steps, self.threads)
        for step, loaded in zip(steps, batches, strict=True):
            mask = _places(share, step, 0, share.rows) <= last
            yield Batch(loaded.images, loaded.labels, mask), loaded.broken


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Returns the random order of n images in an epoch of a run with this seed."""
    # RandomState, because NumPy promises never to change its stream.
    order = np.random.RandomState([seed, epoch]).permutation(n)
    order.setflags(write=False)  # the cache hands out the same array again
    return order


def visits(seed: int, places: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epoch and the image index at each place of the training stream.

    The stream has the n images in the random order of epoch 0, then in that of epoch 1,
    and so on. Its places count from 0.
    """
    epochs, within = np.divmod(places, n)
    images = np.empty_like(within)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        images[here] = epoch_order(seed, int(epoch), n)[within[here]]
    return epochs, images


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _batches(
    read: Callable[[np.ndarray], Loaded], share: Share, steps: range, threads: int
) -> Iterator[Loaded]:
    """Yields this process's rows of the batch of each of these steps.

    `read` returns the images at given positions of the stream of all batches' rows.

    Several threads read chunks of a batch, and one more thread joins the chunks. They
    read one batch ahead, or one chunk each if there are more threads than chunks. With
    0 threads nothing is read ahead.
    """
    rows = _CHUNK if threads else share.rows  # of a chunk
    chunks = -(-share.rows // rows)
    numbers = grain.MapDataset.range(steps.start * chunks, steps.stop * chunks)

    def load(number: int) -> Loaded:
        step, chunk = divmod(int(number), chunks)
        start = chunk * rows
        return read(_places(share, step, start, min(start + rows, share.rows)))

    options = grain.ReadOptions(threads, max(threads, chunks) if threads else 0)
    batches = numbers.map(load).to_iter_dataset(options).batch(chunks, batch_fn=_join)
    if threads:
        ahead = grain.experimental.ThreadPrefetchIterDataset
        batches = ahead(batches, prefetch_buffer_size=1)
    iterator = iter(batches)
    try:
        yield from iterator
    except OSError as error:
        raise DataLost(str(error)) from error
    finally:
        iterator.close()


def _places(share: Share, step: int, start: int, stop: int) -> np.ndarray:
    """Returns where some of this process's rows stand in the stream of images.

    The stream consists of the rows of all batches, counted from 0. The rows are those
    from `start` to `stop` − 1 among the rows that this process reads for `step`.
    """
    first = step * share.size + share.process * share.rows
    return np.arange(first + start, first + stop)


def _join(parts: list[Loaded]) -> Loaded:
    if len(parts) == 1:
        return parts[0]
    images, labels, mirror, broken = zip(*parts, strict=True)
    mirrors = None if mirror[0] is None else np.concatenate(mirror)
    return Loaded(
        np.concatenate(images), np.concatenate(labels), mirrors, sum(broken, ())
    )
