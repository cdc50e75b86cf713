"""The trainer's data: fixed splits, orders that are functions, checked files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from image_trees import write_idx

from examples.imagenet.data import arrays as data
from examples.imagenet.data.batches import epoch_order, visits
from examples.imagenet.data.sources import load

FASHION = Path("/usr/share/datasets/fashion-mnist")


def write_folder(folder, suffix="", train=40, test=10):
    """Four IDX files whose every image is filled with its own number."""
    for stem, n in (("train", train), ("t10k", test)):
        number = np.arange(n, dtype=np.uint8)
        images = np.broadcast_to(number[:, None, None], (n, 5, 4))
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", number % 10)


def test_mnist_split_is_fixed_stratified_and_disjoint():
    first, again = data.load_mnist(), data.load_mnist()
    images = [image.tobytes() for split in first[:3] for image in split.images]
    assert len(set(images)) == 5_000
    for split, other, each in zip(first[:3], again[:3], (320, 80, 100), strict=True):
        assert split.images.dtype == np.uint8
        assert split.images.shape == (10 * each, 28, 28, 1)
        np.testing.assert_array_equal(np.bincount(split.labels), [each] * 10)
        np.testing.assert_array_equal(split.images, other.images)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder_gives_back_every_image_with_its_label(tmp_path, suffix):
    write_folder(tmp_path, suffix)
    train, validation, test, classes, *_ = data.load_idx(str(tmp_path), 15)
    assert classes == 10
    for split in (train, validation, test):
        assert split.images.shape[1:] == (5, 4, 1)
        numbers = split.images[:, 0, 0, 0]
        assert (split.images == numbers[:, None, None, None]).all()
        np.testing.assert_array_equal(split.labels, numbers % 10)
    held = validation.images[:, 0, 0, 0]
    assert len(held) == 15
    together = np.concatenate([train.images[:, 0, 0, 0], held])
    np.testing.assert_array_equal(np.sort(together), np.arange(40))
    np.testing.assert_array_equal(test.images[:, 0, 0, 0], np.arange(10))


def test_a_smaller_validation_split_is_the_end_of_a_larger_one(tmp_path):
    write_folder(tmp_path)
    large = data.load_idx(str(tmp_path), 15).validation.images
    small = data.load_idx(str(tmp_path), 6).validation.images
    np.testing.assert_array_equal(small, large[-6:])


def test_missing_files_are_each_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte") as error:
        data.load_idx(str(tmp_path), 5)
    assert "train-images" not in str(error.value)


def test_validation_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="at most 39"):
        data.load_idx(str(tmp_path), 40)


@pytest.mark.parametrize("name", ["broken", "broken.gz"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("magic", "IDX file of unsigned bytes, but it starts with 010008"),
        ("type", "IDX file of unsigned bytes, but it starts with 00000d"),
        ("values", "takes 40 bytes, and it has 39"),
        ("surplus", "takes 40 bytes, and it has 41"),
        ("header", "truncated in its header"),
        ("empty", "nothing"),
    ],
)
def test_damaged_idx_files_are_refused_by_name(tmp_path, name, damage, message):
    path = tmp_path / name
    raw = b"\x00\x00\x08\x02" + struct.pack(">2I", 4, 7) + bytes(28)
    raw = {
        "magic": b"\x01" + raw[1:],
        "type": b"\x00\x00\x0d" + raw[3:],
        "values": raw[:-1],
        "surplus": raw + b"\x00",
        "header": raw[:9],
        "empty": b"",
    }[damage]
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0.5, 0])
def test_cut_or_false_gzip_is_refused_by_name(tmp_path, keep):
    path = tmp_path / "images.gz"
    whole = gzip.compress(bytes(1000))
    path.write_bytes(whole[: int(len(whole) * keep)] if keep else b"not gzip at all")
    with pytest.raises(ValueError, match=r"images\.gz: .*(ended before|gzip)"):
        data.read_idx(path)


def test_label_count_that_differs_is_refused(tmp_path):
    write_folder(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(39, np.uint8))
    with pytest.raises(ValueError, match=r"\(40, 5, 4\), and .* \(39,\);"):
        data.load_idx(str(tmp_path), 5)


def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    orders = {(s, e): epoch_order(s, e, 50).copy() for s in (0, 1) for e in (0, 1)}
    for order in orders.values():
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({order.tobytes() for order in orders.values()}) == 4
    np.random.seed(7)  # noqa: NPY002 - a global state that must not matter
    epoch_order.cache_clear()
    for (seed, epoch), order in reversed(orders.items()):
        np.testing.assert_array_equal(epoch_order(seed, epoch, 50), order)


def test_the_stream_visits_every_image_once_an_epoch():
    n, places = 50, np.arange(200)
    epochs, images = visits(5, places, n)
    np.testing.assert_array_equal(epochs, np.repeat(np.arange(4), n))
    stream = np.concatenate([epoch_order(5, epoch, n) for epoch in range(4)])
    np.testing.assert_array_equal(images, stream)
    # Wherever a batch is cut out of it, and in whatever order places are asked for.
    some = np.array([130, 49, 50, 3])
    np.testing.assert_array_equal(visits(5, some, n)[1], stream[some])


def test_synthetic_images_have_imagenets_numbers_and_are_the_same_every_time():
    noise, again = data.synthetic(24), data.synthetic(24)
    sizes = [split.size for split in noise[:3]]
    assert (sizes, noise.classes) == ([1_281_167, 50_000, 50_000], 1000)
    index = np.array([0, 1_281_166, 700_000])
    images, labels, *_ = noise.train.take(index)
    assert images.shape == (3, *noise.image_shape) == (3, 24, 24, 3)
    np.testing.assert_array_equal(images, again.train.take(index).images)
    assert len({image.tobytes() for image in images}) == len(set(labels)) == 3
    # Uniform on 0 … 255; the mean of 442,368 of them is off by 0.11 in one of 68.
    pool = noise.train.take(np.arange(256)).images
    assert (pool.min(), pool.max()) == (0, 255)
    assert abs(pool.mean() - noise.pixel_mean) < 0.5
    assert abs(pool.std() - noise.pixel_std) < 0.5


@pytest.mark.skipif(
    not FASHION.is_dir(), reason=f"Debian's dataset-fashion-mnist not in {FASHION}"
)
def test_fashion_mnist_is_read_whole():
    fashion = load(str(FASHION), 5_000)
    parts = (fashion.train, fashion.validation, fashion.test)
    assert [len(part.labels) for part in parts] == [55_000, 5_000, 10_000]
    assert fashion.train.images.shape[1:] == (28, 28, 1)
    everything = np.concatenate([part.labels for part in parts])
    assert np.bincount(everything).tolist() == [7_000] * 10
