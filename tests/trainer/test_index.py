"""The index of a tree of class folders: what is in it, what is refused, its cache."""

import json
import os
import shutil
from pathlib import Path

import pytest
from image_trees import (
    age,
    names,
    png,
    read_bytes,
    write_classes,
    write_flawed_tree,
    write_tree,
)

from examples.imagenet.data import index

pytestmark = pytest.mark.usefixtures("cache")


def test_labels_are_places_among_the_sorted_folders_of_train(tmp_path):
    odd = ("b/a.png", "b/Z.PNG", "a b/ä\n.jpeg", "é/\udcff.webp", "é/😀.bmp")
    write_tree(tmp_path, {f"train/{name}": os.fsencode(name) for name in odd})
    found = index.read_index(str(tmp_path))
    assert found.classes == ("a b", "b", "é")
    assert names(found.train) == sorted(odd, key=os.fsencode) != sorted(odd)
    assert found.train.labels.tolist() == [0, 1, 1, 2, 2]
    for i, name in enumerate(names(found.train)):
        assert read_bytes(found.train.path(i)) == os.fsencode(name)


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_both_names_of_the_validation_folder_are_read(tmp_path, folder):
    write_classes(tmp_path, {"cat": 1, "dog": 2})
    write_classes(tmp_path, {"dog": 2}, folder)
    found = index.read_index(str(tmp_path))
    assert names(found.validation) == ["dog/0.png", "dog/1.png"]
    assert found.validation.labels.tolist() == [1, 1]
    assert found.test is None
    assert found.notes == (f"{folder}: classes without an image: 1 ('cat')",)


def test_everything_left_out_is_counted_and_named(tmp_path):
    write_flawed_tree(tmp_path)
    write_tree(tmp_path, {f"train/cat/{i}.txt": b"" for i in range(3)})
    assert index.read_index(str(tmp_path)).notes == (
        "train: classes without an image: 1 ('eel')",
        "train: files that are not images by their names, not read:"
        " 5 ('cat/0.txt', 'cat/1.txt', 'cat/2.txt', …)",
        "train: folders inside class folders, not read: 1 ('dog/inner')",
        "train: entries in no class folder, not read: 1 ('loose.png')",
        "test: classes without an image: 2 ('dog', 'eel')",
    )


def test_a_test_folder_without_labels_is_noted_and_left_out(tmp_path):
    write_classes(tmp_path, {"cat": 1})
    write_tree(tmp_path, {"test/1.png": png(0)})
    found = index.read_index(str(tmp_path))
    assert found.test is None
    assert "test: entries in no class folder, not read: 1 ('1.png')" in found.notes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({}, "no folder train", id="nothing"),
        pytest.param({"train/1.png": b""}, "train has no class", id="no_classes"),
        pytest.param({"train/cat": None}, "no folder train/CLASS", id="no_images"),
        pytest.param(
            {"train/cat/1.png": b"", "val/1.png": b""},
            "no folder val/CLASS has an image; sort the images of val .* remove val",
            id="unsorted_validation",
        ),
        pytest.param(
            {"train/cat/1.png": b"", "val/cat/1.png": b"", "validation/cat": None},
            "both val and validation",
            id="two_validation_folders",
        ),
        pytest.param(
            {"train/cat/1.png": b"", "test/dog/1.png": b"", "test/eel": None},
            r"test has classes that train lacks: 2 \('dog', 'eel'\)",
            id="class_without_a_label",
        ),
    ],
)
def test_trees_without_images_or_labels_are_refused(tmp_path, files, message):
    root = write_tree(tmp_path / "tree", {".keep": b"", **files})
    with pytest.raises(ValueError, match=f"^--data: got .*{message}"):
        index.read_index(str(root))


def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path, tree):
    with pytest.raises(ValueError, match=r"--data: cannot list '.*absent': No such"):
        index.read_index(str(tmp_path / "absent"))


@pytest.fixture
def listed(monkeypatch):
    """The folders that are truly listed."""
    seen = []
    scandir = os.scandir

    def spy(path):
        seen.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spy)
    return seen


def same(found, other):
    a, b = (
        [(names(t), t.labels.tolist()) for t in (i.train, i.test) if t]
        + [i.notes, i.classes]
        for i in (found, other)
    )
    return a == b


def test_an_unchanged_tree_is_listed_once(tree, listed):
    first = index.read_index(tree)
    assert len(listed) == 7  # the tree, its splits, their classes
    assert same(index.read_index(tree), first)
    assert len(listed) == 7


def test_a_folder_changed_a_moment_ago_is_listed_again(tree, listed):
    dog = os.path.join(tree, "train", "dog")
    os.utime(dog)
    for _ in range(2):
        index.read_index(tree)
    assert len(listed) == 8
    assert listed[-1] == dog


CHANGES = {
    "file_added": lambda root: write_tree(root, {"train/cat/new.png": b""}),
    "file_removed": lambda root: os.remove(f"{root}/test/cat/0.png"),
    "file_renamed": lambda root: os.rename(
        f"{root}/train/dog/0.png", f"{root}/train/dog/z.png"
    ),
    "class_added": lambda root: write_tree(root, {"train/ant/new.png": b""}),
    "class_removed": lambda root: shutil.rmtree(f"{root}/test/dog"),
    "class_renamed": lambda root: [
        os.rename(f"{root}/{split}/cat", f"{root}/{split}/zebra")
        for split in ("train", "test")
    ],
    "split_removed": lambda root: shutil.rmtree(f"{root}/test"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("restored", [False, True], ids=["times", "restored_times"])
def test_every_change_of_a_cached_tree_is_seen(tmp_path, tree, change, restored):
    before = index.read_index(tree)
    CHANGES[change](tree)
    if restored:  # as by a copy that keeps the times of its source
        age(tree)
    after = index.read_index(tree)
    assert not same(after, before)
    assert same(after, index.read_index(tree, tmp_path / "another cache"))


@pytest.mark.parametrize("damage", ["cut", "foreign", "list", "other_key"])
def test_a_cache_that_is_not_ours_is_rebuilt(tree, cache, listed, damage):
    first = index.read_index(tree)
    (file,) = cache.iterdir()
    whole = file.read_text()
    other = whole.replace("index 1", "index 0")
    assert other != whole
    file.write_text(
        {
            "cut": whole[: len(whole) // 2],
            "foreign": "\0",
            "list": json.dumps([1, 2]),
            "other_key": other,
        }[damage]
    )
    listed.clear()
    assert same(index.read_index(tree), first)
    assert len(listed) == 7
    assert file.read_text() == whole


def test_without_room_for_a_cache_the_tree_is_read_all_the_same(tree, tmp_path, cache):
    first = index.read_index(tree)
    shutil.rmtree(cache)
    cache.write_bytes(b"a file where the folder should be")
    assert same(index.read_index(tree), first)


def test_what_could_be_waited_for_without_end_is_no_image(tree):
    folder = Path(tree) / "train" / "cat"
    os.mkfifo(folder / "pipe.jpg")
    (folder / "ring.jpg").symlink_to("ring.jpg")
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "linked.jpg").symlink_to("0.png")
    found = index.read_index(tree)
    assert {"cat/ring.jpg", "cat/nowhere.jpg", "cat/linked.jpg"} < set(
        names(found.train)
    )
    assert "cat/pipe.jpg" not in names(found.train)
    assert any("'cat/pipe.jpg'" in note for note in found.notes)
