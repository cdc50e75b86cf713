"""Images and trees of class folders, as files, for the tests of the trainer's data."""

import gzip
import io
import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image

OLD = 1_000_000_000  # a time long past [s]


def picture(seed, height=32, width=32):
    """Smooth, so that JPEG keeps it: a few colours, spread over all of it."""
    colours = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    small = Image.fromarray(colours)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, form="PNG", mode=None, **options):
    """The bytes of a file; PNG gives back the very pixels."""
    file = io.BytesIO()
    Image.fromarray(image).convert(mode or "RGB").save(file, form, **options)
    return file.getvalue()


def png(seed):
    return encoded(picture(seed))


def jpeg(seed):
    return encoded(picture(seed), "JPEG", quality=95)


def write_tree(root, files):
    """Files as {"train/cat/1.png": bytes}; None makes an empty folder."""
    for name, raw in files.items():
        path = Path(root, name)
        (path if raw is None else path.parent).mkdir(parents=True, exist_ok=True)
        if raw is not None:
            path.write_bytes(raw)
    return root


def read_tree(root):
    """The files of a folder, as `write_tree` takes them."""
    files = [path for path in Path(root).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def write_classes(root, counts, split="train"):
    """So many images for each class, all different."""
    paths = [f"{split}/{name}/{i}.png" for name, n in counts.items() for i in range(n)]
    files = {path: png(len(split) + 10 * k) for k, path in enumerate(paths, 1)}
    return write_tree(root, files)


def two_classes(root):
    """16 images to train and 4 to test, unchanged for years; its path as a flag's."""
    write_classes(root, {"cat": 10, "dog": 6})
    write_classes(root, {"cat": 3, "dog": 1}, "test")
    age(root)
    return str(root)


# The images of a flawed tree that cannot be decoded.
BROKEN = ["corrupt.jpg", "cut.jpg", "dangling.png", "empty.jpg", "words.jpg"]


def write_flawed_tree(root):
    """One of each thing that goes wrong; its sound images are 32×32."""
    write_classes(root, {"cat": 2, "dog": 2})
    write_classes(root, {"cat": 1}, "test")
    sound = jpeg(1)
    scan = sound.index(b"\xff\xda") + 20
    files = {
        "cat/corrupt.jpg": sound[:scan] + b"\xff\xd8" * 40 + sound[scan:],
        "cat/cut.jpg": sound[:-100],
        "cat/empty.jpg": b"",
        "cat/words.jpg": b"these are no pixels",
        "dog/really_png.jpg": png(2),
        "dog/grey.jpg": encoded(picture(3), "JPEG", "L"),
        "dog/cmyk.JPEG": encoded(picture(4), "JPEG", "CMYK"),
        "dog/notes.txt": b"not an image",
        "dog/._1.jpg": b"what macOS leaves beside a file",
        "dog/inner/1.png": png(5),
        "eel": None,
        "loose.png": png(6),
    }
    write_tree(root, {f"train/{name}": raw for name, raw in files.items()})
    os.symlink("nowhere", os.path.join(root, "train", "dog", "dangling.png"))
    return root


def names(found):
    """The names of a tree's images, as they are listed."""
    return [os.fsdecode(name) for name in found.names]


def age(root):
    """Makes each folder look unchanged for years, as a tree that lies on a disk."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (OLD, OLD))


def write_idx(path, array):
    """An IDX file of unsigned bytes; `.gz` at the end of its name compresses it."""
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_idx_folder(folder, suffix="", **parts):
    """The four IDX files: the images [n, …] and labels [n] of `train` and `t10k`."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, part in parts.items():
        images = part.images.reshape(part.images.shape[:3])  # one channel
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", part.labels)
    return folder
