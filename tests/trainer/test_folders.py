"""Images of class folders, read while training runs."""

import os
import shutil
from pathlib import Path

import image_trees as images
import numpy as np
import pytest
from cases import cases
from trees import assert_refused

from examples.imagenet.data import folders, index
from examples.imagenet.data.folders import ImageFolder, load_folder
from examples.imagenet.data.pixels import (
    BrokenImage,
    decode,
    for_evaluation,
    for_training,
)
from examples.imagenet.data.sources import fingerprint

pytestmark = pytest.mark.usefixtures("cache")


def load(tree, held_out=0, pixels=28, augment="caffe"):
    return load_folder(str(tree), held_out, pixels, augment)


def sizes(data):
    return [source.size for source in data[:3]]


def stored(source):
    return [Path(source.tree.path(i)).read_bytes() for i in range(source.size)]


def test_held_out_images_are_the_end_of_a_fixed_permutation_of_train(tree):
    data = load(tree, 6)
    assert sizes(data) == [10, 6, 4]
    assert (data.classes, data.image_shape) == (2, (28, 28, 3))
    everything = stored(data.train) + stored(data.validation) + stored(data.test)
    assert len(set(everything)) == 20
    assert stored(load(tree, 4).validation) == stored(data.validation)[-4:]
    whole = index.read_index(tree).train
    order = np.random.RandomState(0).permutation(16)
    assert images.names(data.validation.tree) == images.names(whole.take(order[10:]))
    np.testing.assert_array_equal(data.validation.tree.labels, whole.labels[order[10:]])


def test_a_folder_of_validation_images_is_the_validation_split(tree):
    images.write_classes(tree, {"cat": 1, "dog": 1}, "val")
    shutil.rmtree(f"{tree}/test")
    data = load(tree, 10**9)
    assert sizes(data) == [16, 2, 0]
    assert images.names(data.validation.tree) == ["cat/0.png", "dog/0.png"]


def test_validation_that_leaves_nothing_to_train_on_is_refused(tree):
    assert_refused("--validation-images: got 16, .* at most 15", load, tree, 16)


def evaluated(source):
    """Every image that can be read, by the stored pixels' own path."""
    decoded = [decode(raw).pixels for raw in stored(source)]
    return np.stack([for_evaluation(image, 28, "caffe") for image in decoded])


def test_mean_and_deviation_are_those_of_each_channel_of_the_training_images(tree):
    data = load(tree, 4)
    seen = evaluated(data.train).astype(np.float64)
    mean = seen.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(data.pixel_mean, mean, rtol=1e-9)
    np.testing.assert_allclose(data.pixel_std, seen.std(axis=(0, 1, 2)), rtol=1e-9)
    assert data.train.blank == tuple(np.rint(mean).astype(int))


def test_images_that_cannot_be_read_are_no_part_of_the_mean(tree):
    clean = load(tree)
    images.write_tree(tree, {"train/cat/x.png": b"broken", "train/dog/x.png": b""})
    data = load(tree)
    assert data.train.size == clean.train.size + 2
    np.testing.assert_allclose(data.pixel_mean, clean.pixel_mean, rtol=1e-12)


def test_a_tree_whose_every_image_is_broken_is_refused(tmp_path):
    images.write_tree(tmp_path, {"train/cat/1.png": b"", "train/dog/1.png": b"x"})
    assert_refused("--data: none of 2 images", load, tmp_path)


def test_mean_and_deviation_are_kept_until_images_or_form_change(tree, monkeypatch):
    first = load(tree)
    calls = []
    monkeypatch.setattr(folders, "decode", lambda raw: calls.append(1) or decode(raw))
    again = load(tree)
    assert (again.pixel_mean, again.pixel_std) == (first.pixel_mean, first.pixel_std)
    assert not calls
    load(tree, augment="rrc")
    load(tree, pixels=14)
    assert len(calls) == 32
    black = images.encoded(np.zeros((32, 32, 3), np.uint8))
    images.write_tree(tree, {"train/cat/0.png": black})
    assert (np.array(load(tree).pixel_mean) < first.pixel_mean).all()


def source(tree, augment="caffe"):
    return ImageFolder(index.read_index(tree).train, 28, augment, (1, 2, 3))


