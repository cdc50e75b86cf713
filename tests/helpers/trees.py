"""Small parameter trees and gradients that show what LARS can get wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

STEPS = 40


def params_tree(dtype=np.float32):
    """A small net's leaves: scales apart by 100, a zero-initialised norm."""
    rng = np.random.default_rng(0)
    return {
        "conv": rng.normal(0, 0.1, (3, 3, 2, 4)).astype(dtype),
        "conv_bias": rng.normal(0, 0.01, 4).astype(dtype),
        "head": rng.normal(0, 10.0, (7, 5)).astype(dtype),
        "last_norm_scale": np.zeros(4, dtype),
        "unseen": rng.normal(0, 1.0, (2, 3)).astype(dtype),
    }


def recorded_grads(dtype=np.float32):
    """Gradients for `STEPS` steps; "unseen" has none in the first four."""
    rng = np.random.default_rng(1)
    params = params_tree()
    scales = {"conv": 3.0, "conv_bias": 1e-3, "head": 0.2, "last_norm_scale": 1.0}

    def draw(step, name, w):
        scale = scales.get(name, 0.5 * (step >= 4))
        return (scale * rng.normal(0, 1, np.shape(w))).astype(dtype)

    return [{k: draw(step, k, w) for k, w in params.items()} for step in range(STEPS)]


def learning_rate(count):
    """Rises, falls tenfold at step 20, then decays: shows the momentum order."""
    wide = jax.config.jax_enable_x64
    count = jnp.asarray(count, jnp.float64 if wide else jnp.float32)
    rate = jnp.where(count < 8, (count + 1) / 8, 1.0)
    return jnp.where(count >= 20, rate * 0.1 * (1 - (count - 20) / 40), rate)


ALL, WEIGHTS = tuple(params_tree()), ("conv", "head", "unseen")
MASKS = {  # the names of the leaves that are decayed and of those that are adapted
    "paper_all": (ALL, ALL),
    "weights_only": (WEIGHTS, WEIGHTS),
    "decay_weights_adapt_all": (WEIGHTS, ALL),
    "decay_all_adapt_some": (ALL, ("conv", "unseen")),
}


def as_mask(names, params):
    return {name: name in names for name in params}


def paths(tree, value):
    """The paths of the leaves that are `value`."""
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {name(path).removesuffix("/value") for path, leaf in flat if leaf is value}


def train_step(tx):
    """A step from gradients, state and parameters to new parameters and state."""

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(tx, params, grads_of, inputs):
    """Parameters after each step of `tx`; gradients are `grads_of(params, input)`."""
    update = train_step(tx)

    @jax.jit
    def step(params, state, x):
        return update(grads_of(params, x), state, params)

    state, history = tx.init(params), []
    for x in inputs:
        params, state = step(params, state, x)
        history.append(params)
    return history


PARAMS, RECORDED = jax.tree.map(jnp.asarray, (params_tree(), recorded_grads()))
GRADS = RECORDED[10]


def replay(tx, params=PARAMS, grads=RECORDED):
    """Parameters after each step of `tx` on recorded gradients."""
    return train(tx, params, lambda _, g: g, grads)


def each_step(tx, grads, params=PARAMS):
    """Updates and state after each of several gradients, at the same parameters."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        yield updates, state


def update(tx, grads=GRADS, params=PARAMS):
    return tx.update(grads, tx.init(params), params)[0]


def assert_refused(message, function, *args, **options):
    """The call raises ValueError; the message is a regular expression."""
    with pytest.raises(ValueError, match=message):
        function(*args, **options)


def assert_equal(actual, expected, rtol=0.0):
    """Equal trees, to `rtol` of each leaf's largest value."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if rtol:
            largest = np.max(np.abs(np.nan_to_num(b)), initial=0.0)
            np.testing.assert_allclose(a, b, rtol=0, atol=rtol * largest)
        else:  # the oldest NumPy cannot take tolerances of bfloat16
            np.testing.assert_array_equal(a, b)


# Roundings of the largest value, of two orders of the same float32 arithmetic.
TOLERANCE = 2e-6


def assert_same_history(ours, theirs, tolerance=TOLERANCE):
    for mine, other in zip(ours, theirs, strict=True):
        for name, want in other.items():
            want = np.asarray(want, np.float64)
            error = np.max(np.abs(np.asarray(mine[name], np.float64) - want))
            assert error <= tolerance * np.max(np.abs(want)), name
