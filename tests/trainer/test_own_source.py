"""A user's own iterator is trained on and resumed as the trainer's sources are."""

import jax
import numpy as np
import pytest
import small_runs as runs

from examples.imagenet.config import Batching, Config, Model, Optimizer, Run
from examples.imagenet.data.dataset import Batch, Dataset, Share
from examples.imagenet.run.experiment import Experiment

SHAPE = (12, 12, 1)


def stream(seed, rows):
    """Endless batches of stripes, whose label is the row that is bright."""
    random = np.random.default_rng(seed)
    while True:
        labels = random.integers(0, 10, rows, np.int32)
        images = random.integers(0, 60, (rows, *SHAPE), np.uint8)
        images[np.arange(rows), labels] += 150
        yield images, labels


class Stripes:
    """A `Source` that keeps no image: a generator makes each batch when it is due."""

    def __init__(self, size):
        self.size = size

    def training(self, seed, steps, share):
        rows = slice(share.process * share.rows, (share.process + 1) * share.rows)
        for step in steps:
            images, labels = next(stream((seed, step), share.size))
            yield Batch(images[rows], labels[rows]), ()

    def evaluation(self, share):
        first = share.process * share.rows
        for i, start in enumerate(range(first, first + self.size, share.size)):
            images, labels = next(stream((99, i, share.process), share.rows))
            yield Batch(images, labels, start + np.arange(share.rows) < self.size), ()

    def content(self):
        return (f"{self.size} stripes".encode(),)


@pytest.fixture(scope="module")
def experiment():
    held = Stripes(30)
    stripes = Dataset(Stripes(96), held, held, 10, SHAPE, 60.0, 50.0)
    optimizer = Optimizer("sgd", learning_rate=0.05, warmup_epochs=0)
    batching = Batching(batch_size=16, epochs=8, eval_batch_size=20)
    model = Model(network="alexnet_small", width=0.5)
    config = Config(model=model, optimizer=optimizer, batching=batching)
    return Experiment(config, stripes, jax.local_devices()[:2])


def test_a_users_iterator_is_learnt_and_resumed_bit_for_bit(experiment, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"

    def train(out, *show):
        run = Run(log_every=1, checkpoint_every=2, layers_every=0, out=str(out))
        return runs.train_on(experiment, run, *show)

    result = train(whole)
    assert (result.updates, result.count) == (48, 30)
    assert result.accuracy > 0.5  # chance is 0.1
    with pytest.raises(pytest.fail.Exception, match="killed"):
        train(resumed, runs.when("step", 20, lambda: pytest.fail("killed")))
    assert runs.steps_of(resumed)[-1] == 20
    assert train(resumed).loss == result.loss
    runs.assert_same_run(resumed, whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_its_processes_share_the_rows_of_one_batch(experiment, processes):
    train = experiment.dataset.train
    (whole, _), *_ = train.training(0, range(3, 5), Share(16))
    shares = [Share(16, i, processes) for i in range(processes)]
    parts = [next(train.training(0, range(3, 5), share))[0] for share in shares]
    for name in ("images", "labels"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
