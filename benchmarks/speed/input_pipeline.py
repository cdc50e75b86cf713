"""Images per second from JPEG files to batches, beside PyTorch's DataLoader and Pillow.

    python -m benchmarks.speed.input_pipeline [--torch PYTHON] [--files N] [--rounds N]

The trainer's pipeline and, with --torch, a Python that has PyTorch and Pillow read the
same files, held to the same 1, 2, 4, … cores, a worker for each; they take turns, each
of as many images as files times cores, and figures are medians. The files are crops of
scikit-learn's two photographs, in ImageNet's sizes and of as many bytes; no disk is
measured. Both sides decode all of an image and resize a random region bilinearly.
Pillow does it with a filter that widens as the image shrinks, as torchvision, and also
without, as ours does below a factor of 2. Pillow also mirrors, which our training step
does; neither normalises here. Needs Linux and a quiet machine. Writes
benchmarks/results/input_pipeline.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import cv2
import numpy as np
import simplejpeg
from sklearn.datasets import load_sample_images

from benchmarks.speed.peer import Peer
from examples.imagenet.config import Augment
from examples.imagenet.data.dataset import Share
from examples.imagenet.data.folders import ImageFolder, load_folder, read_image
from examples.imagenet.data.pixels import for_training
from examples.imagenet.provenance import provenance

PIXELS, BATCH, CLASSES = 224, 64, 8
AUGMENTS: tuple[Augment, ...] = ("rrc", "caffe")
MEAN_BYTES = 110_000  # about what ImageNet's training files have
SIZES = ((375, 500), (500, 375), (333, 500), (500, 333))  # height, width
SHARES = (0.6, 0.2, 0.15, 0.05)  # of the files
RESULT = Path("benchmarks/results/input_pipeline.json")
Turn = Callable[[], float]  # reads the images of one turn and returns the seconds


def photographs() -> dict[str, np.ndarray]:
    sample = load_sample_images()
    names = (Path(name).stem for name in sample.filenames)
    return dict(zip(names, sample.images, strict=True))


def crop(photograph: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """A random part of a photograph, scaled to a size that ImageNet often has."""
    height, width = SIZES[random.choice(len(SIZES), p=SHARES)]
    tall, wide = photograph.shape[:2]
    scale = min(tall / height, wide / width) * random.uniform(0.7, 1)
    h, w = int(height * scale), int(width * scale)
    top, left = random.randint(tall - h + 1), random.randint(wide - w + 1)
    part = photograph[top : top + h, left : left + w]
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return cv2.resize(part, (width, height), interpolation=how)


def write_files(folder: Path, n: int) -> dict[str, Any]:
    """Class folders of n JPEGs, of the quality that comes nearest to `MEAN_BYTES`."""
    random = np.random.RandomState(0)
    sources = photographs()
    taken = list(sources.values())
    images = [crop(taken[i % len(taken)], random) for i in range(n)]

    def encode(image: np.ndarray, quality: int) -> bytes:
        raw: bytes = simplejpeg.encode_jpeg(image, quality, "RGB", "420", fastdct=False)
        return raw

    def miss(quality: int) -> float:
        return abs(fmean(len(encode(x, quality)) for x in images[:60]) - MEAN_BYTES)

    quality = min(range(80, 100), key=miss)
    sizes = []
    for i, image in enumerate(images):
        path = folder / "train" / f"class{i % CLASSES}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes.append(path.write_bytes(encode(image, quality)))
    height, width = np.mean([x.shape[:2] for x in images], axis=0).tolist()
    means = {"mean_bytes": fmean(sizes), "mean_height": height, "mean_width": width}
    return {"photographs": list(sources), "count": n, "quality": quality} | means


def stages(source: ImageFolder) -> dict[str, float]:
    """Milliseconds of an image in one thread, before it becomes part of a batch."""
    random = np.random.RandomState(0)
    seconds = dict.fromkeys(("read and decode", *AUGMENTS), 0.0)
    for i in range(source.size):
        start = time.perf_counter()
        image = read_image(source.tree, i)
        seconds["read and decode"] += time.perf_counter() - start
        for augment in AUGMENTS:
            start = time.perf_counter()
            for_training(image, PIXELS, augment, random)
            seconds[augment] += time.perf_counter() - start
    return {name: 1e3 * total / source.size for name, total in seconds.items()}


def turn(source: ImageFolder, workers: int, steps: int) -> float:
    source = replace(source, workers=workers)
    start = time.perf_counter()
    read = 0
    for batch, broken in source.training(0, range(steps), Share(BATCH)):
        assert not broken
        assert batch.images.shape == (BATCH, PIXELS, PIXELS, 3)
        read += len(batch.labels)
    assert read == steps * BATCH
    return time.perf_counter() - start


def compare(
    sources: dict[Augment, ImageFolder], cores: int, rounds: int, python: str | None
) -> dict[str, Any]:
    """Of this process held to its cores, which the peer's inherits."""
    tree = sources["rrc"].tree
    steps = tree.size * cores // BATCH
    turns: dict[str, Turn] = {
        f"lars_optax, {name}": partial(turn, source, cores, steps)
        for name, source in sources.items()
    }
    record: dict[str, Any] = {"cores": cores, "images": steps * BATCH}
    with ExitStack() as stack:
        if python:
            files = [(tree.path(i), int(tree.labels[i])) for i in range(tree.size)]
            task = {"files": files, "images": steps * BATCH, "batch": BATCH}
            workers = [0, 1] if cores == 1 else [cores]
            task |= {"pixels": PIXELS, "workers": workers}
            peer = stack.enter_context(Peer(python, "torch_loader.py", task))
            turns |= peer.steps
            record["torch"] = peer.versions
        for each in turns.values():  # starts the peer's workers, which then stay
            each()
        record["load"] = os.getloadavg()[0]
        times = [{name: each() for name, each in turns.items()} for _ in range(rounds)]
    seconds = {name: median(row[name] for row in times) for name in turns}
    theirs = [x for name, x in seconds.items() if name.startswith("torch")]
    record["turns"] = {
        name: {
            "median_seconds": x,
            "images_per_second": steps * BATCH / x,
            "images_per_second_per_core": steps * BATCH / x / cores,
            "ratio": min(theirs) / x if theirs else None,  # to the peer's fastest
        }
        for name, x in seconds.items()
    }
    return record