def test_images_are_taken_with_their_labels_in_the_order_asked_for(tree):
    whole, order = source(tree), np.array([12, 0, 15, 0])
    loaded = whole.take(order)
    np.testing.assert_array_equal(loaded.images, evaluated(whole)[order])
    assert loaded.labels.tolist() == [1, 0, 1, 0]
    assert loaded.labels.dtype == np.int32
    assert (loaded.mirror, loaded.broken) == (None, ())


@pytest.mark.parametrize("augment", ["caffe", "rrc"])
def test_training_draws_are_a_function_of_seed_epoch_and_image_alone(tree, augment):
    whole, raws = source(tree, augment), stored(source(tree))
    order, epochs = np.array([3, 3, 9, 15, 3]), np.array([0, 1, 0, 7, 0])
    loaded = whole.take_augmented(order, 5, epochs)
    for place, (i, epoch) in enumerate(zip(order, epochs, strict=True)):
        random = np.random.RandomState([5, epoch, i])
        crop, mirror = for_training(decode(raws[i]).pixels, 28, augment, random)
        np.testing.assert_array_equal(loaded.images[place], crop)
        assert loaded.mirror[place] == mirror
    everyone = np.arange(16)
    first, second = (whole.take_augmented(everyone, s, 0 * everyone) for s in (5, 6))
    assert (first.images != second.images).any()
    assert 0 < first.mirror.sum() < 16


def test_center_takes_the_same_images_in_training(tree):
    whole, everyone = source(tree, "center"), np.arange(16)
    loaded = whole.take_augmented(everyone, 5, everyone)
    np.testing.assert_array_equal(loaded.images, whole.take(everyone).images)
    assert loaded.mirror is None


def test_what_cannot_be_read_is_named_and_stands_in_as_one_colour(tmp_path):
    whole = source(str(images.write_flawed_tree(tmp_path)))
    every = np.arange(whole.size)
    for loaded in (whole.take(every), whole.take_augmented(every, 0, every)):
        named = {Path(path).name: reason for path, reason in loaded.broken}
        assert sorted(named) == images.BROKEN
        assert named["dangling.png"] == "No such file or directory"
        blank = (loaded.images == (1, 2, 3)).all(axis=(1, 2, 3))
        paths = [whole.tree.path(int(i)) for i in np.flatnonzero(blank)]
        assert paths == [path for path, _ in loaded.broken]
        np.testing.assert_array_equal(loaded.labels, whole.tree.labels)


def test_a_folder_that_has_gone_ends_the_run(tree):
    whole = source(tree)
    shutil.rmtree(f"{tree}/train")
    with pytest.raises(OSError, match=r"--data: '.*train' no longer exists"):
        whole.take(np.arange(3))


def make_huge(path):
    """A terabyte of zeros, none of which takes space on the disk."""
    with path.open("wb") as file:
        file.truncate(2**40)


@cases(
    "make, reason",
    pipe=(os.mkfifo, "not a file, but a pipe"),
    device=(
        lambda path: path.symlink_to("/dev/zero"),
        "not a file, but a pipe, a device",
    ),
    huge=(make_huge, "1,099,511,627,776 bytes; a file may have at most 134,217,728"),
)
def test_what_takes_the_place_of_an_image_is_refused_before_it_is_read(
    tree, make, reason
):
    found = index.read_index(tree).train
    image = Path(found.path(0))
    image.unlink()
    make(image)
    with pytest.raises(BrokenImage, match=reason):
        folders.read_image(found, 0)


def other_pixels(root):
    """Another image under the name of each."""
    for seed, path in enumerate(root.glob("train/*/*.png")):
        path.write_bytes(images.png(1_000 + seed))


def one_size(root):
    with (root / "train" / "cat" / "0.png").open("ab") as file:
        file.write(b"after the end")


def one_name(root):
    (root / "test" / "cat" / "0.png").rename(root / "test" / "cat" / "zero.png")


@pytest.mark.parametrize("change", [other_pixels, one_size, one_name])
def test_the_fingerprint_is_of_the_contents_wherever_they_are(tree, tmp_path, change):
    first = fingerprint(load(tree, 4))
    copy = shutil.copytree(tree, tmp_path / "copy")
    assert fingerprint(load(copy, 4)) == first
    change(copy)
    assert fingerprint(load(copy, 4)) != first
