"""Lists the images of a tree of class folders with their labels, without opening them.

Images are DIR/train/CLASS/IMAGE, and optionally the same in DIR/val and in DIR/test;
other usual names of the three splits do as well. The label of a class is its position
among the sorted folders of train. Listings are cached, because network disks are slow:
a folder is listed again only if its times or its inode have changed. Files that are
left out are reported. Raises ValueError if a split has a class that train lacks.
"""

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeGuard

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Names of a split's folder, in upper or lower case; messages give the first.
_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing"),
}
# Folders that systems leave beside those of their users.
_SYSTEM = {"@eadir", "lost+found", "__macosx", "$recycle.bin"}
_KEY = f"index 1 {SUFFIXES}"
_TICK = 2_000_000_000  # longest resolution of the times that a file system keeps [ns]


class Tree(NamedTuple):
    """The file names and labels of the images of one split, sorted by name."""

    folder: Path
    names: np.ndarray  # bytes [n], CLASS/IMAGE; far smaller than a list of str
    labels: np.ndarray  # int32 [n]

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.labels)

    def path(self, i: int) -> str:
        """Returns the path of image i."""
        return os.path.join(self.folder, os.fsdecode(self.names[i]))

    def take(self, index: np.ndarray) -> "Tree":
        """Returns a tree with only the images at these indices."""
        return Tree(self.folder, self.names[index], self.labels[index])


class Index(NamedTuple):
    """The image files and labels of each split; None for a split without a folder."""

    classes: tuple[str, ...]  # a label is a position here
    train: Tree
    validation: Tree | None
    test: Tree | None
    notes: tuple[str, ...]  # what is missing or was left out, for the user to read


class _Listing(NamedTuple):
    """The names of the images, other files and subfolders in one folder.

    Each field has the sorted names of one kind, joined by "/", which no name contains.
    """

    stamp: list[int]  # the folder's times and inode when it was listed
    images: str = ""
    others: str = ""
    folders: str = ""


