"""Laws of `lars` inside Optax's wrappers, each against an oracle without them."""

from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees
from jax.flatten_util import ravel_pytree
from reference import Lars, trust_ratio
from trees import PARAMS, RECORDED, assert_equal, assert_same_history, replay, update

import lars_optax

OPTIONS = {"weight_decay": 0.01, "trust_coefficient": 0.01}
inject = optax.inject_hyperparams
RATE, WEIGHTS = trees.learning_rate, trees.WEIGHTS
REFERENCE = {"decayed": WEIGHTS, "adapted": WEIGHTS, "beta": 0.01, "eta": 0.01}
LARS = lars_optax.lars(RATE, **OPTIONS)
KEEPING = partial(lars_optax.lars, RATE, keep_layer_stats=True, **OPTIONS)
SOME = ("conv", "conv_bias", "unseen")
IS_SOME = {name: name in SOME for name in PARAMS}
IS_REST = {name: name not in SOME for name in PARAMS}


def by_the_book(grads, names=PARAMS, rate=RATE, **options):
    """Parameters after each step of the float64 reference."""
    book = Lars({name: PARAMS[name] for name in names}, **REFERENCE | options)
    return [dict(book.step(g, float(rate(i)))) for i, g in enumerate(grads)]


def test_injected_values_are_those_of_a_fresh_lars_at_every_step_of_one_trace():
    names = ("learning_rate", "momentum", "weight_decay", "trust_coefficient")
    values = [(0.5, 0.9, 0.0, 0.01), (0.2, 0.9, 0.1, 0.01), (0.2, 0.5, 0.1, 0.03)]
    tx, traces = inject(lars_optax.lars)(0.5), []
    state, inner_state = tx.init(PARAMS), lars_optax.lars(0.5).init(PARAMS)

    @jax.jit
    def step(grads, state):
        traces.append(1)
        return tx.update(grads, state, PARAMS)

    for grads, numbers in zip(RECORDED[:3], values, strict=True):
        new = dict(zip(names, numbers, strict=True))
        state = optax.tree.set(state, **{k: jnp.float32(x) for k, x in new.items()})
        updates, state = step(grads, state)
        expected = lars_optax.lars(**new).update(grads, inner_state, PARAMS)
        assert_equal((updates, state.inner_state), expected, trees.TOLERANCE)
        inner_state = expected[1]
    assert len(traces) == 1


def test_an_injected_schedule_is_the_schedule():
    decay = optax.linear_schedule(0.0, 0.01, 40)
    tx = inject(lars_optax.lars)(RATE, decay)
    assert_same_history(replay(tx), replay(lars_optax.lars(RATE, decay)))


def test_masks_named_in_static_args_are_masks():
    static = ("weight_decay_mask", "trust_ratio_mask")
    masks = dict.fromkeys(static, lars_optax.match_paths("conv"))
    build = inject(lars_optax.lars, static_args=static)
    expected = update(lars_optax.lars(0.5, **OPTIONS, **masks))
    assert_equal(update(build(0.5, **OPTIONS, **masks)), expected, trees.TOLERANCE)


LOW = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


@pytest.mark.parametrize("promotion", ["standard", "strict"])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("optimizer", [lars_optax.lars, lars_optax.larc])
def test_injected_values_are_float32_or_refused(optimizer, dtype, promotion):
    options = {"learning_rate": 7.3, "momentum": 0.999, "weight_decay": 0.01}
    params = {"kernel": jnp.full((2, 2), 2.0, dtype), "bias": jnp.ones(2, dtype)}
    grads = jax.tree.map(lambda w: 0.5 * w, params)
    with jax.numpy_dtype_promotion(promotion):
        rounded = inject(optimizer)(**options)
        for init in (rounded.init, jax.jit(rounded.init)):
            trees.assert_refused(f"dtype {dtype}.*hyperparam_dtype", init, params)
        build = inject(optimizer, hyperparam_dtype=jnp.float32)
        histories = [
            [updates for updates, _ in trees.each_step(tx, [grads] * 3, params)]
            for tx in (build(**options), optimizer(**options))
        ]
    assert_equal(*jax.tree.map(jnp.float32, histories))


