"""Checks a folder of images before training on it; can unpack ImageNet's archives.

`python -m examples.imagenet.prepare DIR` counts the images of each split and class, and
decodes every image completely. The exit status is 0 if no image is missing or broken,
else 1. Only --archives writes to DIR.
"""

import os
import re
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from rich.progress import track
from rich.table import Table

from .data.archives import HOW_TO, ILSVRC2012, unpack
from .data.arrays import load_idx
from .data.batches import cores
from .data.dataset import Broken
from .data.folders import explain, read_image
from .data.index import Index, Tree, is_tree, read_index
from .data.pixels import BrokenImage
from .flags import check, check_number, read_flags
from .terminal import Terminal, printable

_CHUNK = 64  # images that a thread decodes in one go
_SHOWN = 20  # the most broken images to print
# In the list of broken images.
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_BY_SUFFIX = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP"}


@dataclass(frozen=True)
class Arguments:
    #: Folder with images as train/CLASS/IMAGE, and the same under val, test or both; or
    #: with the IDX files of MNIST or Fashion-MNIST.
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    #: Folder with the three archives of ImageNet (ILSVRC2012) to unpack into DIR first.
    #: If not given, nothing is unpacked.
    archives: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    #: Number of threads that decode images. The default is the number of CPU cores that
    #: this process may use.
    workers: int = field(default_factory=cores)
    #: File for a list of the broken images, one to a line: path, tab, reason. In both
    #: texts, \\, \t, \n and \r stand for a backslash, a tab, a newline and a carriage
    #: return. If not given, the list is not written.
    report: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None

    def __post_init__(self) -> None:
        check_number("--workers", self.workers, low=1, high=1_024)
        # Before hours of decoding, not after them.
        if self.report is not None:
            there = os.path.exists(self.report)
            where = self.report if there else os.path.dirname(self.report) or "."
            ok = os.access(where, os.W_OK) and not os.path.isdir(self.report)
            remedy = "give a file that can be written, in a folder that exists"
            check(ok, "report", self.report, remedy)


class Image(NamedTuple):
    """The size in pixels, path and format of an image file that could be decoded."""

    pixels: int
    size: str
    path: str
    odd: str | None  # its format, if that is unusual for the file's suffix


