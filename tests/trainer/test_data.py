"""The trainer's data: fixed splits, orders that are functions, checked files."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from cases import cases
from image_trees import write_idx, write_idx_folder
from trees import assert_refused

from examples.imagenet.data import arrays as data
from examples.imagenet.data.batches import epoch_order, visits
from examples.imagenet.data.sources import load

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(params=["", ".gz"], ids=["plain", "gzip"])
def suffix(request):
    return request.param


@pytest.fixture
def folder(tmp_path, suffix):
    """IDX files of 40 and 10 images, each of which is filled with its own number."""

    def numbered(n):
        number = np.arange(n, dtype=np.uint8)
        images = np.broadcast_to(number[:, None, None], (n, 5, 4))
        return data.Split(images, number % 10)

    write_idx_folder(tmp_path, suffix, train=numbered(40), t10k=numbered(10))
    return str(tmp_path)


def test_mnist_split_is_fixed_stratified_and_disjoint():
    first, again = data.load_mnist(), data.load_mnist()
    images = [image.tobytes() for split in first[:3] for image in split.images]
    assert len(set(images)) == 5_000
    for split, other, each in zip(first[:3], again[:3], (320, 80, 100), strict=True):
        assert split.images.dtype == np.uint8
        assert split.images.shape == (10 * each, 28, 28, 1)
        np.testing.assert_array_equal(np.bincount(split.labels), [each] * 10)
        np.testing.assert_array_equal(split.images, other.images)


def test_idx_folder_gives_back_every_image_with_its_label(folder):
    train, validation, test, classes, *_ = data.load_idx(folder, 15)
    assert classes == 10
    numbers = []
    for split in (train, validation, test):
        assert split.images.shape[1:] == (5, 4, 1)
        numbers.append(split.images[:, 0, 0, 0])
        assert (split.images == numbers[-1][:, None, None, None]).all()
        np.testing.assert_array_equal(split.labels, numbers[-1] % 10)
    assert len(validation.labels) == 15
    together = np.concatenate(numbers[:2])
    np.testing.assert_array_equal(np.sort(together), np.arange(40))
    np.testing.assert_array_equal(numbers[2], np.arange(10))
    # A smaller validation split is the end of a larger one.
    small = data.load_idx(folder, 6).validation.images
    np.testing.assert_array_equal(small, validation.images[-6:])


def test_idx_folders_that_do_not_fit_are_refused(folder, suffix):
    assert_refused("at most 39", data.load_idx, folder, 40)
    labels = Path(folder, f"train-labels-idx1-ubyte{suffix}")
    write_idx(labels, np.zeros(39))
    assert_refused(r"\(40, 5, 4\), and .* \(39,\);", data.load_idx, folder, 5)
    labels.unlink()
    # Only what is missing is named.
    missing = r"no images; .*missing: train-labels-idx1-ubyte$"
    assert_refused(missing, data.load_idx, folder, 5)


IDX = b"\x00\x00\x08\x02" + struct.pack(">2I", 4, 7) + bytes(28)


@cases(
    "raw, message",
    magic=(b"\x01" + IDX[1:], "of unsigned bytes, but it starts with 010008"),
    type=(b"\x00\x00\x0d" + IDX[3:], "of unsigned bytes, but it starts with 00000d"),
    values=(IDX[:-1], "needs 40 bytes, but the file has 39"),
    surplus=(IDX + b"\x00", "needs 40 bytes, but the file has 41"),
    header=(IDX[:9], "truncated in its header"),
    empty=(b"", "nothing"),
)
def test_damaged_idx_files_are_refused_by_name(tmp_path, suffix, raw, message):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    assert_refused(f"^{re.escape(str(path))}: .*{message}", data.read_idx, path)


@cases("raw", cut=gzip.compress(bytes(1000))[:-10], no_gzip=b"not gzip at all")
def test_cut_or_false_gzip_is_refused_by_name(tmp_path, raw):
    path = tmp_path / "images.gz"
    path.write_bytes(raw)
    assert_refused(r"images\.gz: .*(ended before|gzip)", data.read_idx, path)


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


ABSENT = f"Debian's dataset-fashion-mnist not in {FASHION}"


@pytest.mark.skipif(not FASHION.is_dir(), reason=ABSENT)
def test_fashion_mnist_is_read_whole():
    fashion = load(str(FASHION), 5_000)
    parts = (fashion.train, fashion.validation, fashion.test)
    assert [len(part.labels) for part in parts] == [55_000, 5_000, 10_000]
    assert fashion.train.images.shape[1:] == (28, 28, 1)
    everything = np.concatenate([part.labels for part in parts])
    assert np.bincount(everything).tolist() == [7_000] * 10
