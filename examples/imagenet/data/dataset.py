"""What the trainer trains and evaluates on: sources of batches, and a set of three.

To train on images of your own, write a class that is a `Source`, and give three of
them to a `Dataset`. The trainer knows nothing else of the data.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

Array = Any  # of JAX on the devices, of NumPy on the way there
Pixels = float | tuple[float, ...]  # of all channels, or of each


class DataLost(Exception):
    """Images cannot be read, and the run is not to go on without them."""


class Broken(NamedTuple):
    """An image that cannot be read."""

    path: str
    reason: str


class Batch(NamedTuple):
    images: Array  # uint8 [n, height, width, channels]
    labels: Array  # int32 [n]
    mask: Array = None  # bool [n], False = padding; evaluation alone
    mirror: Array = None  # bool [n], True = left and right are to change places


class Share(NamedTuple):
    """One process's rows of every batch, of `size` rows in all.

    They are the rows from process · rows to (process + 1) · rows.
    """

    size: int
    process: int = 0
    processes: int = 1

    @property
    def rows(self) -> int:
        return self.size // self.processes


# Each with those of its images that cannot be read: () if all can.
Batches = Iterator[tuple[Batch, tuple[Broken, ...]]]


class Source(Protocol):
    """One split of a data set: how many images it has, and batches of them.

    An iterator of TFDS, WebDataset or any other library becomes one with these four
    members. A batch has the arrays of `Batch`: images of the data set's shape and their
    labels, and, in evaluation, a mask. Each process asks for its own share of the rows.
    """

    @property
    def size(self) -> int:
        """Number of images; one epoch is that many."""

    def training(self, seed: int, steps: range, share: Share) -> Batches:
        """Yields `share.rows` rows for each of these updates, counted from 0, in order.

        A batch is a function of the seed and its update, so that a run that is resumed
        at update k, and asks for `range(k, …)`, sees what it would have seen.
        """

    def evaluation(self, share: Share) -> Batches:
        """Yields every image once, in batches of `share.rows` rows with a mask.

        All processes yield as many batches. Rows that fill up the last batches repeat
        any image, and their mask is False.
        """

    def content(self) -> Iterable[bytes]:
        """Bytes that differ where the images do.

        A checkpoint keeps a digest of them, and a run on other images is refused.
        """


class Dataset(NamedTuple):
    train: Source
    validation: Source
    test: Source
    classes: int  # labels are 0 … classes − 1
    image_shape: tuple[int, ...]  # (height, width, channels)
    pixel_mean: Pixels
    pixel_std: Pixels  # of the training images
    notes: tuple[str, ...] = ()  # what a reader of the data should know
