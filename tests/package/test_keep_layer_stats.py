"""`keep_layer_stats`: the state holds what the update used, in a fixed structure."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import GRADS, PARAMS, params_tree, recorded_grads

import lars_optax
from lars_optax import LayerStats

OPTIONS = {"weight_decay": 0.003, "trust_coefficient": 0.01}
KEEPS = partial(lars_optax.scale_by_lars, keep_layer_stats=True)


def kept(state):
    return optax.tree.get(state, "layer_stats")


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_keeps_what_layer_stats_says_and_changes_no_update():
    lars = lars_optax.lars(0.1, **OPTIONS)
    tx = lars_optax.lars(0.1, **OPTIONS, keep_layer_stats=True)
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
    tx = KEEPS(0.01, stacked_axes=stacked)
    abstract = jax.eval_shape(tx.init, params)
    state = tx.init(jax.eval_shape(lambda p=params: p))
    assert shapes(state) == shapes(abstract)
    _, after = tx.update(params, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert shapes(after) == shapes(state)
    assert kept(after)["conv"].trust_ratio.shape == (4,)


def test_can_be_scanned_over():
    tx = lars_optax.lars(0.01, **OPTIONS, keep_layer_stats=True)
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
    inner = optax.chain(optax.clip_by_global_norm(0.1), KEEPS(**OPTIONS))
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
    tx = KEEPS(**OPTIONS)
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
    tx = optax.masked(KEEPS(**OPTIONS), mask)
    state = tx.init(PARAMS)
    _, state = tx.update(GRADS, state, PARAMS)
    stats = kept(state)
    assert isinstance(stats["head"], optax.MaskedNode)
    expected = lars_optax.layer_stats(GRADS, PARAMS, **OPTIONS)
    assert_equal(stats["conv"], expected["conv"])
    assert isinstance(stats["conv"], LayerStats)


def test_a_scheduled_weight_decay_counts_by_itself():
    tx = KEEPS(lambda count: 0.1 * count, True, 0.01)
    state = tx.init(PARAMS)
    for count in range(3):
        _, state = tx.update(GRADS, state, PARAMS)
        decay = jnp.float32(0.1) * count
        expected = lars_optax.layer_stats(GRADS, PARAMS, decay, True, 0.01)
        assert_equal(kept(state), expected)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="trust_coefficient"):
        KEEPS(trust_coefficient=0.0)
    with pytest.raises(ValueError, match="params is None"):
        KEEPS().update(GRADS, KEEPS().init(PARAMS))
    with pytest.raises(
        ValueError, match="keep_layer_stats must be True or False, got 1"
    ):
        lars_optax.lars(0.1, keep_layer_stats=1)


def ratios_used(tx):
    """Of each leaf, update / (g + βw) of the first update, and the kept ratio."""
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    beta = OPTIONS["weight_decay"]
    decayed = lars_optax.exclude_bias_and_norm(PARAMS)
    for name, update in updates.items():
        step = np.asarray(GRADS[name], float)
        step = step + beta * decayed[name] * np.asarray(PARAMS[name], float)
        at = np.abs(step).argmax()
        kept_ratio = float(kept(state)[name].trust_ratio)
        if step.flat[at]:
            yield name, np.asarray(update, float).flat[at] / step.flat[at], kept_ratio


@pytest.mark.parametrize(
    ("tx", "rate"),
    [
        (KEEPS(**OPTIONS), 1.0),
        (KEEPS(**OPTIONS, denominator="joint"), 1.0),
        (KEEPS(**OPTIONS, max_ratio=0.004), 1.0),
        (lars_optax.lars(0.5, **OPTIONS, keep_layer_stats=True), -0.5),
        (lars_optax.larc(0.02, **OPTIONS, keep_layer_stats=True), -0.02),
    ],
    ids=["separate", "joint", "max_ratio", "lars", "larc"],
)
def test_the_kept_ratio_is_the_factor_that_the_update_has(tx, rate):
    found = list(ratios_used(tx))
    assert len(found) >= 4
    for name, used, kept_ratio in found:
        np.testing.assert_allclose(used, rate * kept_ratio, rtol=1e-6, err_msg=name)
    assert len({round(ratio, 9) for *_, ratio in found}) > 1


@pytest.mark.parametrize(("decay", "ratio"), [(0.0, 0.006), (0.1, 0.00375)])
def test_the_state_cannot_tell_another_weight_decay_than_the_update_has(decay, ratio):
    params, grads = ({"kernel": jnp.full((2, 2), x)} for x in (3.0, 0.5))
    tx = KEEPS(decay)
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(kept(state)["kernel"].trust_ratio, ratio, rtol=1e-6)
    used = updates["kernel"] / (grads["kernel"] + decay * params["kernel"])
    np.testing.assert_allclose(used, ratio, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.9, None])
def test_a_state_of_lars_and_of_the_chain_by_hand_are_one(momentum):
    rate = optax.linear_schedule(0.5, 0.1, 5)
    trace = optax.trace(momentum) if momentum else optax.identity()
    by_hand = optax.chain(KEEPS(**OPTIONS), optax.scale_by_learning_rate(rate), trace)
    lars = lars_optax.lars(rate, **OPTIONS, momentum=momentum, keep_layer_stats=True)
    ours, theirs = lars.init(PARAMS), by_hand.init(PARAMS)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert len(ours) == 3
    for grads in recorded_grads()[:3]:  # each goes on from the other's state
        updates, after = lars.update(grads, theirs, PARAMS)
        wanted, theirs = by_hand.update(grads, ours, PARAMS)
        assert_equal(updates, wanted)
        assert_equal(after, theirs)
        ours = after


@pytest.mark.parametrize(
    "name", ["goyal-resnet50-sgd-8192", "mlperf-v0.7-resnet50-lars-4096"]
)
def test_a_recipe_computes_the_statistics_that_its_optimizer_keeps(name):
    recipe = lars_optax.recipes.get(name)
    tx = recipe.optimizer(50_000, keep_layer_stats=True)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    stats = recipe.layer_stats(GRADS, PARAMS)
    assert_equal(kept(state), stats)
    ratios = {float(x.trust_ratio) for x in stats.values()}
    assert (ratios == {1.0}) == (recipe.algorithm == "sgd")


def test_sgd_of_biases_alone_has_statistics():
    recipe = lars_optax.recipes.get("goyal-resnet50-sgd-8192")
    recipe = recipe.replace(mask="exclude_bias_and_norm")
    biases = {"bias": jnp.full(4, 0.5)}
    recipe.optimizer(50_000).init(biases)
    stats = recipe.layer_stats(biases, biases)
    assert [float(x) for x in stats["bias"]] == [1.0, 1.0, 1.0]


def test_a_recipe_without_a_weight_decay_asks_for_it():
    recipe = lars_optax.recipes.get("goyal-resnet50-sgd-8192")
    recipe = recipe.replace(weight_decay=None)
    with pytest.raises(ValueError, match="does not state weight_decay"):
        recipe.layer_stats(GRADS, PARAMS)
