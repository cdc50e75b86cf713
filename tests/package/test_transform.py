"""Laws of `scale_by_lars` and `lars` as Optax transformations."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from trees import GRADS, PARAMS, RECORDED, assert_equal, each_step, train_step, update

import lars_optax

pytestmark = pytest.mark.usefixtures("for_gpu")

LARS = lars_optax.lars(0.3, 0.01, True, 0.01, 0.0, True)


@pytest.mark.parametrize("denominator", ["separate", "joint"])
def test_fallback_ratio_at_zero_norms_and_outside_the_mask(denominator):
    w, g, zero = jnp.full((2, 2), 3.0), jnp.full((2, 2), 0.5), jnp.zeros((2, 2))
    params = {"zero_w": zero, "zero_g": w, "both": zero, "masked": w, "zero_sum": w}
    grads = dict(zip(params, (g, zero, zero, g, -0.5 * w), strict=True))
    mask = {name: name != "masked" for name in params}
    options = {"denominator": denominator, "fallback_ratio": 0.25}
    tx = lars_optax.scale_by_lars(0.5, True, 0.001, 0.0, mask, **options)
    # ‖w‖ = 6. joint: g = 0 leaves ‖βw‖ = 3, so λ = η·6/3; g = −βw has no direction.
    joint = denominator == "joint"
    expected = {
        "zero_w": 0.25 * g,
        "zero_g": (0.002 if joint else 0.25) * 0.5 * w,
        "both": zero,
        "masked": 0.25 * (g + 0.5 * w),
        "zero_sum": zero,
    }
    assert_equal(update(tx, grads, params), expected, rtol=1e-6)


def test_undecayed_leaf_has_no_decay_in_its_denominator():
    params, grads = {"kernel": jnp.full((2, 2), 3.0)}, {"kernel": jnp.full((2, 2), 0.5)}
    tx = lars_optax.scale_by_lars(0.5, {"kernel": False}, 0.001, trust_ratio_mask=True)
    assert_equal(update(tx, grads, params), {"kernel": 0.006 * grads["kernel"]}, 1e-6)


def test_max_ratio_bounds_the_ratio_and_not_the_fallback():
    make = partial(lars_optax.scale_by_lars, 0.0, True, 1.0, 0.0, True)
    free, bounded = (update(make(fallback_ratio=5.0, max_ratio=x)) for x in (None, 1.0))
    for name, w in PARAMS.items():
        ratio = np.linalg.norm(w) / np.linalg.norm(GRADS[name])
        if name == "last_norm_scale":
            assert_equal(bounded[name], 5.0 * GRADS[name])
        elif ratio > 1:
            assert_equal(bounded[name], GRADS[name], 1e-6)
        else:
            assert_equal(bounded[name], free[name])


def test_state_is_only_a_count_and_only_for_a_schedule():
    assert lars_optax.scale_by_lars(0.1).init(PARAMS) == optax.EmptyState()
    tx = lars_optax.scale_by_lars(optax.linear_schedule(0.0, 1.0, 10), True)
    (count,) = jax.tree.leaves(tx.init(PARAMS))
    assert (count.shape, count.dtype) == ((), jnp.int32)
    for count, (updates, state) in enumerate(each_step(tx, [GRADS] * 3)):
        fixed = lars_optax.scale_by_lars(count / 10, True)
        assert_equal(updates, update(fixed), rtol=1e-6)
        assert int(optax.tree.get(state, "count")) == count + 1


@pytest.mark.parametrize("momentum", [None, 0, 0.0, np.float32(0), np.array(0.0)])
def test_no_momentum_keeps_no_buffer(momentum):
    tx = lars_optax.lars(0.5, momentum=momentum)
    assert not jax.tree.leaves(tx.init(PARAMS))
    assert_equal(update(tx), update(lars_optax.lars(0.5)))


def test_scan_and_vmap_give_what_a_python_loop_gives():
    step, grads = train_step(LARS), RECORDED[:5]
    looped = PARAMS, LARS.init(PARAMS)
    for g in grads:
        looped = step(g, *reversed(looped))

    def scan(params):
        def body(carry, g):
            return step(g, *reversed(carry)), None

        stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
        return jax.lax.scan(body, (params, LARS.init(params)), stacked)[0]

    assert_equal(scan(PARAMS), looped, rtol=2e-6)
    pair = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), PARAMS)
    both = jax.vmap(scan)(pair)[0]
    for i, factor in enumerate((1, 2)):
        expected = scan(optax.tree.scale(factor, PARAMS))[0]
        assert_equal(jax.tree.map(lambda x, i=i: x[i], both), expected, rtol=2e-6)


@pytest.mark.parametrize("denominator", ["separate", "joint"])
def test_derivative_through_a_step_is_finite_where_norms_are_zero(denominator):
    tx = lars_optax.lars(0.3, 0.01, True, 0.01, 0.0, True, denominator=denominator)

    def after(w, g):
        return jnp.sum(optax.apply_updates(w, update(tx, g, w)) ** 2)

    for w, g in itertools.product((jnp.zeros(3), jnp.ones(3)), repeat=2):
        assert np.isfinite(jax.grad(after, argnums=(0, 1))(w, g)).all()


def test_derivative_through_a_step_is_the_difference_quotient(x64):
    w, g = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.3, 0.1, 2.0])
    check_grads(lambda w, g: update(LARS, g, w), (w, g), order=1)


def test_the_momentum_of_a_leaf_outlives_a_step_without_its_gradient():
    grads = GRADS, {**GRADS, "conv": None}
    states = [state for _, state in each_step(lars_optax.lars(0.5), grads)]
    assert_equal(*(optax.tree.get(state, "trace")["conv"] for state in states))


def test_an_infinite_gradient_is_visible_in_its_whole_layer():
    grads = {**GRADS, "conv": GRADS["conv"].at[0, 0, 0, 0].set(jnp.inf)}
    updates = update(lars_optax.lars(0.5), grads)
    assert np.isnan(updates["conv"]).all()  # none of it frozen at 0
    assert_equal(updates["head"], update(lars_optax.lars(0.5))["head"])


@pytest.mark.parametrize("stacked_axes", [0, -1, {"conv": 1, "rest": 0}])
def test_stacked_layers_are_what_they_are_one_by_one(stacked_axes):
    rest = {"bias": PARAMS["conv_bias"]}
    layers = [{"conv": {"kernel": PARAMS["conv"] * scale}, "rest": rest}
              for scale in (0.1, 1.0, 0.0)]  # fmt: skip
    grads = [jax.tree.map(lambda w, s=s: s * (w + 0.1), layers[1]) for s in (3, 0, 7)]
    each = isinstance(stacked_axes, dict)
    axes = stacked_axes if each else dict.fromkeys(("conv", "rest"), stacked_axes)

    def stack(trees):
        def join(key, *x):
            return jax.tree.map(lambda *x: jnp.stack(x, axes[key]), *x)

        return {key: join(key, *(tree[key] for tree in trees)) for key in axes}

    options = {"weight_decay": 0.01, "trust_coefficient": 0.01}
    tx = lars_optax.scale_by_lars(**options, stacked_axes=stacked_axes)
    alone = lars_optax.scale_by_lars(**options)
    expected = stack([update(alone, g, w) for g, w in zip(grads, layers, strict=True)])
    assert_equal(update(tx, stack(grads), stack(layers)), expected, rtol=1e-6)