class _Lister:
    """Lists the folders of a data set; reads unchanged folders from a cache."""

    def __init__(self, root: str, cache: Path) -> None:
        self._root, self._cache = os.path.abspath(root), cache
        known = recall(cache, self._root, _KEY)
        self._known = known if isinstance(known, dict) else {}
        self._found: dict[str, _Listing] = {}
        self._start = time.time_ns()

    def read(self, name: str) -> _Listing:
        if name not in self._found:
            path = Path(self._root, name)
            try:
                stat = path.stat()
                stamp = [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
                known = self._known.get(name)
                if _is_listing(known) and known[0] == stamp:
                    listing = _Listing(*known)
                else:
                    listing = _list(path, stamp)
            except OSError as error:
                raise ValueError(
                    f"--data: cannot list {str(path)!r}: {error.strerror}; give a"
                    " folder that exists and may be read"
                ) from None
            self._found[name] = listing
        return self._found[name]

    def save(self) -> None:
        """Caches the listings of all folders but those that changed a moment ago.

        Another change within the resolution of the clock would not change their times.
        """
        latest = self._start - _TICK
        settled = {n: x for n, x in self._found.items() if x.stamp[0] < latest}
        if any(self._known.get(name) != list(x) for name, x in settled.items()):
            remember(self._cache, self._root, _KEY, settled)


def _is_listing(value: Any) -> TypeGuard[list[Any]]:
    """Whether a value from the cache is a `_Listing`, as a list."""
    n = len(_Listing._fields)
    ok = isinstance(value, list) and len(value) == n
    return ok and all(isinstance(names, str) for names in value[1:])


def _list(path: Path, stamp: list[int]) -> _Listing:
    found = defaultdict[str, list[str]](list)
    with os.scandir(path) as entries:
        for entry in entries:
            found[_kind(entry)].append(entry.name)
    joined = {k: "/".join(sorted(x, key=os.fsencode)) for k, x in found.items()}
    return _Listing(stamp, **joined)


def _kind(entry: os.DirEntry[str]) -> str:
    """Returns the field of `_Listing` in which an entry of a folder is listed.

    Pipes and devices are "others", since reading one might never end. A link that leads
    nowhere counts as an image, so that reading it reports it as broken.
    """
    try:
        if entry.is_dir():
            return "folders"
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
        file = dangling or entry.is_file()
    except OSError:  # links that lead to each other
        file = True
    image = file and entry.name.lower().endswith(SUFFIXES) and not _hidden(entry.name)
    return "images" if image else "others"


def cache_folder() -> Path:
    """Returns the folder that keeps listings and pixel statistics between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "lars_optax"


def recall(cache: Path, name: str, key: str) -> Any:
    """Returns the value that `remember` stored under `name` in the folder `cache`.

    Returns None if there is no such value or if it was stored with another key.
    """
    try:
        kept = json.loads(_file(cache, name).read_bytes())
        return kept["value"] if kept["for"] == [name, key] else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def remember(cache: Path, name: str, key: str, value: Any) -> None:
    """Stores a JSON value in the folder `cache`, for `recall` with the same key.

    An interrupted call leaves the value that was stored before.
    The call does nothing if the folder cannot be written.
    """
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


def is_tree(folder: str) -> bool:
    """Returns whether a folder has a folder of training images."""
    try:
        found = {e.name.lower() for e in os.scandir(folder) if os.path.isdir(e)}
    except OSError:
        return False
    return not found.isdisjoint(_NAMES["train"])


def _find_splits(folder: str, entries: Iterable[str]) -> dict[str, str]:
    """Returns which of these entries is "train", which "val" and which "test".

    Raises ValueError if two of them are usual names of the same split.
    """
    found: dict[str, str] = {}
    for name in sorted(entries):
        for split, names in _NAMES.items():
            if name.lower() in names and found.setdefault(split, name) != name:
                why = f"both {found[split]} and {name} name the {split} images"
                _refuse(folder, f"{why}; rename or remove one")
    return found


def read_index(folder: str, cache: Path | None = None) -> Index:
    """Returns the images and labels in the training and other splits of a folder.

    Listings are cached in the folder `cache`; None for the user's cache folder. Raises
    ValueError if there are no training images, no validation images in a validation
    folder, or images of a class that the training folder lacks.
    """
    lister = _Lister(folder, cache or cache_folder())
    top = lister.read("")
    present = _parts(top.folders)
    for name in _find_splits(folder, _parts(top.others) + _parts(top.images)).values():
        why = f"{name} is not a folder, or is a link to one that is gone"
        _refuse(folder, f"{why}; bring it back, or remove {name}")
    splits = _find_splits(folder, present)
    if "train" not in splits:
        _refuse(folder, "it has no folder train; give one with train/CLASS/IMAGE")
    train = splits["train"]
    classes = [c for c in _parts(lister.read(train).folders) if not _hidden(c)]
    if not classes:
        _refuse(folder, f"{train} has no class folders; give one with {train}/CLASS")
    notes: list[str] = []
    if unread := sorted(set(present) - set(splits.values())):
        notes.append(f"folders not read, because of their names: {_some(unread)}")
    root = Path(folder)
    trees = {
        split: _read_split(lister, root, splits[split], classes, notes)
        for split in _NAMES
        if split in splits
    }
    lister.save()
    for split, tree in trees.items():
        # A test folder may be without labels, as ImageNet's own is.
        if not tree.size and split != "test":
            name = splits[split]
            why = f"no folder {name}/CLASS has an image ({', '.join(SUFFIXES)})"
            sort = f"sort the images of {name} into class folders"
            remedy = "" if split == "train" else f", or remove {name}"
            _refuse(folder, f"{why}; {sort}{remedy}")
    test = trees.get("test")
    return Index(
        tuple(classes),
        trees["train"],
        trees.get("val"),
        test if test and test.size else None,
        tuple(notes),
    )


def _read_split(
    lister: _Lister, root: Path, split: str, classes: Sequence[str], notes: list[str]
) -> Tree:
    """Returns the images of one split; adds to `notes` which files were left out."""
    top = lister.read(split)
    folders = _parts(top.folders)
    here = set(folders)
    foreign = sorted(c for c in here.difference(classes) if not _hidden(c))
    if foreign:
        why = f"{split} has classes that train lacks: {_some(foreign)}"
        _refuse(str(root), f"{why}; remove them, or add them to train")
    loose = _parts(top.images) + _parts(top.others) + [c for c in folders if _hidden(c)]
    others, nested, empty = list[str](), list[str](), list[str]()
    names = []
    for c in classes:
        listing = lister.read(f"{split}/{c}") if c in here else _Listing([])
        images = [os.fsencode(f"{c}/{image}") for image in _parts(listing.images)]
        names.append(np.array(images, np.bytes_))
        others += [f"{c}/{other}" for other in _parts(listing.others)]
        nested += [f"{c}/{inner}" for inner in _parts(listing.folders)]
        empty += [] if listing.images else [c]
    for what, items in (
        ("classes without an image", empty),
        ("files that are not images by their names, not read", others),
        ("folders inside class folders, not read", nested),
        ("entries in no class folder, not read", loose),
    ):
        notes += [f"{split}: {what}: {_some(items)}"] if items else []
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(n) for n in names])
    return Tree(root / split, np.concatenate(names), labels)


def _parts(joined: str) -> list[str]:
    """Returns the names that are joined by "/" in a field of `_Listing`."""
    return joined.split("/") if joined else []


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _some(items: list[str]) -> str:
    """Returns a text for a message: the number of items and the first three of them."""
    return f"{len(items)} ({', '.join(map(repr, items[:3]))}{', …' * (len(items) > 3)})"


def _refuse(folder: str, why: str) -> NoReturn:
    raise ValueError(f"--data: got {folder!r}; {why}")
