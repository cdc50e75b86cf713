"""From the name of a data source to its splits, and what tells two sources apart."""

import hashlib
from pathlib import Path

from ..config import Augment
from .arrays import load_idx, load_mnist, synthetic
from .dataset import Dataset
from .folders import load_folder


def load(
    source: str,
    validation_images: int = 0,
    pixels: int = 224,
    augment: Augment = "caffe",
    workers: int | None = None,
) -> Dataset:
    """`mnist`, `synthetic`, a folder of IDX files, or one of class folders.

    `pixels`: side of synthetic images and of those of class folders. `workers`: threads
    that read the latter.
    """
    if source == "mnist":
        return load_mnist()
    if source == "synthetic":
        return synthetic(pixels)
    if (Path(source) / "train").is_dir():
        return load_folder(source, validation_images, pixels, augment, workers)
    return load_idx(source, validation_images)


def fingerprint(data: Dataset) -> str:
    """Equal for equal splits: of images in memory, or of the names of files."""
    digest = hashlib.blake2b(digest_size=8)
    for split in (data.train, data.validation, data.test):
        for part in split.content():
            digest.update(part)
    return digest.hexdigest()
