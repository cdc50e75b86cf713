"""A DataLoader of JPEG files with Pillow: a pass each time its name is asked for.

Started by benchmarks/speed/input_pipeline.py with a Python that has torch and Pillow;
talks in lines of JSON: first the files, then a name, answered with the seconds of one
pass. As torchvision does it, all of an image is decoded; pixels stay uint8.
"""

import importlib
import importlib.metadata
import json
import math
import random
import sys
import time
from functools import partial
from typing import Any

import numpy as np

Image: Any = importlib.import_module("PIL.Image")
features: Any = importlib.import_module("PIL.features")
torch: Any = importlib.import_module("torch")


def region(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, as torchvision's RandomResizedCrop draws them."""
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
    """As many images as a turn has: the files, over and over."""

    def __init__(self, task: Any, antialias: bool) -> None:
        self.files, self.size = task["files"], task["images"]
        self.side = (task["pixels"], task["pixels"])
        self.antialias = antialias

    def __len__(self) -> int:
        return int(self.size)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        path, label = self.files[i % len(self.files)]
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


def turn(loader: Any, task: Any) -> float:
    start = time.perf_counter()
    read = 0
    for images, labels in loader:
        assert images.shape[1:] == (3, task["pixels"], task["pixels"])
        read += len(labels)
    assert read == task["images"]
    return time.perf_counter() - start


def main() -> None:
    task = json.loads(sys.stdin.readline())

    def prepare(workers: int, antialias: bool) -> Any:
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        files, make = Files(task, antialias), torch.utils.data.DataLoader
        loader = make(files, task["batch"], shuffle=True, **options)
        return partial(turn, loader, task)

    turns = {
        f"torch DataLoader, {w} workers{how}": prepare(w, not how)
        for w in task["workers"]
        for how in ("", ", no antialiasing")
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "pillow")}
    versions["libjpeg-turbo"] = features.version("libjpeg_turbo")
    print(json.dumps({"names": list(turns), "versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(turns[json.loads(line)]()), flush=True)


if __name__ == "__main__":
    main()