def test_a_schedule_that_is_injected_in_bfloat16_is_refused():
    params = {"kernel": jnp.ones((2, 2), "bfloat16")}
    init = inject(lars_optax.lars)(RATE).init
    trees.assert_refused("is an array of dtype bfloat16", init, params)


@pytest.mark.parametrize("skip", [None, optax.skip_not_finite])
def test_multi_steps_are_lars_on_the_mean_gradient(skip):
    tx = optax.MultiSteps(LARS, 4, should_skip_update_fn=skip)
    groups = [RECORDED[i : i + 4] for i in range(0, len(RECORDED), 4)]
    means = [{k: np.mean([g[k] for g in group], 0) for k in PARAMS} for group in groups]
    if skip:  # a gradient that is skipped is as none at all
        bad = optax.tree.scale(np.nan, trees.GRADS)
        groups = [[group[0], bad, *group[1:]] for group in groups]
    found, every = replay(tx, grads=list(chain(*groups))), len(groups[0])
    assert_same_history(found[every - 1 :: every], by_the_book(means))
    for waiting in found[every : 2 * every - 1]:
        assert_equal(waiting, found[every - 1])


def test_apply_if_finite_makes_a_bad_step_as_none_at_all():
    def last(tx, grads):
        params, state, step = PARAMS, tx.init(PARAMS), jax.jit(trees.train_step(tx))
        for g in grads:
            params, state = step(g, state, params)
        return params, state

    good = RECORDED[:4]
    bad = [{**good[0], "head": good[0]["head"] * x} for x in (np.inf, np.nan)]
    params, state = last(optax.apply_if_finite(LARS, 3), good[:2] + bad + good[2:])
    expected = last(LARS, good)  # so its schedule's count too
    assert_equal((params, state.inner_state), expected, trees.TOLERANCE)
    assert (int(state.notfinite_count), int(state.total_notfinite)) == (0, 2)


def test_partition_trains_each_group_as_if_alone():
    other = lars_optax.lars(0.3, 0.01, trust_coefficient=0.1, nesterov=True)
    found = replay(optax.partition({True: LARS, False: other}, IS_SOME))
    assert_same_history(found, by_the_book(RECORDED, SOME))
    rest, options = PARAMS.keys() - set(SOME), {"eta": 0.1, "nesterov": True}
    assert_same_history(found, by_the_book(RECORDED, rest, lambda _: 0.3, **options))


@pytest.mark.parametrize(("tx", "left", "momenta"), [
    (optax.masked(LARS, IS_SOME), 1.0, len(SOME)),
    (optax.chain(LARS, optax.freeze(IS_REST)), 0.0, len(PARAMS)),
    (optax.selective_transform(LARS, freeze_mask=IS_REST), 0.0, len(SOME)),
], ids=["masked", "freeze", "selective_transform"])  # fmt: skip
def test_what_is_left_out_is_left_and_the_rest_trained_as_if_alone(tx, left, momenta):
    def some(tree):
        return {name: tree[name] for name in SOME}

    grads = RECORDED[:3]
    ours = trees.each_step(tx, grads)
    alone = trees.each_step(LARS, map(some, grads), some(PARAMS))
    for g, found, (own, _) in zip(grads, ours, alone, strict=True):
        assert_equal(found[0], optax.tree.scale(left, g) | own)
    assert len(jax.tree.leaves(optax.tree.get(found[1], "trace"))) == momenta


