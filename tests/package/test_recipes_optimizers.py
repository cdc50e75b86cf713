"""Law: recipes train as their authors did."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees
from reference import Lars
from trees import PARAMS, RECORDED, WEIGHTS, assert_equal, replay

import lars_optax
from lars_optax import recipes

MLPERF = recipes.get("mlperf-v1.0-resnet50-lars-8192")
GOYAL = recipes.get("goyal-resnet50-sgd-8192")
SHORT = {"batch_size": 100, "epochs": 4}


@pytest.mark.parametrize("name", ["paper-t5-alexnet_bn-lars-512", MLPERF.name])
def test_lars_recipe_equals_the_reference(name):
    assert recipes.get(name).momentum == 0.9
    assert_trains_as(recipes.get(name), fallback=1.0)


# Weights follow the rule of each source; β is raised so that denominators differ.
@pytest.mark.parametrize(("name", "order", "denominator", "fallback", "eps"), [
    ("barlow-twins-resnet50-lars-2048", "unscaled", "joint", 0.024, 0.0),
    ("vicreg-resnet50-lars-512", "unscaled", "joint", 1.0, 0.0),
    ("byol-resnet50-lars-4096-1000-epochs", "unscaled", "joint", 1.0, 0.0),
    ("simclr-resnet50-lars-4096-linear", "scaled", "joint", 1.0, 0.0),
    ("moco-v3-resnet50-lars-4096-300-epochs", "unscaled", "joint", 1.0, 0.0),
    ("swav-resnet50-lars-4096", "unscaled", "separate", 1.0, 1e-8),
    ("mlperf-v0.7-resnet50-lars-4096", "scaled", "separate", 1.0, 1e-7),
    ("mlperf-rcp-resnet50-lars-3264", "unscaled", "separate", 1.0, 0.0),
])  # fmt: skip
def test_a_recipe_has_the_rule_of_its_source(name, order, denominator, fallback, eps):
    recipe = recipes.get(name)
    assert (recipe.momentum_order, recipe.denominator) == (order, denominator)
    np.testing.assert_allclose([recipe.fallback_ratio, recipe.eps], [fallback, eps])
    rule = {"order": order, "denominator": denominator, "fallback": fallback}
    assert_trains_as(recipe.replace(weight_decay=0.3, eps=0.1), **rule, eps=0.1)


def test_the_order_post_has_the_ratio_of_the_momentum():
    recipe = recipes.get("simclr-resnet50-lars-4096-linear").replace(
        momentum_order="post", weight_decay=0.3, denominator="separate"
    )
    assert_trains_as(recipe, order="post", denominator="joint", fallback=1.0)
    tx = recipe.optimizer(1000, keep_layer_stats=True)
    state = tx.init(PARAMS)
    for step in range(3):
        _, state = tx.update(RECORDED[step], state, PARAMS)
        stats = optax.tree.get(state, "layer_stats")
        if step == 0:  # the momentum of a first update is its g + βw
            expected = recipe.layer_stats(RECORDED[0], PARAMS)
            for name in PARAMS:
                np.testing.assert_allclose(
                    stats[name].trust_ratio, expected[name].trust_ratio, rtol=1e-6
                )
    sgd = recipe.replace(algorithm="sgd")
    unscaled = sgd.replace(momentum_order="unscaled")
    assert_equal(replay(sgd.optimizer(1000)), replay(unscaled.optimizer(1000)))


def assert_trains_as(recipe, **rule):
    recipe = recipe.replace(**SHORT, warmup_epochs=1, warmup_start=0.0)
    rate = recipe.schedule(1000)
    names = PARAMS if recipe.mask is True else WEIGHTS
    beta = {"beta": recipe.weight_decay, "mu": recipe.momentum}
    oracle = Lars(PARAMS, decayed=names, adapted=names, **beta, **rule)
    for step, got in enumerate(replay(recipe.optimizer(1000))):
        expected = oracle.step(RECORDED[step], float(rate(step)))
        assert_equal(got, expected, rtol=2e-5)  # a rate of 17 on unadapted leaves


def test_fallback_ratio_is_that_of_leaves_not_adapted_and_of_zero_gradients():
    recipe = MLPERF.replace(warmup_epochs=0)
    grads, changed = RECORDED[0], (recipe.replace(fallback_ratio=x) for x in (1.0, 0.5))
    both = [replay(x.optimizer(10**6), grads=[grads])[0] for x in changed]
    for name, weight in PARAMS.items():
        whole, less = (np.asarray(got[name] - weight) for got in both)
        falls_back = np.ndim(weight) < 2 or not grads[name].any()
        # Differences of float32 weights near 1: an absolute 1e-6.
        expected = whole * (0.5 if falls_back else 1.0)
        np.testing.assert_allclose(less, expected, rtol=1e-4, atol=1e-6)
        assert whole.any() == (np.ndim(weight) > 1 or grads[name].any()), name


def test_sgd_recipe_has_the_rate_inside_the_momentum_and_goyal_outside():
    def steps(recipe):
        return replay(recipe.optimizer(1000))

    def by_hand(recipe, scaled):
        rate = optax.scale_by_learning_rate(recipe.schedule(1000))
        trace = optax.trace(0.9, nesterov=recipe.nesterov)
        mask = None if scaled else trees.as_mask(WEIGHTS, PARAMS)
        decay = optax.add_decayed_weights(1e-4, mask)
        order = (rate, trace) if scaled else (trace, rate)
        return replay(optax.chain(decay, *order))

    caffe = recipes.get("paper-t1-resnet50-sgd-256").replace(**SHORT)
    goyal = GOYAL.replace(**SHORT, warmup_epochs=1, boundaries=(2, 3))
    assert_equal(steps(caffe), by_hand(caffe, True))
    assert_equal(steps(goyal), by_hand(goyal, False))


def test_sgd_recipe_takes_biases_alone():
    params = {"bias": jnp.ones(3)}
    updates = trees.update(GOYAL.optimizer(10**6), params, params)
    np.testing.assert_allclose(updates["bias"], -0.1 * 1.9, rtol=1e-6)  # Nesterov


@pytest.mark.parametrize("order", ["scaled", "unscaled"])
def test_sgd_recipe_sums_in_a_float32_buffer_and_decays_no_stacked_vector(order):
    recipe = GOYAL.replace(warmup_epochs=0, momentum_order=order, weight_decay=0.5)
    tx = recipe.optimizer(10**6, stacked_axes=0, accumulator_dtype="float32")
    tree = {"kernel": jnp.ones((2, 3, 4)), "gain": jnp.ones((2, 4))}
    params = jax.tree.map(lambda x: x.astype("bfloat16"), tree)
    grads = jax.tree.map(lambda x: x * jnp.bfloat16(1e-2), params)
    *_, (updates, state) = trees.each_step(tx, [grads] * 2, params)
    rate = -recipe.learning_rate if order == "scaled" else 1.0
    sums = {name: 1.9 * rate * (float(jnp.bfloat16(1e-2)) + decay)
            for name, decay in (("kernel", 0.5), ("gain", 0.0))}  # fmt: skip
    trace = optax.tree.get(state, "trace")
    assert {x.dtype.name for x in updates.values()} == {"bfloat16"}
    for name, expected in sums.items():
        np.testing.assert_allclose(trace[name], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_lars_recipe_is_lars_in_half_precision_and_of_stacked_layers(dtype, momentum):
    recipe = MLPERF.replace(warmup_epochs=0, momentum=momentum)
    random = np.random.default_rng(0)
    draw = [{"kernel": random.normal(size=(3, 4, 5)) * 1e-4} for _ in range(4)]
    params, *grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), draw)
    options = {"stacked_axes": 0, "accumulator_dtype": "float32"}
    rate, tx = recipe.schedule(10**6), recipe.optimizer(10**6, **options)
    own = lars_optax.lars(rate, recipe.weight_decay, momentum=momentum, **options)
    assert_equal(replay(tx, params, grads), replay(own, params, grads))
    held = sum(x.size for x in jax.tree.leaves(tx.init(params)))
    assert held == 1 + (params["kernel"].size if momentum else 0)  # and a count
