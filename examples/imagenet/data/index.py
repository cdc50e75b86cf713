"""Which images a tree of class folders holds, and their labels, without opening any.

DIR/train/CLASS/IMAGE, and the same under DIR/val (or validation) and DIR/test, each
optional. A label is the place of its class among the sorted folders of train. Listings
are cached per folder, for network disks: one is read again once its folder's times or
inode change. What is left out is named; a class without a label is refused.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_ROLES = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
_KEY = f"index 1 {SUFFIXES}"
_TICK = 2_000_000_000  # the coarsest clock of a file system [ns]


class Tree(NamedTuple):
    """The images of one split, in the order of their names' bytes."""

    folder: Path
    names: np.ndarray  # bytes [n], CLASS/IMAGE; far smaller than a list of str
    labels: np.ndarray  # int32 [n]

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.labels)

    def path(self, i: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.names[i]))

    def take(self, index: np.ndarray) -> "Tree":
        return Tree(self.folder, self.names[index], self.labels[index])


class Index(NamedTuple):
    classes: tuple[str, ...]  # a label is a position here
    train: Tree
    validation: Tree | None
    test: Tree | None
    notes: tuple[str, ...]  # what is missing or was left out


class _Listing(NamedTuple):
    """What a folder holds, sorted, joined by the "/" that no name contains."""

    stamp: list[int]
    images: str = ""
    others: str = ""
    folders: str = ""


class _Lister:
    """Lists folders, or remembers them as they were."""

    def __init__(self, root: str, cache: Path) -> None:
        self._root, self._cache = os.path.abspath(root), cache
        self._known = recall(cache, self._root, _KEY) or {}
        self._found: dict[str, _Listing] = {}
        self._start = time.time_ns()

    def read(self, name: str) -> _Listing:
        if name not in self._found:
            path = Path(self._root, name)
            try:
                self._found[name] = self._read(name, path)
            except OSError as error:
                raise ValueError(
                    f"--data: cannot list {str(path)!r}: {error.strerror}; give a"
                    " folder that can be read"
                ) from None
        return self._found[name]

    def _read(self, name: str, path: Path) -> _Listing:
        stat = path.stat()
        stamp = [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        if name in self._known and self._known[name][0] == stamp:
            return _Listing(*self._known[name])
        return _list(path, stamp)

    def save(self) -> None:
        # A later change in the same tick of the clock would leave the time as it is.
        settled = {
            name: listing
            for name, listing in self._found.items()
            if self._start - listing.stamp[0] > _TICK
        }
        if any(self._known.get(name) != list(x) for name, x in settled.items()):
            remember(self._cache, self._root, _KEY, settled)


def _list(path: Path, stamp: list[int]) -> _Listing:
    images, others, folders = [], [], []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            kind = _kind(entry)
            if kind == "folder":
                folders.append(name)
            elif (
                kind == "file" and name.lower().endswith(SUFFIXES) and not _hidden(name)
            ):
                images.append(name)
            else:
                others.append(name)
    joined = ("/".join(sorted(x, key=os.fsencode)) for x in (images, others, folders))
    return _Listing(stamp, *joined)


def _kind(entry: os.DirEntry[str]) -> str:
    """What is there: "folder", "file", or "other", as a pipe, which may never end."""
    try:
        if entry.is_dir():
            return "folder"
        # A link to nowhere is a file that reading will find broken.
        nowhere = entry.is_symlink() and not os.path.exists(entry.path)
        return "file" if nowhere or entry.is_file() else "other"
    except OSError:  # a ring of links
        return "file"


def cache_folder() -> Path:
    """Where listings and statistics are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "lars_optax"


def recall(cache: Path, name: str, key: str) -> Any:
    """What `remember` kept under that name, None if nothing or of another key."""
    try:
        kept = json.loads(_file(cache, name).read_bytes())
        return kept["value"] if kept["for"] == [name, key] else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def remember(cache: Path, name: str, key: str, value: Any) -> None:
    """Keeps a JSON value, whole or not at all; a folder without room is no error."""
    file = _file(cache, name)
    beside = file.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(json.dumps({"for": [name, key], "value": value}))
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)


def _file(cache: Path, name: str) -> Path:
    return cache / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"


def read_index(folder: str, cache: Path | None = None) -> Index:
    """The images of a folder's splits; raises ValueError where one has no label."""
    lister = _Lister(folder, cache or cache_folder())
    present = _parts(lister.read("").folders)
    roles = {role: [n for n in names if n in present] for role, names in _ROLES.items()}
    if not roles["train"]:
        _refuse(folder, "it has no folder train; give one with train/CLASS/IMAGE")
    if len(roles["validation"]) > 1:
        _refuse(folder, "it has both val and validation; remove one")
    classes = [c for c in _parts(lister.read("train").folders) if not _hidden(c)]
    if not classes:
        _refuse(folder, "train has no folder of a class; give one with train/CLASS")
    notes: list[str] = []
    trees = {
        role: _read_split(lister, Path(folder), names[0], classes, notes)
        for role, names in roles.items()
        if names
    }
    lister.save()
    validation, test = trees.get("validation"), trees.get("test")
    if not trees["train"].size:
        _refuse(folder, "no folder train/CLASS has an image; give one where they do")
    if validation and not validation.size:
        name = roles["validation"][0]
        _refuse(
            folder, f"no folder {name}/CLASS has an image; sort {name} or remove it"
        )
    # ImageNet's own test images come without labels.
    test = test if test and test.size else None
    return Index(tuple(classes), trees["train"], validation, test, tuple(notes))


def _read_split(
    lister: _Lister, root: Path, split: str, classes: Sequence[str], notes: list[str]
) -> Tree:
    top = lister.read(split)
    folders = _parts(top.folders)
    here = set(folders)
    foreign = sorted(c for c in here.difference(classes) if not _hidden(c))
    if foreign:
        _refuse(str(root), f"{split} has classes that train lacks: {_some(foreign)}")
    loose = _parts(top.images) + _parts(top.others) + [c for c in folders if _hidden(c)]
    others, nested, empty = list[str](), list[str](), list[str]()
    names = []
    for c in classes:
        listing = lister.read(f"{split}/{c}") if c in here else _Listing([])
        names.append(_names(f"{c}/", listing.images))
        others += [f"{c}/{other}" for other in _parts(listing.others)]
        nested += [f"{c}/{inner}" for inner in _parts(listing.folders)]
        empty += [] if listing.images else [c]
    for what, items in (
        ("classes without an image", empty),
        ("files that are no images by name", others),
        ("folders inside class folders, not read", nested),
        ("entries in no class folder, not read", loose),
    ):
        notes += [f"{split}: {what}: {_some(items)}"] if items else []
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(n) for n in names])
    return Tree(root / split, np.concatenate(names), labels)


def _parts(joined: str) -> list[str]:
    return joined.split("/") if joined else []


def _names(prefix: str, joined: str) -> np.ndarray:
    start = os.fsencode(prefix)
    names = os.fsencode(joined).split(b"/") if joined else []
    return np.array([start + name for name in names], np.bytes_)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _some(items: list[str]) -> str:
    """How many, and the first three."""
    return f"{len(items)} ({', '.join(map(repr, items[:3]))}{', …' * (len(items) > 3)})"


def _refuse(folder: str, why: str) -> NoReturn:
    raise ValueError(f"--data: got {folder!r}; {why}")
