"""`keep_layer_stats`: the state holds what the update used, in a fixed structure."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import GRADS, PARAMS, RECORDED, assert_equal, assert_refused, each_step

import lars_optax
from lars_optax import LayerStats

pytestmark = pytest.mark.usefixtures("for_gpu")

OPTIONS = {"weight_decay": 0.003, "trust_coefficient": 0.01}
KEEPS = partial(lars_optax.scale_by_lars, keep_layer_stats=True)


def kept(state):
    return optax.tree.get(state, "layer_stats")


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def first_step(tx, grads=GRADS, params=PARAMS):
    """The first update, and the statistics it leaves."""
    ((updates, state),) = each_step(tx, [grads], params)
    return updates, kept(state)


def test_keeps_what_layer_stats_says_and_changes_no_update():
    lars = lars_optax.lars(0.1, **OPTIONS)
    tx = lars_optax.lars(0.1, **OPTIONS, keep_layer_stats=True)
    params, state, alone = PARAMS, tx.init(PARAMS), lars.init(PARAMS)
    for grads in RECORDED[:3]:
        expected = lars_optax.layer_stats(grads, params, **OPTIONS)
        wanted, alone = lars.update(grads, alone, params)
        updates, state = tx.update(grads, state, params)
        assert_equal(kept(state), expected)
        assert_equal(updates, wanted)
        params = optax.apply_updates(params, updates)


def test_the_state_of_an_empty_tree_can_be_donated():
    tx = KEEPS()
    _, state = jax.jit(tx.update, donate_argnums=1)({}, tx.init({}), {})
    assert state.count == 1


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
    grads = jax.tree.map(lambda *x: jnp.stack(x), *RECORDED[:5])

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), kept(state)

    _, history = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), grads)
    first = lars_optax.layer_stats(RECORDED[0], PARAMS, **OPTIONS)
    assert_equal(jax.tree.map(lambda x: x[0], history), first, 1e-6)
    assert len(np.unique(history["head"].grad_norm)) == 5


def test_under_multi_steps_it_sees_the_mean_and_after_clipping_the_clipped():
    inner = optax.chain(optax.clip_by_global_norm(0.1), KEEPS(**OPTIONS))
    tx = optax.MultiSteps(inner, every_k_schedule=2)
    (_, waiting), (_, done) = each_step(tx, RECORDED[:2])
    assert all(not np.any(x) for x in jax.tree.leaves(kept(waiting)))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *RECORDED[:2])
    scale = 0.1 / np.sqrt(sum(np.sum(x**2) for x in mean.values()))
    clipped = jax.tree.map(lambda x: x * scale, mean)
    expected = lars_optax.layer_stats(clipped, PARAMS, **OPTIONS)
    assert_equal(kept(done), expected, 1e-5)


def test_a_leaf_without_a_gradient_keeps_what_it_had():
    grads = jax.tree.map(lambda g: 2 * g, GRADS) | {"head": None}
    (_, first), (updates, second) = each_step(KEEPS(**OPTIONS), [GRADS, grads])
    had, has = kept(first), kept(second)
    assert updates["head"] is None
    assert_equal(has["head"], had["head"])
    assert_equal(has["conv"].grad_norm, 2 * had["conv"].grad_norm, 1e-6)


def test_a_masked_leaf_has_none():
    mask = {name: name != "head" for name in PARAMS}
    _, stats = first_step(optax.masked(KEEPS(**OPTIONS), mask))
    assert isinstance(stats["head"], optax.MaskedNode)
    expected = lars_optax.layer_stats(GRADS, PARAMS, **OPTIONS)
    assert_equal(stats["conv"], expected["conv"])
    assert isinstance(stats["conv"], LayerStats)


def test_a_scheduled_weight_decay_counts_by_itself(for_gpu):
    tx = KEEPS(lambda count: 0.1 * count, True, 0.01)
    for count, (_, state) in enumerate(each_step(tx, [GRADS] * 3)):
        decay = jnp.float32(0.1) * count
        expected = lars_optax.layer_stats(GRADS, PARAMS, decay, True, 0.01)
        # In the form for a GPU, only `layer_stats` computes with vectors of layers. The
        # two results may then differ by one rounding.
        assert_equal(kept(state), expected, rtol=2e-7 if for_gpu else 0)


def test_wrong_arguments_are_refused():
    assert_refused("trust_coefficient", KEEPS, trust_coefficient=0.0)
    tx, no_bool = KEEPS(), "keep_layer_stats must be True or False, got 1"
    assert_refused("params is None", tx.update, GRADS, tx.init(PARAMS))
    assert_refused(no_bool, lars_optax.lars, 0.1, keep_layer_stats=1)


def ratios_used(tx):
    """Of each leaf, update / (g + βw) of the first update, and the kept ratio."""
    updates, stats = first_step(tx)
    decayed = lars_optax.exclude_bias_and_norm(PARAMS)
    for name, update in updates.items():
        g, w = (np.asarray(tree[name], float) for tree in (GRADS, PARAMS))
        step = g + OPTIONS["weight_decay"] * decayed[name] * w
        at = np.abs(step).argmax()
        if step.flat[at]:
            used = np.asarray(update, float).flat[at] / step.flat[at]
            yield name, used, float(stats[name].trust_ratio)


@pytest.mark.parametrize(("tx", "rate"), [
    (KEEPS(**OPTIONS), 1.0),
    (KEEPS(**OPTIONS, denominator="joint"), 1.0),
    (KEEPS(**OPTIONS, max_ratio=0.004), 1.0),
    (lars_optax.lars(0.5, **OPTIONS, keep_layer_stats=True), -0.5),
    (lars_optax.larc(0.02, **OPTIONS, keep_layer_stats=True), -0.02),
], ids=["separate", "joint", "max_ratio", "lars", "larc"])  # fmt: skip
def test_the_kept_ratio_is_the_factor_that_the_update_has(tx, rate):
    found = list(ratios_used(tx))
    assert len(found) >= 4
    for name, used, kept_ratio in found:
        np.testing.assert_allclose(used, rate * kept_ratio, rtol=1e-6, err_msg=name)
    assert len({round(ratio, 9) for *_, ratio in found}) > 1


@pytest.mark.parametrize(("decay", "ratio"), [(0.0, 0.006), (0.1, 0.00375)])
def test_the_state_cannot_tell_another_weight_decay_than_the_update_has(decay, ratio):
    params, grads = ({"kernel": jnp.full((2, 2), x)} for x in (3.0, 0.5))
    updates, stats = first_step(KEEPS(decay), grads, params)
    np.testing.assert_allclose(stats["kernel"].trust_ratio, ratio, rtol=1e-6)
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
    for grads in RECORDED[:3]:  # each goes on from the other's state
        found = lars.update(grads, theirs, PARAMS)
        wanted = by_hand.update(grads, ours, PARAMS)
        assert_equal(found, wanted)
        (_, ours), (_, theirs) = found, wanted


GOYAL, MLPERF = map(lars_optax.recipes.get, (
    "goyal-resnet50-sgd-8192", "mlperf-v0.7-resnet50-lars-4096"))  # fmt: skip


@pytest.mark.parametrize("recipe", [GOYAL, MLPERF], ids=["goyal", "mlperf"])
def test_a_recipe_computes_the_statistics_that_its_optimizer_keeps(recipe):
    stats = recipe.layer_stats(GRADS, PARAMS)
    assert_equal(first_step(recipe.optimizer(50_000, keep_layer_stats=True))[1], stats)
    ratios = {float(x.trust_ratio) for x in stats.values()}
    assert (ratios == {1.0}) == (recipe.algorithm == "sgd")


def test_sgd_of_biases_alone_has_statistics():
    recipe = GOYAL.replace(mask="exclude_bias_and_norm")
    biases = {"bias": jnp.full(4, 0.5)}
    recipe.optimizer(50_000).init(biases)
    stats = recipe.layer_stats(biases, biases)
    assert [float(x) for x in stats["bias"]] == [1.0, 1.0, 1.0]


def test_a_recipe_without_a_weight_decay_asks_for_it():
    stats = GOYAL.replace(weight_decay=None).layer_stats
    assert_refused("does not state weight_decay", stats, GRADS, PARAMS)
