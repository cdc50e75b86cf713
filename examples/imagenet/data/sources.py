"""From the name of a data source to its splits, and what tells two sources apart."""

import hashlib
from pathlib import Path

from ..config import Augment
from .arrays import Dataset, Source, Split, load_idx, load_mnist, synthetic
from .folders import ImageFolder, load_folder


def load(
    source: str,
    validation_images: int = 0,
    pixels: int = 224,
    augment: Augment = "caffe",
) -> Dataset:
    """`mnist`, `synthetic`, a folder of IDX files, or one of class folders.

    `pixels`: side of synthetic images and of those of class folders.
    """
    if source == "mnist":
        return load_mnist()
    if source == "synthetic":
        return synthetic(pixels)
    if (Path(source) / "train").is_dir():
        return load_folder(source, validation_images, pixels, augment)
    return load_idx(source, validation_images)


def fingerprint(data: Dataset) -> str:
    """Equal for equal splits: of images in memory, or of the names of files."""
    digest = hashlib.blake2b(digest_size=8)
    for split in (data.train, data.validation, data.test):
        for array in _arrays(split):
            digest.update(array)
    return digest.hexdigest()


def _arrays(source: Source) -> list[bytes]:
    match source:
        case ImageFolder():
            return [source.tree.names.tobytes(), source.tree.labels.tobytes()]
        case Split():
            return [source.images.tobytes(), source.labels.tobytes()]
    return [f"{source.size} images of noise".encode()]
