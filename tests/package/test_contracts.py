"""What Optax asks of any transformation: a table of transforms × contracts.

A row that breaks a contract because of Optax is named at that contract with the reason:
it must fail, and so must the same around `optax.sgd`.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from trees import assert_equal, train_step

import lars_optax
from lars_optax import exclude_bias_and_norm

KERNEL, BIAS = jnp.array([[3.0, -4.0], [0.5, 1.0]]), jnp.array([0.5, -1.0])
PARAMS = {"kernel": KERNEL, "bias": BIAS, "scale": jnp.zeros(2)}
GRADS = jax.tree.map(jnp.cos, PARAMS)
RATE, DECAY = optax.linear_schedule(0.5, 0.1, 5), optax.linear_schedule(0.0, 0.1, 5)
GAMMA = optax.scale_by_learning_rate(RATE)
ETA = {"trust_coefficient": 0.5}  # large, so that a step shows in the parameters


def engine(optimizer, scale):
    """What rows are built of: ours, and SGD in its place."""
    lars, bare = optimizer(0.5, momentum=0.9), optimizer(0.5, momentum=None)
    return SimpleNamespace(optimizer=optimizer, scale=scale, lars=lars, bare=bare)


LARS = engine(partial(lars_optax.lars, weight_decay=0.01, **ETA),
              partial(lars_optax.scale_by_lars, **ETA))  # fmt: skip
SGD = engine(optax.sgd, lambda *_, **__: optax.identity())


def on_bias(yes, no, params):
    return {name: yes if name == "bias" else no for name in params}


TRANSFORMS = {
    "scale_by_lars": lambda x, _: x.scale(0.01),
    "scale_by_lars_scheduled_decay": lambda x, _: x.scale(DECAY),
    "lars": lambda x, _: x.lars,
    "lars_nesterov_wide": lambda x, _: x.optimizer(
        RATE, momentum=0.9, nesterov=True, accumulator_dtype="float32"),
    "larc": lambda *_: lars_optax.larc(RATE, 0.01, **ETA),
    "keep_layer_stats": lambda *_: lars_optax.lars(
        RATE, 0.01, keep_layer_stats=True, **ETA),
    "unscaled": lambda x, _: optax.chain(x.scale(0.01), optax.trace(0.9), GAMMA),
    "post": lambda x, _: optax.chain(
        optax.add_decayed_weights(0.01, exclude_bias_and_norm), optax.trace(0.9),
        x.scale(denominator="joint"), GAMMA),
    "inject_hyperparams": lambda x, _: optax.inject_hyperparams(
        x.optimizer, hyperparam_dtype=jnp.float32)(0.5),
    "multi_steps": lambda x, _: optax.MultiSteps(x.lars, 2).gradient_transformation(),
    "apply_if_finite": lambda x, _: optax.apply_if_finite(x.lars, 3),
    "partition": lambda x, p: optax.partition(
        {"lars": x.lars, "sgd": optax.sgd(0.1, 0.9)}, on_bias("sgd", "lars", p)),
    "masked": lambda x, p: optax.masked(x.lars, on_bias(False, True, p)),
    "masked_by_callable": lambda x, _: optax.masked(x.lars, exclude_bias_and_norm),
    "freeze": lambda x, p: optax.chain(x.lars, optax.freeze(on_bias(True, False, p))),
    "selective_transform": lambda x, p: optax.selective_transform(
        x.lars, freeze_mask=on_bias(True, False, p)),
    "schedule_free": lambda x, _: optax.contrib.schedule_free(x.bare, 0.5),
    "lookahead": lambda x, _: optax.lookahead(x.lars, 2, 0.5),
    "ema": lambda x, _: optax.chain(x.bare, optax.ema(0.9)),
}  # fmt: skip


def build(engine, name, params):
    """The transform of a row, and the parameters as it takes them."""
    tx = TRANSFORMS[name](engine, params)
    return tx, optax.LookaheadParams(params, params) if name == "lookahead" else params


def table(**broken_by_optax):
    rows = []
    for name in TRANSFORMS:
        reason = broken_by_optax.get(name)
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        for row, x in [(name, LARS), (f"{name}_of_sgd", SGD)][: 2 if reason else 1]:
            rows.append(pytest.param(partial(build, x, name), id=row, marks=marks))
    return rows


def types(tree):
    return jax.tree.map(lambda x: f"{x.dtype}{x.shape}{x.weak_type}", tree)


def train(tx, params, grads, **extra):
    """Updates and state after two steps, in which MultiSteps takes one."""
    state = tx.init(params)
    # These two would compile both of their ways anew at each update.
    conditional = isinstance(state, optax.MultiStepsState | optax.ApplyIfFiniteState)
    update = jax.jit(tx.update) if conditional else tx.update
    for _ in range(2):
        updates, state = update(grads, state, params, **extra)
    return updates, state


@pytest.mark.parametrize("make", table())
def test_steps_are_one_trace_do_what_eager_ones_do_and_reuse_what_is_donated(make):
    (tx, params), traces = make(PARAMS), []

    def step(params, state, grads):
        traces.append(isinstance(grads["bias"], jax.core.Tracer))
        return train_step(tx)(grads, state, params)

    # keep_unused: what a step replaces without reading it is given up too.
    jitted = jax.jit(step, donate_argnums=(0, 1), keep_unused=True)
    copy = jax.tree.map(jnp.copy, params)
    eager, ours = (params, tx.init(params)), (copy, tx.init(copy))
    for factor in (1.0, -3.0, 0.5):
        grads, old = optax.tree.scale(factor, GRADS), jax.tree.leaves(ours)
        eager, ours = step(*eager, grads), jitted(*ours, grads)
        assert types(ours) == types(eager)
        assert_equal(ours, eager, rtol=2e-6)  # a few roundings
        assert all(x.is_deleted() for x in old)
    assert sum(traces) == 1


@pytest.mark.parametrize("make", table())
def test_a_step_can_be_scanned_over_and_skipped_by_cond(make):
    tx, params = make(PARAMS)

    def skip(grads, state, params):
        return optax.tree.zeros_like(params), state

    def step(carry, g):
        params, state = carry
        seen = g["scale"][0] > 0
        updates, state = jax.lax.cond(seen, tx.update, skip, g, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, tx.init(params)
    stacked = jax.tree.map(lambda g: jnp.stack([g, 0 * g, g]), GRADS)
    end, _ = jax.eval_shape(partial(jax.lax.scan, step), start, stacked)
    assert types(end) == types(start)


LEFT_OUT = "what it leaves out has the dtype of its gradient"
MIXED = {
    "masked": LEFT_OUT, "masked_by_callable": LEFT_OUT, "selective_transform": LEFT_OUT,
    "apply_if_finite": "a step it skips has the dtypes of the gradients",
}  # fmt: skip
WIDER = MIXED | {"post": "optax.trace widens", "partition": "optax.sgd's buffer widens"}
DTYPES = {("float32", "float32"): {}, ("bfloat16", "bfloat16"): {},
          ("float32", "bfloat16"): MIXED, ("bfloat16", "float32"): WIDER}  # fmt: skip


@pytest.mark.parametrize(("make", "dtypes"), [
    pytest.param(*row.values, dtypes, id="-".join((row.id, *dtypes)), marks=row.marks)
    for dtypes, broken in DTYPES.items() for row in table(**broken)
])  # fmt: skip
def test_updates_are_typed_as_the_parameters_and_the_state_as_at_init(make, dtypes):
    params, grads = map(optax.tree.cast, (PARAMS, GRADS), dtypes)
    tx, params = make(params)
    state = jax.eval_shape(tx.init, params)
    assert types(state) == types(tx.init(params))
    updates, after = jax.eval_shape(tx.update, grads, state, params)
    assert types(updates) == types(params)
    assert types(after) == types(state)


@pytest.mark.parametrize("make", table(schedule_free="it copies the parameters"))
def test_the_state_can_be_made_from_shapes(make):
    tx, params = make(PARAMS)
    assert types(tx.init(jax.eval_shape(lambda: params))) == types(tx.init(params))


@pytest.mark.parametrize("make", table())
def test_extra_arguments_are_ignored(make):
    tx, params = make(PARAMS)
    found = train(optax.with_extra_args_support(tx), params, GRADS, value=1.0, extra=2)
    assert_equal(found, train(tx, params, GRADS))


@pytest.mark.parametrize("make", table())
def test_an_empty_tree_is_a_tree(make):
    tx, params = make({})
    updates, state = train(tx, params, {})
    assert (updates, types(state)) == (params, types(tx.init(params)))


@pytest.mark.parametrize("make", table())
def test_a_scalar_is_a_layer_of_one_element(make):
    def updates(shape):
        params = {"kernel": jnp.full(shape, 3.0), "bias": jnp.full(shape, -1.0)}
        return train(*make(params), jax.tree.map(jnp.cos, params))[0]

    found, expected = updates(()), jax.tree.map(lambda x: x[0], updates((1,)))
    assert types(found) == types(expected)
    assert_equal(found, expected, rtol=1e-6)


@pytest.mark.parametrize("empty", [None, optax.MaskedNode()], ids=["None", "masked"])
@pytest.mark.parametrize("make", table())
def test_an_empty_leaf_of_both_trees_stays_and_changes_nothing(make, empty):
    tx, params = make({**PARAMS, "none": empty})
    found = train(tx, params, {**GRADS, "none": empty})
    assert jax.tree.structure(found[0]) == jax.tree.structure(params)
    assert types(found[1]) == types(tx.init(params))
    assert_equal(*map(jax.tree.leaves, (found, train(*make(PARAMS), GRADS))))


@pytest.mark.parametrize("make", table(
    unscaled="optax.trace drops its buffer", ema="optax.ema drops its average",
    post="optax.add_decayed_weights takes arrays only", multi_steps="it adds up arrays",
    masked_by_callable="the mask of None is None", schedule_free="it adds up arrays",
    lookahead="it adds up arrays",
))  # fmt: skip
def test_a_gradient_of_none_stays_and_changes_nothing(make):
    tx, params = make(PARAMS)
    updates, state = train(tx, params, {**GRADS, "kernel": None})
    assert (updates["kernel"], types(state)) == (None, types(tx.init(params)))
    expected, _ = train(*make(PARAMS), GRADS)
    assert_equal(*({k: x[k] for k in ("bias", "scale")} for x in (updates, expected)))
