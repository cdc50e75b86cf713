"""Batches, read ahead by threads: each process's share of every update's images.

What an image is, and where it comes, depends on (seed, place in the stream) alone: not
on how many threads read, how many processes share a batch, or where a run began.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from .arrays import Source, Split, visits
from .folders import Broken, ImageFolder, Loaded

Array = Any  # of JAX on the devices, of NumPy on the way there
_CHUNK = 32  # images a thread reads at once
Read = Callable[[np.ndarray], Loaded]  # of places, counted over the whole run


class DataLost(Exception):
    """Images cannot be read, and the run is not to go on without them."""


class Batch(NamedTuple):
    images: Array  # uint8 [n, height, width, channels]
    labels: Array  # int32 [n]
    mask: Array = None  # bool [n], False = padding; evaluation alone
    mirror: Array = None  # bool [n], True = left and right are to change places


class Share(NamedTuple):
    """One process's rows of every batch, of `size` rows in all."""

    size: int
    process: int = 0
    processes: int = 1

    @property
    def rows(self) -> int:
        return self.size // self.processes


def training(
    source: Source, seed: int, share: Share, steps: range, workers: int | None = None
) -> Iterator[tuple[Batch, tuple[Broken, ...]]]:
    """The batches of these updates, counted from 0, and what of them was unreadable."""

    def read(places: np.ndarray) -> Loaded:
        epochs, index = visits(seed, places, source.size)
        if isinstance(source, ImageFolder):
            return source.take_augmented(index, seed, epochs)
        return _as_loaded(source.take(index))

    for loaded in _batches(read, share, steps, _threads(source, workers)):
        batch = Batch(loaded.images, loaded.labels, mirror=loaded.mirror)
        yield batch, loaded.broken


def evaluation(
    source: Source, share: Share, workers: int | None = None
) -> Iterator[tuple[Batch, tuple[Broken, ...]]]:
    """Every image once: the last batch is filled with masked rows."""
    last = source.size - 1

    def read(places: np.ndarray) -> Loaded:
        index = np.unique(np.minimum(places, last))
        images, labels, mirror, broken = _as_loaded(source.take(index))
        rows = np.minimum(np.arange(len(places)), len(index) - 1)
        named = broken if places[0] <= last else ()
        return Loaded(images[rows], labels[rows], mirror, named)

    steps = range(-(-source.size // share.size))
    batches = _batches(read, share, steps, _threads(source, workers))
    for step, loaded in zip(steps, batches, strict=True):
        mask = _places(share, step, 0, share.rows) <= last
        yield Batch(loaded.images, loaded.labels, mask), loaded.broken


def _threads(source: Source, workers: int | None) -> int:
    """None where the images are in memory: threads would only be in the way."""
    return (workers or _cores()) if isinstance(source, ImageFolder) else 0


def _cores() -> int:
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


def _as_loaded(part: Loaded | Split) -> Loaded:
    if isinstance(part, Loaded):
        return part
    return Loaded(part.images, part.labels, None, ())


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
