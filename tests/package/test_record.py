"""`record_layer_stats`: what it keeps is what `layer_stats` says, in a fixed state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import GRADS, PARAMS, params_tree, recorded_grads

import lars_optax
from lars_optax import LayerStats

OPTIONS = {"weight_decay": 0.003, "trust_coefficient": 0.01}


def kept(state):
    return optax.tree.get(state, "layer_stats")


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_keeps_what_layer_stats_says_and_changes_no_update():
    record = lars_optax.record_layer_stats(**OPTIONS)
    lars = lars_optax.lars(0.1, **OPTIONS)
    tx = optax.chain(record, lars)
    params, state, alone = params_tree(), tx.init(params_tree()), lars.init(PARAMS)
    for grads in recorded_grads()[:3]:
        expected = lars_optax.layer_stats(grads, params, **OPTIONS)
        wanted, alone = lars.update(grads, alone, params)
        updates, state = tx.update(grads, state, params)
        assert_equal(kept(state), expected)
        assert_equal(updates, wanted)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_state_is_of_one_structure_from_init_on(dtype):
    stacked = {"conv": 3, "head": None, "conv_bias": 0, "last_norm_scale": None,
               "unseen": 0}  # fmt: skip
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    tx = lars_optax.record_layer_stats(0.01, stacked_axes=stacked)
    abstract = jax.eval_shape(tx.init, params)
    state = tx.init(jax.eval_shape(lambda p=params: p))
    assert shapes(state) == shapes(abstract)
    _, after = tx.update(params, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert shapes(after) == shapes(state)
    assert kept(after)["conv"].trust_ratio.shape == (4,)


def test_can_be_scanned_over():
    tx = optax.chain(lars_optax.record_layer_stats(**OPTIONS), optax.sgd(0.01))
    grads = jax.tree.map(lambda *x: jnp.stack(x), *recorded_grads()[:5])

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), kept(state)

    _, history = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), grads)
    first = lars_optax.layer_stats(recorded_grads()[0], PARAMS, **OPTIONS)
    for name, stats in first.items():
        for a, b in zip(history[name], stats, strict=True):
            np.testing.assert_allclose(a[0], b, rtol=1e-6)
    assert len(np.unique(history["head"].grad_norm)) == 5


def test_under_multi_steps_it_sees_the_mean_and_after_clipping_the_clipped():
    inner = optax.chain(
        optax.clip_by_global_norm(0.1), lars_optax.record_layer_stats(**OPTIONS)
    )
    tx = optax.MultiSteps(inner, every_k_schedule=2)
    state = tx.init(PARAMS)
    first, second = recorded_grads()[:2]
    _, state = tx.update(first, state, PARAMS)
    assert all(not np.any(x) for x in jax.tree.leaves(kept(state)))
    _, state = tx.update(second, state, PARAMS)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    scale = 0.1 / np.sqrt(sum(np.sum(x**2) for x in mean.values()))
    clipped = jax.tree.map(lambda x: x * scale, mean)
    expected = lars_optax.layer_stats(clipped, PARAMS, **OPTIONS)
    for name, stats in expected.items():
        for a, b in zip(kept(state)[name], stats, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_leaf_without_a_gradient_keeps_what_it_had():
    tx = lars_optax.record_layer_stats(**OPTIONS)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    had = kept(state)
    grads = jax.tree.map(lambda g: 2 * g, GRADS) | {"head": None}
    updates, state = tx.update(grads, state, PARAMS)
    assert updates["head"] is None
    assert_equal(kept(state)["head"], had["head"])
    np.testing.assert_allclose(
        kept(state)["conv"].grad_norm, 2 * had["conv"].grad_norm, rtol=1e-6
    )


def test_a_masked_leaf_has_none():
    mask = {name: name != "head" for name in PARAMS}
    tx = optax.masked(lars_optax.record_layer_stats(**OPTIONS), mask)
    state = tx.init(PARAMS)
    _, state = tx.update(GRADS, state, PARAMS)
    stats = kept(state)
    assert isinstance(stats["head"], optax.MaskedNode)
    expected = lars_optax.layer_stats(GRADS, PARAMS, **OPTIONS)
    assert_equal(stats["conv"], expected["conv"])
    assert isinstance(stats["conv"], LayerStats)


def test_a_scheduled_weight_decay_counts_by_itself():
    tx = lars_optax.record_layer_stats(lambda count: 0.1 * count, True, 0.01)
    state = tx.init(PARAMS)
    for count in range(3):
        _, state = tx.update(GRADS, state, PARAMS)
        decay = jnp.float32(0.1) * count
        expected = lars_optax.layer_stats(GRADS, PARAMS, decay, True, 0.01)
        assert_equal(kept(state), expected)


def test_wrong_arguments_are_refused_as_by_scale_by_lars():
    with pytest.raises(ValueError, match="trust_coefficient"):
        lars_optax.record_layer_stats(trust_coefficient=0.0)
    tx = lars_optax.record_layer_stats()
    with pytest.raises(ValueError, match="params is None"):
        tx.update(GRADS, tx.init(PARAMS))
