"""From the name of a data source to its splits."""

from pathlib import Path

from .config import Augment
from .data import Dataset, load_idx, load_mnist, synthetic
from .folders import load_folder


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
