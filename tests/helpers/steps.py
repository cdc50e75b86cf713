"""The trainer's step for its tests: small networks, batches, a step on some devices."""

from functools import cache, partial

import flax.linen as nn
import jax
import numpy as np

from examples.imagenet.config import Batching, Config, Optimizer
from examples.imagenet.data.dataset import Batch
from examples.imagenet.models import make_model
from examples.imagenet.models.layers import Network, batch_norm
from examples.imagenet.recipe import to_recipe
from examples.imagenet.step import devices as engine
from examples.imagenet.step.step import TrainState, init_state, train_step

SHAPE = (12, 12, 1)
# The order of the sums over 32 images alone differs: float32 roundings of 6e-8, which
# five steps of a network this small magnify less than 100 times.
ROUNDINGS = 6e-6


class Tiny(Network):
    """A convolution and a dense layer: little to compile."""

    norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, *, train):
        conv = nn.Conv(4, (3, 3), 2, use_bias=not self.norm, name="conv")
        x = conv(self.normalized(images))
        if self.norm:
            x = batch_norm(train, self.dtype, self.bn_axis_name, name="bn")(x)
        x = nn.relu(x).reshape(len(x), -1)
        if self.dropout:
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(self.classes, name="fc")(x)


FORM = {"classes": 10, "pixel_mean": 128.0, "pixel_std": 74.0}
PLAIN = Tiny(**FORM)
NORMED = PLAIN.clone(norm=True)
NOISY = NORMED.clone(dropout=0.5)


def make_setup(model=PLAIN, **optimizer):
    """(model, optimizer, what train_step takes of them): 8 updates, 2 of warm-up."""
    if isinstance(model, str):
        model = make_model(model, width=0.5, **FORM)
    rule = Optimizer(**{"warmup_epochs": 1, **optimizer})
    batching = Batching(batch_size=1, epochs=4)
    recipe = to_recipe(Config(optimizer=rule, batching=batching))
    return model, recipe.optimizer(2), recipe.layer_stats


def make_batch(seed, n):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, *SHAPE), np.uint8)
    return Batch(images, random.integers(0, 10, n, np.int32))


def start(setup, shape=SHAPE):
    return init_state(0, *setup[:2], shape)


def step_of(setup, axis_name=None, **options):
    """`train_step` of that model and optimizer, still to be compiled."""
    model, tx, stats = setup
    fixed = {"model": model, "tx": tx, "layer_stats": stats, "axis_name": axis_name}
    return partial(train_step, **fixed, **options)


def state_of(variables, opt_state=(), step=0):
    """A state of NumPy arrays made by hand."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    step, key = np.array(step, np.int32), np.zeros(2, np.uint32)
    return TrainState(step, key, params, stats, opt_state, np.array(True))


@cache
def _compiled(setup, devices, name, options):
    step = step_of(setup, **dict(options))
    return engine.parallelize(step, devices, engine=name, donate_state=True)


def run(setup, batches, devices, *, name="pmap", **options):
    """State and last metrics after one update a batch."""
    step = _compiled(setup, tuple(devices), name, tuple(options.items()))
    state = engine.replicate(start(setup), devices)
    for batch in batches:
        state, metrics = step(state, batch)
    engine.assert_replicated(state)
    return jax.device_get((state, metrics))


def assert_params_close(found, expected, roundings):
    """Every leaf within so much of its largest value."""

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=roundings * np.abs(b).max())

    jax.tree.map(close, found, expected)
