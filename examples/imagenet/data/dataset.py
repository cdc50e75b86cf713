"""The data that the trainer uses: sources of batches, and a data set of three of them.

To train on data of your own, write a class with the members of `Source`, and give one
each for training, validation and testing to a `Dataset`. The trainer needs no more.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

Array = Any  # a NumPy array, or a JAX array once it is on the devices
Pixels = float | tuple[float, ...]  # one number for all channels, or one for each


class DataLost(Exception):
    """Raised when images cannot be read and the run must not go on without them."""


class Broken(NamedTuple):
    """An image file that cannot be read."""

    path: str
    reason: str


class Batch(NamedTuple):
    """A batch of images with labels, or the rows of it that one process reads."""

    images: Array  # uint8 [n, height, width, channels]
    labels: Array  # int32 [n]
    mask: Array = None  # bool [n], False on rows that pad; None in training
    mirror: Array = None  # bool [n], True where to swap left and right; None: nowhere


class Share(NamedTuple):
    """The part of every batch that one process reads.

    A batch has `size` rows, one for each image. The process numbered `process` of all
    `processes` reads `rows` of them, beginning with row process · rows.
    """

    size: int
    process: int = 0
    processes: int = 1

    @property
    def rows(self) -> int:
        """Number of rows that each process reads."""
        return self.size // self.processes


# Batches, each with those of its images that could not be read; () if there are none.
Batches = Iterator[tuple[Batch, tuple[Broken, ...]]]


class Source(Protocol):
    """One split of a data set: the number of its images, and batches of them.

    An iterator of TensorFlow Datasets, WebDataset or another library becomes a source
    through a class with these four members. Every batch is a `Batch` with images,
    labels and, in evaluation, a mask. Each process asks for its own share of the rows.
    """

    @property
    def size(self) -> int:
        """Number of images; one epoch visits that many."""

    def training(self, seed: int, steps: range, share: Share) -> Batches:
        """Yields a batch of `share.rows` images for each of these steps, in order.

        Steps count from 0 over the whole run. A batch must depend on the seed and its
        step alone: a run that resumes at step k asks for `range(k, …)` and must see the
        batches that it would have seen without the interruption.
        """

    def evaluation(self, share: Share) -> Batches:
        """Yields every image once, in batches of `share.rows` rows with a mask.

        Every process yields the same number of batches. Rows that are needed to fill
        the last batches may hold any image, and their mask is False.
        """

    def content(self) -> Iterable[bytes]:
        """Returns bytes that differ between sources with different images.

        A checkpoint stores a digest of the bytes, and a run can only be resumed with
        data that has the same digest.
        """


class Dataset(NamedTuple):
    """The three splits of a data set, with their image shape and pixel statistics."""

    train: Source
    validation: Source
    test: Source
    classes: int  # number of classes; labels are 0 to classes − 1
    image_shape: tuple[int, ...]  # (height, width, channels)
    pixel_mean: Pixels  # of the training images, on the scale 0 to 255
    pixel_std: Pixels  # standard deviation of the same pixels
    notes: tuple[str, ...] = ()  # irregularities in the data, for the user to read
    broken: tuple[Broken, ...] = ()  # images that the pixel statistics leave out
