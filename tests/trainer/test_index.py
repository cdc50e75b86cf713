"""The index of a tree of class folders: what is in it, what is refused, its cache."""

import json
import os
import shutil
from pathlib import Path

import image_trees as images
import pytest
from cases import cases
from trees import assert_refused

from examples.imagenet.data.folders import load_folder
from examples.imagenet.data.index import is_tree, read_index

pytestmark = pytest.mark.usefixtures("cache")


def read(root, *cache):
    return read_index(str(root), *cache)


def test_labels_are_places_among_the_sorted_folders_of_train(tmp_path):
    odd = ("b/a.png", "b/Z.PNG", "a b/ä\n.jpeg", "é/\udcff.webp", "é/😀.bmp")
    images.write_tree(tmp_path, {f"train/{name}": os.fsencode(name) for name in odd})
    found = read(tmp_path)
    assert found.classes == ("a b", "b", "é")
    assert images.names(found.train) == sorted(odd, key=os.fsencode) != sorted(odd)
    assert found.train.labels.tolist() == [0, 1, 1, 2, 2]
    for i, name in enumerate(images.names(found.train)):
        assert Path(found.train.path(i)).read_bytes() == os.fsencode(name)


@pytest.mark.parametrize("folder", ["val", "Val", "valid", "validate", "validation"])
def test_every_usual_name_of_the_validation_folder_is_read(tmp_path, folder):
    images.write_classes(tmp_path, {"cat": 1, "dog": 2})
    images.write_classes(tmp_path, {"dog": 2}, folder)
    found = read(tmp_path)
    assert images.names(found.validation) == ["dog/0.png", "dog/1.png"]
    assert found.validation.labels.tolist() == [1, 1]
    assert found.test is None
    assert found.notes == (f"{folder}: classes without an image: 1 ('cat')",)


def test_other_names_of_train_and_test_are_read(tmp_path):
    for folder in ("Training", "testing"):
        images.write_classes(tmp_path, {"cat": 1}, folder)
    found = read(tmp_path)
    assert (found.train.size, found.test.size) == (1, 1)
    assert is_tree(str(tmp_path))


def test_folders_that_are_no_split_are_noted(tmp_path):
    images.write_classes(tmp_path, {"cat": 1})
    others = {"holdout/cat/1.png": b"", ".cache": None, "notes.txt": b""}
    images.write_tree(tmp_path, others)
    expected = "folders not read, because of their names: 2 ('.cache', 'holdout')"
    assert read(tmp_path).notes == (expected,)


@pytest.mark.parametrize("name", ["@eaDir", "lost+found", "__MACOSX", ".cache"])
def test_folders_of_the_system_are_no_classes(tmp_path, name):
    images.write_classes(tmp_path, {"cat": 1, name: 1})
    found = read(tmp_path)
    assert found.classes == ("cat",)
    note = f"train: entries in no class folder, not read: 1 ({name!r})"
    assert found.notes == (note,)


def test_everything_left_out_is_counted_and_named(tmp_path):
    images.write_flawed_tree(tmp_path)
    images.write_tree(tmp_path, {f"train/cat/{i}.txt": b"" for i in range(3)})
    assert read(tmp_path).notes == (
        "train: classes without an image: 1 ('eel')",
        "train: files that are not images by their names, not read:"
        " 5 ('cat/0.txt', 'cat/1.txt', 'cat/2.txt', …)",
        "train: folders inside class folders, not read: 1 ('dog/inner')",
        "train: entries in no class folder, not read: 1 ('loose.png')",
        "test: classes without an image: 2 ('dog', 'eel')",
    )


def test_a_test_folder_without_labels_is_noted_and_left_out(tmp_path):
    images.write_classes(tmp_path, {"cat": 1})
    images.write_tree(tmp_path, {"test/1.png": images.png(0)})
    found = read(tmp_path)
    assert found.test is None
    assert "test: entries in no class folder, not read: 1 ('1.png')" in found.notes


CAT = {"train/cat/1.png": b""}


@cases(
    "files, message",
    nothing=({}, "no folder train"),
    no_classes=({"train/1.png": b""}, "train has no class"),
    no_images=({"train/cat": None}, "no folder train/CLASS"),
    unsorted=(
        CAT | {"val/1.png": b""},
        "no folder val/CLASS has an image .*; sort the images of val .* remove val",
    ),
    two_validation_folders=(
        CAT | {"val/cat/1.png": b"", "validation/cat": None},
        "both val and validation",
    ),
    class_without_a_label=(
        CAT | {"test/dog/1.png": b"", "test/eel": None},
        r"test has classes that train lacks: 2 \('dog', 'eel'\)",
    ),
)
def test_trees_without_images_or_labels_are_refused(tmp_path, files, message):
    root = images.write_tree(tmp_path / "tree", {".keep": b"", **files})
    assert_refused(f"^--data: got .*{message}", read, root)


def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path):
    message = "--data: cannot list '.*absent': No such"
    assert_refused(message, read, tmp_path / "absent")


@pytest.fixture
def listed(monkeypatch):
    """The folders that are truly listed."""
    seen, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(path) or scandir(path))
    return seen


def contents(index):
    splits = [split for split in (index.train, index.test) if split]
    found = [(images.names(split), split.labels.tolist()) for split in splits]
    return found, index.notes, index.classes


