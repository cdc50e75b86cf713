"""Evaluation counts what it should; moments merge; copies that differ are found."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import make_batch, make_setup, start, state_of

from examples.imagenet.data.dataset import Batch
from examples.imagenet.step import devices as engine
from examples.imagenet.step.moments import from_moments, to_moments
from examples.imagenet.step.step import eval_step


def test_moments_of_equal_shares_average_to_those_of_the_whole():
    shares = np.random.default_rng(0).normal(5.0, 2.0, (4, 100, 3)) * [[[1.0, 9.0, 0]]]
    shares += np.arange(4)[:, None, None]
    stats = {"bn": {"mean": shares.mean(1), "var": shares.var(1)}}
    moments = jax.tree.map(lambda m: jnp.asarray(m).mean(0), to_moments(stats))
    merged = from_moments(moments)["bn"]
    whole = shares.reshape(400, 3)
    # float32; E x² − (E x)² cancels about one digit here.
    np.testing.assert_allclose(merged["mean"], whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(merged["var"], whole.var(0), rtol=1e-5)


def test_merged_variance_is_never_negative():
    moments = {"mean": jnp.float32(3.0), "square": jnp.float32(8.9999)}
    assert from_moments({"bn": moments})["bn"]["var"] == 0


def test_top5_counts_the_five_largest_logits():
    class Fixed(nn.Module):
        def __call__(self, images, *, train):
            return -jnp.arange(20.0).reshape(2, 10) * jnp.array([[1.0], [-1.0]])

    images, mask = np.zeros((2, 1, 1, 1), np.uint8), np.ones(2, bool)
    for first, second, expected in [(0, 19, (2, 2)), (4, 5, (0, 2)), (5, 4, (0, 0))]:
        labels = np.array([first, second % 10], np.int32)
        batch = Batch(images, labels, mask)
        sums = eval_step(state_of({"params": {}}), batch, model=Fixed(), axis_name=None)
        assert (sums["correct"], sums["top5"]) == expected


@pytest.mark.parametrize("network", ["alexnet_small", "alexnet_bn_small"])
def test_masked_rows_do_not_count(network, devices):
    setup = make_setup(network, algorithm="sgd")
    model, state = setup[0], start(setup)
    evaluate = engine.parallelize(partial(eval_step, model=model), devices)
    whole = make_batch(0, 16)
    mask = np.arange(16) < 11
    sums = jax.device_get(evaluate(state, whole._replace(mask=mask)))
    short = Batch(whole.images[:11], whole.labels[:11], mask[:11])
    plain = jax.jit(partial(eval_step, model=model, axis_name=None))
    expected = jax.device_get(plain(state, short))
    assert expected["count"] == 11
    for name in ("count", "correct", "top5"):
        assert sums[name] == expected[name]
    np.testing.assert_allclose(sums["loss"], expected["loss"], rtol=1e-5)


def test_copies_that_differ_are_named(devices):
    one = jnp.arange(3.0)
    state = engine.replicate(state_of({"params": one}), devices)
    engine.assert_replicated(state)
    copies = [jax.device_put(one + (i == 2), d) for i, d in enumerate(devices)]
    sharding = state.params.sharding
    drifted = jax.make_array_from_single_device_arrays((3,), sharding, copies)
    with pytest.raises(RuntimeError, match="params"):
        engine.assert_replicated(state._replace(params=drifted))


LEAVES = {"alexnet_small": 10, "alexnet_bn_small": 13}


@pytest.mark.parametrize(("network", "leaves"), LEAVES.items())
def test_networks_are_shaped_like_alexnet_and_its_bn_sibling(network, leaves):
    setup = make_setup(network, algorithm="sgd")
    state = jax.eval_shape(partial(start, setup, (28, 28, 1)))
    assert len(jax.tree.leaves(state.params)) == leaves
    assert state.params["conv1"]["kernel"].shape == (5, 5, 1, 8)
    assert state.params["fc1"]["kernel"].shape == (7 * 7 * 16, 64)
    assert bool(state.batch_stats) == ("bn" in network)
