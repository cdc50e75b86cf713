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
    values=(IDX[:-1], "takes 28 values, and it has fewer"),
    surplus=(IDX + b"\x00", "takes 28 values, and it has more"),
    header=(IDX[:9], "truncated in its header"),
    empty=(b"", "nothing"),
)
def test_damaged_idx_files_are_refused_by_name(tmp_path, suffix, raw, message):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    assert_refused(f"^{re.escape(str(path))}: .*{message}", data.read_idx, path)


VALUES = np.random.RandomState(0).randint(0, 256, 1000).astype(np.uint8).tobytes()
PACKED = gzip.compress(b"\0\0\x08\1" + struct.pack(">I", 1000) + VALUES)
VAST = gzip.compress(b"\0\0\x08\2" + struct.pack(">2I", 2**16, 2**16))


@cases(
    "raw, reason",
    cut=(PACKED[:500], "ended before"),
    cut_at_its_end=(PACKED[:-10], "ended before"),
    no_gzip=(b"not gzip at all", "Not a gzipped file"),
    checksum=(PACKED[:-8] + bytes(8), "CRC check failed"),
    deflate_stream=(PACKED[:10] + b"\xff" * 40 + PACKED[50:], "Error -3"),
    more_than_is_read=(VAST, "more than 2,147,483,648"),
)
def test_damaged_gzip_is_refused_by_name(tmp_path, raw, reason):
    path = tmp_path / "images.gz"
    path.write_bytes(raw)
    message = rf"images\.gz: .*{reason}.*download it again"
    assert_refused(message, data.read_idx, path)


def test_damaged_copies_of_idx_files_are_read_whole_or_refused(
    tmp_path, damaged_copies
):
    reasons, read = [], 0
    for raw in damaged_copies([PACKED, gzip.decompress(PACKED)]):
        packed = raw[:2] == PACKED[:2]
        path = tmp_path / ("images.gz" if packed else "images")
        path.write_bytes(raw)
        try:
            found = data.read_idx(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        read += 1
        plain = gzip.decompress(raw) if packed else raw
        shape = struct.unpack_from(f">{plain[3]}I", plain, 4)
        assert (plain[:3], found.shape) == (b"\0\0\x08", shape)
        assert found.tobytes() == plain[4 + 4 * len(shape) :]
    print(f"IDX: {len(reasons)} refused, {read} read")
    assert reasons
    assert all("images" in reason for reason in reasons)


TOO_LARGE = np.where(np.arange(40) == 3, 255, np.arange(40) % 4)


@cases(
    "name, array, reason",
    size=(
        "t10k-images-idx3",
        np.zeros((10, 9, 9)),
        "training images of 5×4 pixels and test images of 9×9",
    ),
    training_label=(
        "train-labels-idx1",
        TOO_LARGE,
        "labels up to 255, but training images of only",
    ),
    test_label=(
        "t10k-labels-idx1",
        TOO_LARGE[:10],
        r"test images of classes without a training image: \[255\]",
    ),
)
def test_splits_that_do_not_fit_are_refused(folder, suffix, name, array, reason):
    write_idx(Path(folder, f"{name}-ubyte{suffix}"), array)
    assert_refused(f"--data: .* {reason}", data.load_idx, folder, 5)


def test_a_class_without_training_images_is_noted(folder, suffix):
    for split, n in (("train", 40), ("t10k", 10)):
        labels = 1 + np.arange(n) % 4
        write_idx(Path(folder, f"{split}-labels-idx1-ubyte{suffix}"), labels)
    found = data.load_idx(folder, 5)
    assert found.classes == 5
    assert found.notes == ("train: classes without an image: [0]",)


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


def test_no_training_images_are_not_told_as_too_many_for_validation():
    assert_refused("^--data: it has no training images", data.hold_out, 0, 5)