def test_an_unchanged_tree_is_listed_once(tree, listed):
    first = contents(read(tree))
    assert len(listed) == 7  # the tree, its splits, their classes
    assert contents(read(tree)) == first
    assert len(listed) == 7


def test_a_folder_changed_a_moment_ago_is_listed_again(tree, listed):
    dog = os.path.join(tree, "train", "dog")
    os.utime(dog)
    for _ in range(2):
        read(tree)
    assert len(listed) == 8
    assert str(listed[-1]) == dog


CHANGES = {
    "file_added": lambda root: images.write_tree(root, {"train/cat/new.png": b""}),
    "file_removed": lambda root: (root / "test/cat/0.png").unlink(),
    "file_renamed": lambda root: rename(root / "train/dog", "0.png", "z.png"),
    "class_added": lambda root: images.write_tree(root, {"train/ant/new.png": b""}),
    "class_removed": lambda root: shutil.rmtree(root / "test/dog"),
    "class_renamed": lambda root: [rename(x, "cat", "zebra") for x in root.iterdir()],
    "split_removed": lambda root: shutil.rmtree(root / "test"),
}


def rename(folder, old, new):
    (folder / old).rename(folder / new)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("restored", [False, True], ids=["times", "restored_times"])
def test_every_change_of_a_cached_tree_is_seen(tmp_path, tree, change, restored):
    before = contents(read(tree))
    CHANGES[change](Path(tree))
    if restored:  # as by a copy that keeps the times of its source
        images.age(tree)
    after = contents(read(tree))
    assert after != before
    assert after == contents(read(tree, tmp_path / "another cache"))


@cases(
    "damage",
    cut=lambda whole: whole[: len(whole) // 2],
    foreign=lambda whole: "\0",
    list=lambda whole: json.dumps([1, 2]),
    deep=lambda whole: "[" * 10**5,
    other_key=lambda whole: whole.replace("index 1", "index 0"),
)
def test_a_cache_that_is_not_ours_is_rebuilt(tree, cache, listed, damage):
    first = contents(read(tree))
    (file,) = cache.iterdir()
    whole = file.read_text()
    assert damage(whole) != whole
    file.write_text(damage(whole))
    listed.clear()
    assert contents(read(tree)) == first
    assert len(listed) == 7
    assert file.read_text() == whole


# Any value of JSON, in place of all that is cached.
VALUES = (0, 1.5, True, "x", None, [], [1, 2], [[1], [2]], {}, {"": 1}, {"": None})
VALUES += ([["x"] * 3] * 2, [[-1.0] * 3] * 2, [[float("nan")] * 3] * 2, [[1.0] * 3])


@pytest.mark.parametrize("value", VALUES)
def test_a_cached_value_of_another_type_is_replaced(tree, cache, listed, value):
    first, moments = contents(read(tree)), load_folder(str(tree), 4, 28, "caffe")[4:]
    files = list(cache.iterdir())
    wholes = [json.loads(file.read_text()) for file in files]
    assert len(files) == 2
    for file, whole in zip(files, wholes, strict=True):
        file.write_text(json.dumps(whole | {"value": value}))
    listed.clear()
    assert contents(read(tree)) == first
    assert len(listed) == 7
    assert load_folder(str(tree), 4, 28, "caffe")[4:] == moments
    assert [json.loads(file.read_text()) for file in files] == wholes


@cases(
    "replace",
    number=lambda listing: 5,
    text=lambda listing: "stamp",
    empty=lambda listing: [],
    short=lambda listing: listing[:2],
    long=lambda listing: [*listing, "more"],
    names=lambda listing: [listing[0], 1, 2, 3],
    lists=lambda listing: [listing[0], [], [], []],
)
def test_a_cached_listing_of_another_type_is_replaced(tree, cache, listed, replace):
    first = contents(read(tree))
    (file,) = cache.iterdir()
    whole = json.loads(file.read_text())
    wrong = {name: replace(listing) for name, listing in whole["value"].items()}
    file.write_text(json.dumps(whole | {"value": wrong}))
    listed.clear()
    assert contents(read(tree)) == first
    assert len(listed) == 7
    assert json.loads(file.read_text()) == whole


def test_without_room_for_a_cache_the_tree_is_read_all_the_same(tree, cache):
    first = contents(read(tree))
    shutil.rmtree(cache)
    cache.write_bytes(b"a file where the folder should be")
    assert contents(read(tree)) == first


def test_what_could_be_waited_for_without_end_is_no_image(tree):
    folder = Path(tree) / "train" / "cat"
    os.mkfifo(folder / "pipe.jpg")
    links = {"ring.jpg": "ring.jpg", "nowhere.jpg": "gone.jpg", "linked.jpg": "0.png"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    found = read(tree)
    assert {f"cat/{name}" for name in links} < set(images.names(found.train))
    assert "cat/pipe.jpg" not in images.names(found.train)
    assert any("'cat/pipe.jpg'" in note for note in found.notes)


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("gone")])
def test_a_split_that_is_no_folder_is_refused(tmp_path, make):
    images.write_classes(tmp_path, {"cat": 1})
    make(tmp_path / "val")
    assert_refused("val is not a folder, or is a link", read_index, str(tmp_path))


def test_a_ring_of_links_beside_the_splits_is_passed_over(tmp_path):
    images.write_classes(tmp_path, {"cat": 1})
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert is_tree(str(tmp_path))
