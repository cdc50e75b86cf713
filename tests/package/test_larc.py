"""LARC: the rate of each layer is min(λ, γ); against NumPy, SGD and LARS."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees
from reference import Lars

import lars_optax

ETA, EPS, BETA, MU = 0.02, 1e-8, 0.01, 0.9


def by_hand(gammas, **rule):
    """Parameters after each step of momentum and min(λ/γ, 1), in float64."""
    weights = trees.WEIGHTS
    rule |= {"order": "unscaled", "beta": BETA, "mu": MU, "eps": EPS, "most": 1.0}
    oracle = Lars(trees.PARAMS, decayed=weights, adapted=weights, **rule)
    for gamma, grads in zip(gammas, trees.RECORDED, strict=True):
        oracle.eta = ETA / gamma if gamma else np.inf  # so λ/γ is infinite at γ = 0
        yield dict(oracle.step(grads, gamma))


@pytest.mark.parametrize("denominator", ["separate", "joint"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("fallback", [1.0, 0.3])
def test_follows_the_rule_from_a_rate_of_zero_on(nesterov, fallback, denominator):
    rule = {"nesterov": nesterov, "denominator": denominator}

    def schedule(count):
        return jnp.where(count < 2, 0.0, trees.learning_rate(count))

    tx = lars_optax.larc(schedule, BETA, fallback_ratio=fallback, **rule)
    found = trees.replay(tx)
    gammas = [float(schedule(jnp.asarray(k))) for k in range(len(found))]
    assert gammas[0] == 0
    trees.assert_same_history(found, by_hand(gammas, fallback=fallback, **rule), 1e-5)


def test_is_sgd_where_every_ratio_exceeds_the_rate():
    tx = lars_optax.larc(1e-5, 0.003, trust_coefficient=1.0)
    decay = optax.add_decayed_weights(0.003, trees.as_mask(trees.WEIGHTS, trees.PARAMS))
    sgd = optax.chain(decay, optax.sgd(1e-5, 0.9))
    trees.assert_same_history(trees.replay(tx), trees.replay(sgd))


def test_is_unscaled_lars_where_no_ratio_reaches_the_rate():
    gamma = 1e4
    tx = lars_optax.larc(gamma, eps=0.0, fallback_ratio=1e-6)
    rule = {"trust_coefficient": ETA / gamma, "fallback_ratio": 1e-6}
    rate = optax.scale_by_learning_rate(gamma)
    lars = optax.chain(lars_optax.scale_by_lars(**rule), optax.trace(0.9), rate)
    histories = (trees.replay(x, grads=trees.RECORDED[:10]) for x in (tx, lars))
    trees.assert_same_history(*histories)


def test_the_state_counts_only_where_something_is_scheduled():
    def names(tx):
        return [type(part).__name__ for part in tx.init(trees.PARAMS)]

    assert names(lars_optax.larc(0.1, 0.01))[0] == "EmptyState"
    assert names(lars_optax.larc(trees.learning_rate))[0] == "ScaleByLarsState"
    assert names(lars_optax.larc(0.1, lambda count: 0.01))[0] == "ScaleByLarsState"


def test_an_injected_rate_is_one_trace_and_clips_anew():
    tx = optax.inject_hyperparams(lars_optax.larc)(learning_rate=0.1)
    traces, state = [], tx.init(trees.PARAMS)

    @jax.jit
    def updates(state):
        traces.append(None)
        return tx.update(trees.GRADS, state, trees.PARAMS)[0]

    close = partial(np.testing.assert_allclose, rtol=1e-6)
    for gamma in (0.1, 1e-6, 0.0):
        state.hyperparams["learning_rate"] = jnp.asarray(gamma)
        jax.tree.map(close, updates(state), trees.update(lars_optax.larc(gamma)))
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_updates_have_the_parameters_dtype_and_a_wide_buffer_keeps_its_own(dtype):
    params = {"kernel": jnp.ones((4, 4), dtype)}
    tx = lars_optax.larc(jnp.float32(0.5), accumulator_dtype="float32")
    for updates, state in trees.each_step(tx, [params] * 3, params):
        assert updates["kernel"].dtype == dtype
        assert optax.tree.get(state, "trace")["kernel"].dtype == jnp.float32


@pytest.mark.parametrize(("argument", "value", "message"), [
    ("learning_rate", -1.0, "must be finite and >= 0"),
    ("momentum", 1.0, "must be finite"),
    ("nesterov", 1, "must be True or False"),
    ("eps", -1.0, "must be finite"),
])  # fmt: skip
def test_bad_arguments_are_named(argument, value, message):
    options = {"learning_rate": 0.1, argument: value}
    trees.assert_refused(f"{argument} {message}", lars_optax.larc, **options)