@dataclass
class Survey:
    """What checking a folder found: broken, unusual, smallest and largest images."""

    broken: list[Broken] = field(default_factory=list)
    odd: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    smallest: Image | None = None
    largest: Image | None = None

    def add(self, found: Image | Broken) -> None:
        if isinstance(found, Broken):
            self.broken.append(found)
            return
        if found.odd:
            self.odd[found.odd].append(found.path)
        self.smallest = min(self.smallest or found, found)
        self.largest = max(self.largest or found, found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks a folder of images, and returns the exit status of the command.

    Errors raise SystemExit with a message.
    """
    console = Terminal()
    try:
        options: Arguments = read_flags(
            Arguments,
            "examples.imagenet.prepare",
            arguments,
            description="Check a folder of images, and unpack ImageNet's archives.",
        )
        if options.archives:
            _unpack(Path(options.archives), Path(options.folder), console)
        return _check(options, console)
    except (ValueError, OSError) as error:
        lines = [printable(f"error: {error}"), *getattr(error, "__notes__", ())]
        raise SystemExit("\n".join(lines)) from None
    except KeyboardInterrupt:
        console.print(
            "stopped; the same command continues to unpack, or starts the check again"
        )
        raise SystemExit(128 + signal.SIGINT) from None


def _unpack(archives: Path, folder: Path, console: Terminal) -> None:
    total, hidden = ILSVRC2012.train + ILSVRC2012.validation, not console.is_terminal
    images = unpack(archives, folder, ILSVRC2012)
    new = sum(track(images, "unpacking", total, console=console, disable=hidden))
    console.print(f"unpacked {new:,} images; {total - new:,} were there already")


def _check(options: Arguments, console: Terminal) -> int:
    folder = options.folder
    try:
        if not os.path.isdir(folder):
            raise ValueError(
                f"DIR: got {folder!r}, which is not a folder; give one with images as"
                " train/CLASS/IMAGE, or with MNIST's IDX files"
            )
        if not is_tree(folder):
            remedy = "leave it out, because DIR has no train/CLASS with image files"
            check(options.report is None, "report", options.report, remedy)
            data = load_idx(folder, 0)
            console.print(
                f"{folder!r}: IDX files, {data.train.size:,} images to train,"
                f" {data.test.size:,} to test, {data.classes} classes"
            )
            return 0
        index = read_index(folder)
    except ValueError as error:
        # The trainer's flag --data is this command's argument DIR.
        refused = ValueError(str(error).replace("--data:", "DIR:", 1))
        refused.add_note(f"\n{HOW_TO}")
        raise refused from error
    trees = {"train": index.train, "validation": index.validation, "test": index.test}
    present = {split: tree for split, tree in trees.items() if tree}
    console.print(_table(present, len(index.classes)))
    for note in index.notes:
        console.print(note)
    survey = _decode_all(list(present.values()), options.workers, console)
    _print_survey(survey, console)
    if options.report:
        rows = ("\t".join(map(_escaped, row)) for row in survey.broken)
        lines = "".join(f"{row}\n" for row in rows)
        Path(options.report).write_bytes(os.fsencode(lines))
    missing = _missing(index, present)
    for line in missing:
        console.print(f"missing: {line}")
    return 1 if missing or survey.broken else 0


def _escaped(text: str) -> str:
    """Returns the text without characters that end a line or a column of the list."""
    return text.translate(_ESCAPES)


def _table(trees: dict[str, Tree], classes: int) -> Table:
    """Returns a table of the number of images in each split and in its classes."""
    table = Table("split", "images", "classes", "fewest", "median", "most")
    for split, tree in trees.items():
        each = np.bincount(tree.labels, minlength=classes)
        spread = (each.min(), int(np.median(each)), each.max())
        counts = (tree.size, np.count_nonzero(each), *spread)
        table.add_row(split, *(f"{count:,}" for count in counts))
    return table


def _missing(index: Index, trees: dict[str, Tree]) -> list[str]:
    """Returns a message for each split that lacks images of a class or of ImageNet."""
    classes, found = len(index.classes), []
    for split, tree in trees.items():
        if absent := classes - len(np.unique(tree.labels)):
            found.append(f"{absent} of {classes} classes have no image in {split}")
    names = all(re.fullmatch(r"n\d{8}", name) for name in index.classes)
    if classes == ILSVRC2012.classes and names:
        for split in ("train", "validation"):
            size = trees[split].size if split in trees else 0
            expected = getattr(ILSVRC2012, split)
            if size != expected:
                text = f"ImageNet has {expected:,} images in {split}, not {size:,}"
                found.append(text)
    return found


def _decode_all(trees: list[Tree], workers: int, console: Terminal) -> Survey:
    survey, start = Survey(), time.monotonic()
    total = sum(tree.size for tree in trees)
    chunks = [(t, i) for t in trees for i in range(0, t.size, _CHUNK)]
    pool = ThreadPoolExecutor(workers)
    try:
        images = chain.from_iterable(pool.map(_inspect, *zip(*chunks, strict=True)))
        hidden = not console.is_terminal
        for image in track(images, "decoding", total, console=console, disable=hidden):
            survey.add(image)
    finally:
        pool.shutdown(cancel_futures=True)
    seconds = time.monotonic() - start
    console.print(
        f"decoded {total:,} images in {seconds:.1f} s, {total / seconds:,.0f} a second"
    )
    return survey


def _inspect(tree: Tree, start: int) -> list[Image | Broken]:
    """Decodes the `_CHUNK` images of the tree from index `start` on."""
    found: list[Image | Broken] = []
    for i in range(start, min(start + _CHUNK, tree.size)):
        path = tree.path(i)
        try:
            image, what = read_image(tree, i)
        except (OSError, BrokenImage) as error:
            found.append(Broken(path, explain(tree, error)))
            continue
        height, width, _ = image.shape
        suffix = os.path.splitext(path)[1].lower()
        plain = what == _BY_SUFFIX.get(suffix, suffix[1:].upper())
        odd = None if plain else f"{what} named {suffix}"
        found.append(Image(height * width, f"{width}×{height}", path, odd))
    return found


def _print_survey(survey: Survey, console: Terminal) -> None:
    for what, image in (("smallest", survey.smallest), ("largest", survey.largest)):
        if image:
            console.print(f"{what}: {image.size} pixels, {image.path!r}")
    for what, paths in sorted(survey.odd.items()):
        console.print(
            f"unusual but readable: {len(paths)} × {what}, for example {paths[0]!r}"
        )
    for path, reason in survey.broken[:_SHOWN]:
        console.print(f"broken: {path!r}: {reason}")
    console.print(f"{len(survey.broken):,} broken images")


if __name__ == "__main__":
    raise SystemExit(main())
