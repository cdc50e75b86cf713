"""Images of class folders, read while training runs."""

import os
import shutil

import numpy as np
import pytest
from image_trees import (
    encoded,
    names,
    read_bytes,
    write_classes,
    write_flawed_tree,
    write_tree,
)

from examples.imagenet.data import folders, index
from examples.imagenet.data.folders import ImageFolder, load_folder
from examples.imagenet.data.pixels import decode, for_evaluation, for_training

pytestmark = pytest.mark.usefixtures("cache")


def stored(source):
    return [read_bytes(source.tree.path(i)) for i in range(source.size)]


def test_held_out_images_are_the_end_of_a_fixed_permutation_of_train(tree):
    data = load_folder(tree, 6, 28, "caffe")
    assert [source.size for source in data[:3]] == [10, 6, 4]
    assert (data.classes, data.image_shape) == (2, (28, 28, 3))
    everything = stored(data.train) + stored(data.validation) + stored(data.test)
    assert len(set(everything)) == 20
    smaller = load_folder(tree, 4, 28, "caffe").validation
    assert stored(smaller) == stored(data.validation)[-4:]
    whole = index.read_index(tree).train
    order = np.random.RandomState(0).permutation(16)
    assert names(data.validation.tree) == names(whole.take(order[10:]))
    np.testing.assert_array_equal(data.validation.tree.labels, whole.labels[order[10:]])


def test_a_folder_of_validation_images_is_the_validation_split(tree):
    write_classes(tree, {"cat": 1, "dog": 1}, "val")
    shutil.rmtree(os.path.join(tree, "test"))
    data = load_folder(tree, 10**9, 28, "caffe")
    assert [source.size for source in data[:3]] == [16, 2, 0]
    assert names(data.validation.tree) == ["cat/0.png", "dog/0.png"]


def test_validation_that_leaves_nothing_to_train_on_is_refused(tree):
    with pytest.raises(ValueError, match=r"--validation-images: got 16, .* at most 15"):
        load_folder(tree, 16, 28, "caffe")


def evaluated(source):
    """Every image that can be read, by the stored pixels' own path."""
    return np.stack(
        [for_evaluation(decode(raw), 28, "caffe") for raw in stored(source)]
    )


def test_mean_and_deviation_are_those_of_each_channel_of_the_training_images(tree):
    data = load_folder(tree, 4, 28, "caffe")
    images = evaluated(data.train).astype(np.float64)
    np.testing.assert_allclose(data.pixel_mean, images.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(data.pixel_std, images.std(axis=(0, 1, 2)), rtol=1e-9)
    assert data.train.blank == tuple(np.rint(images.mean(axis=(0, 1, 2))).astype(int))


def test_images_that_cannot_be_read_are_no_part_of_the_mean(tree):
    clean = load_folder(tree, 0, 28, "caffe")
    write_tree(tree, {"train/cat/x.png": b"broken", "train/dog/x.png": b""})
    data = load_folder(tree, 0, 28, "caffe")
    assert data.train.size == clean.train.size + 2
    np.testing.assert_allclose(data.pixel_mean, clean.pixel_mean, rtol=1e-12)


def test_a_tree_whose_every_image_is_broken_is_refused(tmp_path):
    write_tree(tmp_path / "tree", {"train/cat/1.png": b"", "train/dog/1.png": b"x"})
    with pytest.raises(ValueError, match="--data: none of 2 images"):
        load_folder(str(tmp_path / "tree"), 0, 28, "caffe")


def test_mean_and_deviation_are_kept_until_an_image_or_the_form_changes(
    tree, monkeypatch
):
    first = load_folder(tree, 0, 28, "caffe")
    calls = []
    monkeypatch.setattr(folders, "decode", lambda raw: calls.append(1) or decode(raw))
    again = load_folder(tree, 0, 28, "caffe")
    assert (again.pixel_mean, again.pixel_std) == (first.pixel_mean, first.pixel_std)
    assert not calls
    load_folder(tree, 0, 28, "rrc")
    load_folder(tree, 0, 14, "caffe")
    assert len(calls) == 32
    with open(os.path.join(tree, "train", "cat", "0.png"), "wb") as file:
        file.write(encoded(np.zeros((32, 32, 3), np.uint8)))
    changed = load_folder(tree, 0, 28, "caffe")
    assert (np.array(changed.pixel_mean) < first.pixel_mean).all()


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
        crop, mirror = for_training(decode(raws[i]), 28, augment, random)
        np.testing.assert_array_equal(loaded.images[place], crop)
        assert loaded.mirror[place] == mirror
    everyone = np.arange(16)
    first, second = (
        whole.take_augmented(everyone, seed, epochs)
        for seed, epochs in ((5, np.zeros(16, int)), (6, np.zeros(16, int)))
    )
    assert (first.images != second.images).any()
    assert 0 < first.mirror.sum() < 16


def test_center_takes_the_same_images_in_training(tree):
    whole, everyone = source(tree, "center"), np.arange(16)
    loaded = whole.take_augmented(everyone, 5, everyone)
    np.testing.assert_array_equal(loaded.images, whole.take(everyone).images)
    assert loaded.mirror is None


def test_what_cannot_be_read_is_named_and_stands_in_as_one_colour(tmp_path):
    write_flawed_tree(tmp_path)
    whole = source(str(tmp_path))
    everyone = np.arange(whole.size)
    for loaded in (
        whole.take(everyone),
        whole.take_augmented(everyone, 0, everyone),
    ):
        named = {os.path.basename(path): reason for path, reason in loaded.broken}
        assert sorted(named) == [
            "corrupt.jpg",
            "cut.jpg",
            "dangling.png",
            "empty.jpg",
            "words.jpg",
        ]
        assert named["dangling.png"] == "No such file or directory"
        blank = (loaded.images == (1, 2, 3)).all(axis=(1, 2, 3))
        paths = [whole.tree.path(int(i)) for i in np.flatnonzero(blank)]
        assert paths == [path for path, _ in loaded.broken]
        np.testing.assert_array_equal(loaded.labels, whole.tree.labels)


def test_a_folder_that_has_gone_ends_the_run(tree):
    whole = source(tree)
    shutil.rmtree(os.path.join(tree, "train"))
    with pytest.raises(OSError, match=r"--data: '.*train' is gone"):
        whole.take(np.arange(3))