AXES = {"conv": 3, "head": 0, "conv_bias": None, "last_norm_scale": 0, "unseen": None}
WRAPPED = {
    "lars": LARS,
    "inject_hyperparams": inject(lars_optax.lars)(0.5),
    "apply_if_finite": optax.apply_if_finite(LARS, 3),
    "multi_steps": optax.MultiSteps(LARS, 1).gradient_transformation(),
    "keep_layer_stats": KEEPING(),
    "keep_layer_stats_by_slice": KEEPING(stacked_axes=AXES),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_momentum_and_the_counts_are_found_by_name(name):
    grads = RECORDED[:2]
    *_, (updates, state) = trees.each_step(WRAPPED[name], grads)
    assert_equal(optax.tree.get(state, "trace"), updates)
    counts = optax.tree.get_all_with_path(state, "count")
    assert {(x.dtype.name, int(x)) for _, x in counts} == {("int32", 2)}


@pytest.mark.parametrize("name", WRAPPED)
def test_map_params_finds_the_momentum_and_keeps_what_is_no_parameter(name):
    tx, names = WRAPPED[name], {name: name for name in PARAMS}
    state = tx.init(PARAMS)
    mapped = optax.tree.map_params(tx, lambda _, name: name, state, names)
    expected = optax.tree.set(state, trace=names)
    if name == "multi_steps":
        expected = optax.tree.set(expected, acc_grads=names)
    assert jax.tree.flatten(mapped) == jax.tree.flatten(expected)  # the same arrays


def test_flattened_with_both_masks_true_the_net_is_one_layer():
    found = update(optax.flatten(lars_optax.scale_by_lars(0.01, True, 0.1, 0, True)))
    flat = [ravel_pytree(tree)[0] for tree in (PARAMS, trees.GRADS, found)]
    w, g, found = (np.asarray(x, np.float64) for x in flat)
    ratio = trust_ratio(w, g, 0.1, 0.01, 0.0, "separate", 1.0)
    assert_equal(found, ratio * (g + 0.01 * w), trees.TOLERANCE)


def test_clipping_first_matters_only_to_the_decay():
    def histories(decay):
        lars = lars_optax.lars(RATE, decay, True, 0.01, 0.0, True)
        clipped = optax.chain(optax.clip_by_global_norm(0.1), lars)
        # At zero a layer takes its raw gradient.
        params = {k: w for k, w in PARAMS.items() if w.any()}
        grads = [{k: g[k] for k in params} for g in RECORDED]
        return [replay(tx, params, grads) for tx in (clipped, lars)]

    assert_same_history(*histories(0.0))
    with pytest.raises(AssertionError):
        assert_same_history(*histories(0.1), tolerance=0.1)


WRAPPERS = {
    "schedule_free": lambda lars: optax.contrib.schedule_free(lars, 1.0),
    "lookahead": lambda lars: optax.lookahead(lars, 5, 0.5),
    "ema": lambda lars: optax.chain(lars, optax.ema(0.9)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_loss_of_a_quadratic_falls(wrapper):
    lars = lars_optax.lars(1.0, trust_coefficient=0.05, momentum=None)
    tx = WRAPPERS[wrapper](lars)
    start = {"kernel": jnp.full((2, 2), 3.0)}

    def loss(params):
        return jnp.sum((getattr(params, "fast", params)["kernel"] - 1) ** 2)

    def grads(params, _):
        return getattr(g := jax.grad(loss)(params), "fast", g)

    if wrapper == "lookahead":
        start = optax.LookaheadParams.init_synced(start)
    history = trees.train(tx, start, grads, range(60))
    losses = [loss(params) for params in (start, *history)]
    assert losses[-1] < 0.01 * losses[0]


def test_an_unused_group_of_a_partition_asks_its_mask_nothing():
    mask = lars_optax.match_paths("conv")
    unused = lars_optax.lars(0.5, 0.1, mask, trust_ratio_mask=mask)
    rules = {"lars": unused, "rest": optax.sgd(0.1)}
    tx = optax.partition(rules, dict.fromkeys(PARAMS, "rest"))
    assert_equal(update(tx), update(optax.sgd(0.1)))
