"""Measures how many JPEG images per second the trainer and PyTorch read into batches.

    python -m benchmarks.speed.input_pipeline [--torch PYTHON] [--files N] [--rounds N]

With --torch, PyTorch's DataLoader reads the same files with Pillow, in another Python.
Both are restricted to the same 1, 2, 4, … cores and have one worker for each core. The
number of images in a pass is the number of files times the number of cores.

The files are crops of scikit-learn's two photographs. Their widths, heights and numbers
of bytes are about those of ImageNet. The disk is not measured. Both sides decode the
whole image and resize a random region bilinearly. Pillow is measured with a filter that
widens as the image shrinks, as in torchvision, and without it, which is how the trainer
resizes below a factor of 2. Pillow also mirrors, which the trainer does in its training
step. Neither normalises. Run it on Linux, on a quiet machine. Writes
benchmarks/results/input_pipeline.json.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tyro
from sklearn.datasets import load_sample_images

from benchmarks import results
from benchmarks.results import BENCHMARKS, Record, Table
from benchmarks.speed import timer
from benchmarks.speed.peer import start_peer
from examples.imagenet.config import Augment
from examples.imagenet.data.dataset import Share
from examples.imagenet.data.folders import ImageFolder, load_folder

PIXELS, BATCH, CLASSES = 224, 64, 8
AUGMENTS: tuple[Augment, ...] = ("rrc", "caffe")
QUALITY = 98  # files have about as many bytes, 110,000, as ImageNet's
SIZES = ((375, 500), (500, 375), (333, 500), (500, 333))  # height, width
SHARES = (0.6, 0.2, 0.15, 0.05)  # of the files
COLUMNS = {
    "ratio": ("ratio", 1, "{:.2f}"),
    "images/s": ("images_per_second", 1, "{:.0f}"),
    "of each core": ("images_per_second_per_core", 1, "{:.0f}"),
}


def photographs() -> dict[str, np.ndarray]:
    sample = load_sample_images()
    names = (Path(name).stem for name in sample.filenames)
    return dict(zip(names, sample.images, strict=True))


def crop(photograph: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Returns a random part of a photograph, resized to a size common in ImageNet."""
    height, width = SIZES[random.choice(len(SIZES), p=SHARES)]
    tall, wide = photograph.shape[:2]
    scale = min(tall / height, wide / width) * random.uniform(0.7, 1)
    h, w = int(height * scale), int(width * scale)
    top, left = random.randint(tall - h + 1), random.randint(wide - w + 1)
    part = photograph[top : top + h, left : left + w]
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return cv2.resize(part, (width, height), interpolation=how)


def crops(n: int) -> Iterator[np.ndarray]:
    """Yields `n` random crops, of scikit-learn's two photographs in turn."""
    random, taken = np.random.RandomState(0), list(photographs().values())
    for i in range(n):
        yield crop(taken[i % len(taken)], random)


def write_files(folder: Path, n: int) -> Record:
    """Writes `n` JPEG files into the class folders of `folder`/train.

    Returns their number, quality and mean size, and the names of the photographs.
    """
    options: Any = {"colorspace": "RGB", "colorsubsampling": "420", "fastdct": False}
    sizes, shapes = [], []
    for i, image in enumerate(crops(n)):
        data = simplejpeg.encode_jpeg(image, QUALITY, **options)
        path = folder / "train" / f"class{i % CLASSES}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes.append(path.write_bytes(data))
        shapes.append(image.shape[:2])
    height, width = np.mean(shapes, axis=0).tolist()
    means = {"mean_bytes": fmean(sizes), "mean_height": height, "mean_width": width}
    return {"photographs": list(photographs()), "count": n, "quality": QUALITY} | means


def read_all(source: ImageFolder, workers: int, steps: int) -> None:
    source, read = replace(source, workers=workers), 0
    for batch, broken in source.training(0, range(steps), Share(BATCH)):
        assert not broken
        assert batch.images.shape == (BATCH, PIXELS, PIXELS, 3)
        read += len(batch.labels)
    assert read == steps * BATCH


def compare(
    sources: dict[Augment, ImageFolder], cores: int, rounds: int, python: str
) -> Record:
    """Measures the trainer's pipeline and PyTorch's DataLoader on the same cores.

    `sources` has the images for each augmentation, and `python` is a Python with
    PyTorch. If it is empty, only the pipeline is measured. Ratios are speeds divided by
    that of the fastest DataLoader.
    """
    tree = sources["rrc"].tree
    steps = tree.size * cores // BATCH
    images = steps * BATCH
    ours: dict[str, timer.Step] = {
        f"lars_optax, {name}": partial(
            timer.clock, partial(read_all, source, cores, steps)
        )
        for name, source in sources.items()
    }
    files = [(tree.path(i), int(tree.labels[i])) for i in range(tree.size)]
    task = {"files": files, "images": images, "batch": BATCH, "pixels": PIXELS}
    task["workers"] = [0, 1] if cores == 1 else [cores]
    with start_peer(python, "torch_loader", task) as (theirs, versions):
        passes = ours | theirs
        counts = dict.fromkeys(passes, images)
        timed = timer.compare(passes, rounds, images=counts)
    turns = timed.pop("steps")
    fastest = min((turns[x]["median_seconds"] for x in theirs), default=None)
    for row in turns.values():
        row["images_per_second_per_core"] = row["images_per_second"] / cores
        row["ratio"] = fastest and fastest / row["median_seconds"]
    about = {"cores": cores, "images": images, "torch": versions}
    return about | timed | {"turns": turns}


def table(result: Record) -> str:
    """Returns the Markdown table of the speeds on one number of cores."""
    cores = result["cores"]
    title = f"\n{cores} core{'s' * (cores > 1)}\n\n"
    return title + results.table(result["turns"], COLUMNS)


def page(record: Record) -> str:
    """Returns the files' mean size, and a Markdown table for each number of cores."""
    files = record["files"]
    return (
        f"{files['count']} files of {files['mean_bytes'] / 1e3:.0f} kB and"
        f" {files['mean_width']:.0f}×{files['mean_height']:.0f} pixels on average.\n"
        + "".join(map(table, record["results"]))
    )


TABLES = (Table(BENCHMARKS, "input_pipeline", "input_pipeline.json", page),)


def main(torch: str = "", files: int = 512, rounds: int = 7) -> None:
    """Measures with 1, 2, 4, … of the cores that this process may use.

    Args:
      torch: path of a Python with PyTorch and Pillow; if empty, they are not measured.
      files: number of JPEG files to write, 64 or more.
      rounds: number of timed passes over the images for each setting.
    """
    record: Record = {"results": []}
    allowed = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # for the index of the files
        record["files"] = write_files(Path(folder), files)
        print(record["files"], flush=True)
        sources: dict[Augment, Any] = {
            name: load_folder(folder, 0, PIXELS, name).train for name in AUGMENTS
        }
        for cores in (2**i for i in range(len(allowed).bit_length())):
            os.sched_setaffinity(0, allowed[:cores])
            result = compare(sources, cores, rounds, torch)
            record["results"].append(result)
            print(table(result), flush=True)
    packages = ("simplejpeg", "opencv-python-headless", "grain")
    results.save("input_pipeline.json", record, packages)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
