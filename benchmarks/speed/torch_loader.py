"""Reads JPEG files with PyTorch's DataLoader and Pillow, to compare the speed.

Started by benchmarks/speed/input_pipeline.py with a Python that has torch and Pillow.
A step is one pass over the files. As in torchvision, the whole image is decoded and its
pixels stay uint8.
"""

import importlib
import math
import random
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np

from benchmarks.speed.peer import Offer, serve
from benchmarks.speed.timer import Step, clock

Image: Any = importlib.import_module("PIL.Image")
features: Any = importlib.import_module("PIL.features")
torch: Any = importlib.import_module("torch")


def region(width: int, height: int) -> tuple[int, int, int, int]:
    """Draws a random crop as torchvision's RandomResizedCrop does.

    Returns its left, top, right and bottom.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        aspect = math.exp(random.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * high)), min(height, round(width / low))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Files:
    """A PyTorch data set of task["images"] images, read from fewer files in turn.

    With `antialias`, the filter that resizes an image widens as the image shrinks.
    """

    def __init__(self, task: Any, antialias: bool) -> None:
        self.task, self.antialias = task, antialias
        self.side = (task["pixels"], task["pixels"])

    def __len__(self) -> int:
        return int(self.task["images"])

    def __getitem__(self, i: int) -> tuple[Any, int]:
        path, label = self.task["files"][i % len(self.task["files"])]
        with Image.open(path) as file:
            image = file.convert("RGB")
        box = region(*image.size)
        if self.antialias:
            image = image.resize(self.side, Image.BILINEAR, box=box)
        else:
            image = image.transform(self.side, Image.EXTENT, box, Image.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), label


def read_all(loader: Any, task: Any) -> None:
    read = 0
    for images, labels in loader:
        assert images.shape[1:] == (3, task["pixels"], task["pixels"])
        read += len(labels)
    assert read == task["images"]


def offer(task: Any) -> Offer:
    passes: dict[str, Step] = {}
    for workers, antialias in product(task["workers"], (True, False)):
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        files, make = Files(task, antialias), torch.utils.data.DataLoader
        loader = make(files, task["batch"], shuffle=True, **options)
        how = "" if antialias else ", no antialiasing"
        name = f"torch DataLoader, {workers} workers{how}"
        passes[name] = partial(clock, partial(read_all, loader, task))
    versions: Any = {name: version(name) for name in ("torch", "pillow")}
    versions["libjpeg-turbo"] = features.version("libjpeg_turbo")
    return passes, versions


if __name__ == "__main__":
    serve(offer)
