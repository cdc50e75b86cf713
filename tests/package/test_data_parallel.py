"""Laws of data parallelism in `shard_map`: which steps equal that of one device.

With `check_vma`, which is its default, the gradient of replicated parameters is already
summed over the devices: JAX makes them vary between the devices before they meet the
batch, and the transpose of that conversion is a psum. The oracle is one device's step
on the whole batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from trees import assert_equal, learning_rate, train_step

import lars_optax

REASON = "jax has neither jax.shard_map nor check_vma before 0.6.1"
pytestmark = [
    pytest.mark.skipif(not hasattr(jax, "shard_map"), reason=REASON),
    pytest.mark.usefixtures("for_gpu"),
]

N, AXIS = 8, "batch"
SHARE = 4  # examples of a batch on each device
make_lars = partial(lars_optax.lars, trust_coefficient=0.02, fallback_ratio=0.02)
OPTIMIZERS = {
    "sgd": optax.sgd(learning_rate, momentum=0.9),
    "lars": make_lars(learning_rate, 0.1),
}
ROUNDINGS = 2e-6  # of a leaf's largest value: sums over a batch in another order


def draw(seed):
    random = np.random.default_rng(seed)
    return tuple(np.float32(random.normal(size=(SHARE * N, k))) for k in (6, 4))


BATCHES = [draw(seed) for seed in range(6)]
PARAMS = {"kernel": jnp.linspace(-1, 1, 24).reshape(6, 4), "bias": jnp.zeros(4)}


def loss(params, x, y):
    return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)


def mean_of_gradients(params, x, y):
    return jax.lax.pmean(jax.grad(loss)(params, x, y), AXIS)


def gradient_of_mean(params, x, y):
    return jax.grad(lambda *args: jax.lax.pmean(loss(*args), AXIS))(params, x, y)


def mean_of_varying_gradients(params, x, y):
    if hasattr(jax.lax, "pcast"):
        varying = jax.lax.pcast(params, AXIS, to="varying")
    else:  # its name in older versions
        varying = jax.lax.pvary(params, AXIS)
    return mean_of_gradients(varying, x, y)


def step_on_batch(tx, gradient):
    def step(params, state, x, y):
        return train_step(tx)(gradient(params, x, y), state, params)

    return step


@pytest.fixture
def on_all(eight_devices):
    """`jax.shard_map` of a step: parameters and state whole, the batch shared out."""
    mesh = Mesh(np.array(eight_devices), (AXIS,))
    ins = (P(), P(), P(AXIS), P(AXIS))

    def spread(tx, gradient, **options):
        step = step_on_batch(tx, gradient)
        step = jax.shard_map(step, mesh=mesh, in_specs=ins, out_specs=P(), **options)
        return jax.jit(step)

    return spread


def on_one(tx):
    return jax.jit(step_on_batch(tx, jax.grad(loss)))


def first_update(step, tx):
    """What the first step adds to the parameters."""
    params, _ = jax.block_until_ready(step(PARAMS, tx.init(PARAMS), *BATCHES[0]))
    return jax.tree.map(lambda new, old: jax.device_get(new - old), params, PARAMS)


def on_device(i, tree):
    """The device's own copy of replicated arrays."""
    return jax.tree.map(lambda x: x.addressable_shards[i].data, tree)


def test_a_mean_of_gradients_is_n_times_too_large_in_shard_map_by_default(on_all):
    tx = optax.sgd(1.0)
    right = first_update(on_one(tx), tx)
    wrong = first_update(on_all(tx, mean_of_gradients), tx)
    assert_equal(wrong, {k: N * u for k, u in right.items()}, rtol=1e-5)


def test_lars_hides_the_factor_in_adapted_weights_and_not_in_biases(on_all):
    tx = make_lars(5.0)
    right = first_update(on_one(tx), tx)
    wrong = first_update(on_all(tx, mean_of_gradients), tx)
    expected = {"kernel": right["kernel"], "bias": N * right["bias"]}
    assert_equal(wrong, expected, rtol=1e-5)


def test_the_factor_makes_the_weight_decay_of_lars_n_times_weaker(on_all):
    wrong, weaker = make_lars(5.0, 0.8), make_lars(5.0, 0.8 / N)
    found = first_update(on_all(wrong, mean_of_gradients), wrong)["kernel"]
    assert_equal(found, first_update(on_one(weaker), weaker)["kernel"], rtol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("gradient", "options"), [
    (mean_of_gradients, {"check_vma": False}),
    (gradient_of_mean, {}),
    (mean_of_varying_gradients, {}),
    (mean_of_varying_gradients, {"check_vma": False}),
], ids=["unchecked", "of_the_mean", "varying", "varying_unchecked"])  # fmt: skip
def test_a_right_step_equals_that_of_one_device(on_all, gradient, options, optimizer):
    tx = OPTIMIZERS[optimizer]
    one, step = on_one(tx), on_all(tx, gradient, **options)
    expected = found = PARAMS, tx.init(PARAMS)
    for batch in BATCHES:
        expected = one(*expected, *batch)
        found = jax.block_until_ready(step(*found, *batch))
        for i in range(N):
            assert_equal(on_device(i, found), expected, rtol=ROUNDINGS)


def test_unchecked_the_gradient_of_the_mean_loss_is_that_of_a_devices_share(on_all):
    """So the copies of the parameters drift apart, and nothing raises."""
    tx = optax.sgd(1.0)
    step, one = on_all(tx, gradient_of_mean, check_vma=False), on_one(tx)
    state, (x, y) = tx.init(PARAMS), BATCHES[0]
    found, _ = jax.block_until_ready(step(PARAMS, state, x, y))
    for i in range(N):
        share = slice(SHARE * i, SHARE * (i + 1))
        expected, _ = one(PARAMS, state, x[share], y[share])
        assert_equal(on_device(i, found), expected, rtol=ROUNDINGS)