def show(record: dict[str, Any]) -> None:
    for name, x in record["turns"].items():
        ratio = f"{x['ratio']:6.2f}" if x["ratio"] else ""
        speed, each = x["images_per_second"], x["images_per_second_per_core"]
        print(f"{record['cores']:5} {name:42} {speed:9.0f} {each:9.0f} {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch", metavar="PYTHON", help="one with PyTorch and Pillow")
    parser.add_argument("--files", type=int, default=512, help="64 or more")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    record = provenance()
    packages = ("simplejpeg", "opencv-python-headless", "grain")
    record["versions"] |= {name: version(name) for name in packages}
    allowed = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # keeps no listing of it
        record["files"] = write_files(Path(folder), arguments.files)
        print(json.dumps(record["files"]), flush=True)
        sources: dict[Augment, Any] = {
            name: load_folder(folder, 0, PIXELS, name).train for name in AUGMENTS
        }
        os.sched_setaffinity(0, allowed[:1])
        record["milliseconds"] = stages(sources["rrc"])
        print(json.dumps(record["milliseconds"]))
        print(f"cores {'':42} {'images/s':>9} {'per core':>9}  ratio", flush=True)
        record["results"] = []
        for cores in (2**i for i in range(len(allowed).bit_length())):
            os.sched_setaffinity(0, allowed[:cores])
            result = compare(sources, cores, arguments.rounds, arguments.torch)
            record["results"].append(result)
            show(result)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
