"""Batches of images that can be read in any order, read ahead by threads.

What an image is, and where it comes, depends on (seed, place in the stream) alone: not
on how many threads read, how many processes share a batch, or where a run began.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np

from .dataset import Batch, Batches, Broken, DataLost, Share

_CHUNK = 32  # images a thread reads at once


class Loaded(NamedTuple):
    images: np.ndarray  # uint8 [n, height, width, channels]
    labels: np.ndarray  # int32 [n]
    mirror: np.ndarray | None = None  # bool [n], left to the device; None: no image
    broken: tuple[Broken, ...] = ()


Read = Callable[[np.ndarray], Loaded]  # of places, counted over the whole run


class Indexed(ABC):
    """A `Source` whose images are numbered, from 0 to `size` − 1."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of images."""

    @abstractmethod
    def take(self, index: np.ndarray) -> Loaded:
        """Images as they are evaluated."""

    @abstractmethod
    def content(self) -> Iterable[bytes]:
        """Bytes that differ where the images do."""

    @property
    def threads(self) -> int:
        """How many read; 0 for images in memory, where they would be in the way."""
        return 0

    def take_augmented(
        self, index: np.ndarray, seed: int, epochs: np.ndarray
    ) -> Loaded:
        """Images as they are seen in training, each in an epoch of its own."""
        return self.take(index)

    def training(self, seed: int, steps: range, share: Share) -> Batches:
        """The batches of these updates: each epoch visits every image once."""

        def read(places: np.ndarray) -> Loaded:
            epochs, index = visits(seed, places, self.size)
            return self.take_augmented(index, seed, epochs)

        for loaded in _batches(read, share, steps, self.threads):
            batch = Batch(loaded.images, loaded.labels, mirror=loaded.mirror)
            yield batch, loaded.broken

    def evaluation(self, share: Share) -> Batches:
        """Every image once: the last batch is filled with masked rows."""
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
    """The permutation of n images that epoch `epoch` of a run with `seed` visits."""
    # RandomState, because NumPy promises never to change its stream.
    order = np.random.RandomState([seed, epoch]).permutation(n)
    order.setflags(write=False)  # the cache hands out the same array again
    return order


def visits(seed: int, places: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and image at places of the stream that the epochs' orders make.

    So each epoch visits every one of the n images exactly once.
    """
    epochs, within = np.divmod(places, n)
    images = np.empty_like(within)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        images[here] = epoch_order(seed, int(epoch), n)[within[here]]
    return epochs, images


def cores() -> int:
    """Those this process may use, which on a shared machine are fewer than it has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _batches(read: Read, share: Share, steps: range, threads: int) -> Iterator[Loaded]:
    """Threads read chunks, a batch or one chunk each ahead; another joins them."""
    chunks = -(-share.rows // _CHUNK) if threads else 1
    numbers = grain.MapDataset.range(steps.start * chunks, steps.stop * chunks)

    def load(number: int) -> Loaded:
        step, chunk = divmod(int(number), chunks)
        start = chunk * _CHUNK
        stop = min(start + _CHUNK, share.rows) if threads else share.rows
        return read(_places(share, step, start, stop))

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
    first = step * share.size + share.process * share.rows
    return np.arange(first + start, first + stop)


def _join(parts: list[Loaded]) -> Loaded:
    if len(parts) == 1:
        return parts[0]
    images, labels, mirror, broken = zip(*parts, strict=True)
    return Loaded(
        np.concatenate(images),
        np.concatenate(labels),
        None if mirror[0] is None else np.concatenate(mirror),
        sum(broken, ()),
    )
