"""Laws of the layer table: the numbers of the transform, and no pass more for them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import trust_ratio
from trees import GRADS, PARAMS, as_mask, assert_refused, train_step, update

import lars_optax


@pytest.mark.parametrize("denominator", ["separate", "joint"])
def test_equals_the_reference(denominator):
    decayed, adapted = ("conv", "head"), ("conv", "last_norm_scale", "unseen")
    masks = as_mask(decayed, PARAMS), as_mask(adapted, PARAMS)
    rule = (0.3, masks[0], 0.01, 0.1, masks[1])
    options = {"denominator": denominator, "fallback_ratio": 0.5}
    stats = lars_optax.layer_stats(GRADS, PARAMS, *rule, **options)
    for name in PARAMS:
        w, g = (np.asarray(tree[name], np.float64) for tree in (PARAMS, GRADS))
        beta = 0.3 if name in decayed else 0.0
        ratio = trust_ratio(w, g, 0.01, beta, 0.1, denominator, 0.5)
        ratio = ratio if name in adapted else 0.5
        expected = (np.linalg.norm(w), np.linalg.norm(g), ratio)
        np.testing.assert_allclose(stats[name], expected, rtol=1e-6)


def test_ratio_is_what_the_update_was_multiplied_by():
    options = {"weight_decay": 0.3, "denominator": "joint", "max_ratio": 0.002}
    updates = update(lars_optax.scale_by_lars(**options))
    stats = lars_optax.layer_stats(GRADS, PARAMS, **options)
    mask = lars_optax.exclude_bias_and_norm(PARAMS)
    for name, stat in stats.items():
        step = GRADS[name] + (0.3 if mask[name] else 0.0) * PARAMS[name]
        largest = float(jnp.max(jnp.abs(updates[name])))
        expected = stat.trust_ratio * step
        np.testing.assert_allclose(updates[name], expected, atol=2e-6 * largest)


def count_reductions(function, *args):
    """Reductions over arrays, in the optimized HLO."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return len(re.findall(r"= \S+ reduce\(", text)), text


@pytest.mark.parametrize(("denominator", "extra"), [("separate", 0), ("joint", 1)])
def test_inside_one_jit_it_adds_no_reduction(denominator, extra, for_gpu):
    options = (0.01, True, 0.001, 0.0, True)
    tx = lars_optax.scale_by_lars(*options, denominator=denominator)
    params = {"kernel": jnp.ones((64, 64)), "other": jnp.ones((32, 64))}
    state = tx.init(params)

    def alone(grads, params):
        return tx.update(grads, state, params)[0]

    def both(grads, params):
        stats = lars_optax.layer_stats(grads, params, *options, denominator=denominator)
        return tx.update(grads, state, params)[0], stats

    without, _ = count_reductions(alone, params, params)
    with_stats, text = count_reductions(both, params, params)
    # ‖w‖ and ‖g‖ (or ‖g + βw‖), once each. The form for a GPU sums both at once.
    assert without == (1 if for_gpu else 2) * len(params), text
    assert with_stats == without + extra * len(params), text


def test_stacked_leaf_has_a_row_for_each_layer():
    params = {"kernel": jnp.stack([jnp.full((2, 2), x) for x in (1.0, 2.0, 0.0)])}
    grads = {"kernel": jnp.ones((3, 2, 2))}
    stats = lars_optax.layer_stats(grads, params, stacked_axes=0)
    np.testing.assert_allclose(stats["kernel"].param_norm, [2, 4, 0])
    np.testing.assert_allclose(stats["kernel"].trust_ratio, [1e-3, 2e-3, 0.02])
    assert names(stats) == ["kernel[0]", "kernel[1]", "kernel[2]"]


def names(stats):
    """The first column of the table of statistics."""
    rows = lars_optax.format_layer_stats(stats).splitlines()[1:]
    return [row.split("  ")[0] for row in rows]


def test_none_gradients_have_no_row():
    stats = lars_optax.layer_stats({**GRADS, "conv": None}, PARAMS)
    assert stats["conv"] is None
    assert len(names(stats)) == len(PARAMS) - 1


def test_zero_gradient_prints_an_infinite_quotient():
    stats = lars_optax.layer_stats({"w": jnp.zeros((2, 2))}, {"w": jnp.ones((2, 2))})
    row = lars_optax.format_layer_stats(stats).splitlines()[1]
    assert row.split() == ["w", "2", "0", "inf", "0.02"]


def test_norms_of_zero_have_no_quotient():
    zeros = {"w": jnp.zeros((2, 2))}
    table = lars_optax.format_layer_stats(lars_optax.layer_stats(zeros, zeros))
    assert table.splitlines()[1].split() == ["w", "0", "0", "nan", "0.02"]


def test_a_state_without_statistics_is_refused():
    state = lars_optax.lars(0.1).init(PARAMS)
    for stats in (optax.tree.get(state, "layer_stats"), {}):
        assert_refused("keep_layer_stats=True", lars_optax.format_layer_stats, stats)


def test_other_trees_are_refused():
    table = lars_optax.format_layer_stats
    assert_refused(r"layer_stats.*'kernel'", table, {"kernel": jnp.ones(2)})
    state = lars_optax.scale_by_lars(keep_layer_stats=True).init(PARAMS)
    assert_refused(r"optax\.tree\.get\(state", table, state)


def test_a_leaf_without_a_path_and_layers_on_two_axes_have_names():
    w = jnp.ones((2, 3, 3))
    assert names(lars_optax.layer_stats(w, w)) == ["parameters"]
    steps = jax.vmap(lambda g: lars_optax.layer_stats(g, w, stacked_axes=0))
    expected = [f"parameters[{i}, {k}]" for i in range(2) for k in range(2)]
    assert names(steps(jnp.stack([w, w]))) == expected


def test_under_scan_the_table_of_every_step_is_kept():
    tx = lars_optax.lars(0.1)

    def step(carry, _):
        params, state = carry
        stats = lars_optax.layer_stats(GRADS, params)
        return train_step(tx)(GRADS, state, params), stats

    _, stats = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=3)
    assert stats["head"].trust_ratio.shape == (3,)
