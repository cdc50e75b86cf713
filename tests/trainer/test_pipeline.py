"""Batches: every image once, the same whoever reads them and shares them out."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from image_trees import write_tree
from trees import assert_equal

from examples.imagenet.data import batches as pipeline
from examples.imagenet.data.arrays import Split
from examples.imagenet.data.dataset import DataLost, Share
from examples.imagenet.data.sources import load

pytestmark = pytest.mark.usefixtures("cache")


def numbered(n):
    """Images of one pixel, each of which is its own number and label."""
    return Split(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n))


def shared(read, size, processes):
    """The batches of that many processes, put together again."""
    each = [read(Share(size, i, processes)) for i in range(processes)]
    for parts in zip(*each, strict=True):
        batches = [batch for batch, _ in parts]
        yield jax.tree.map(lambda *fields: np.concatenate(fields), *batches)


@pytest.mark.parametrize("augment", ["caffe", "rrc"])
def test_workers_processes_and_restarts_change_no_batch(tree, augment, monkeypatch):
    """Six updates of 12 images: more than four epochs of 16."""
    train = load(tree, pixels=28, augment=augment, validation_images=0).train

    def read(share, steps=range(6), workers=1):
        return replace(train, workers=workers).training(3, steps, share)

    expected = [batch for batch, _ in read(Share(12))]
    assert len({batch.images.tobytes() for batch in expected}) == 6
    assert 0 < np.mean([batch.mirror.mean() for batch in expected]) < 1
    monkeypatch.setattr(pipeline, "_CHUNK", 5)
    assert_equal([batch for batch, _ in read(Share(12), workers=4)], expected)
    assert_equal([batch for batch, _ in read(Share(12), range(2, 6), 2)], expected[2:])
    for processes in (2, 4):
        assert_equal(list(shared(read, 12, processes)), expected)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 8), (1, 4), (100, 64)])
def test_evaluation_holds_every_image_once(n, size, processes):
    seen = []
    for batch in shared(numbered(n).evaluation, size, processes):
        assert len(batch.images) == len(batch.labels) == len(batch.mask) == size
        seen += batch.labels[batch.mask].tolist()
        np.testing.assert_array_equal(batch.images.ravel(), batch.labels)
    assert seen == list(range(n))


def test_training_in_memory_sees_every_image_once_an_epoch():
    def read(share):
        return numbered(24).training(0, range(6), share)

    for processes in (1, 2):
        batches = list(shared(read, 8, processes))
        seen = np.concatenate([batch.labels for batch in batches]).reshape(2, 24)
        np.testing.assert_array_equal(np.sort(seen), [np.arange(24)] * 2)
        assert (seen[0] != seen[1]).any()


def test_an_unreadable_image_is_named_once_in_whatever_process(tree):
    write_tree(tree, {"test/dog/9.png": b""})
    test = load(tree, pixels=28).test
    assert test.size == 5
    for processes in (1, 2, 4):
        named = []
        for i in range(processes):
            for _, broken in test.evaluation(Share(8, i, processes)):
                named += [path.rsplit("/", 1)[1] for path, _ in broken]
        assert named == ["9.png"]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_folder_that_goes_ends_the_batches(tree, workers):
    train = load(tree, pixels=28, validation_images=0, workers=workers).train
    batches = train.training(0, range(1000), Share(8))
    next(batches)
    shutil.rmtree(tree)
    with pytest.raises(DataLost, match="no longer exists"):
        for _ in batches:
            pass
