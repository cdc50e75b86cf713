"""Law: what cannot be meant is refused, naming the argument or path and the value."""

import re
from collections import OrderedDict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lars_optax

PARAMS = {
    "conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "head": jnp.ones((2, 2)),
}


def step(tx, grads=PARAMS, params=PARAMS):
    return tx.update(grads, tx.init(params), params)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(
            ("learning_rate", x)
            for x in (-0.1, float("nan"), float("inf"), "0.1", True)
        ),
        *(("weight_decay", x) for x in (-1e-4, float("nan"), np.float32(-1), None)),
        *(("trust_coefficient", x) for x in (0, 0.0, -0.001, float("nan"))),
        *(("eps", x) for x in (-1e-8, float("nan"), np.ones(2))),
        *(("momentum", x) for x in (1, 1.0, -0.1, 1.5, float("nan"))),
        *(("fallback_ratio", x) for x in (-0.5, float("inf"))),
        ("denominator", "sum"),
        ("denominator", None),
        ("weight_decay_mask", "no_bias"),
        ("trust_ratio_mask", "norms"),
        ("trust_ratio_mask", None),
        ("weight_decay_mask", 0.001),
        ("nesterov", "no"),
        ("accumulator_dtype", "int32"),
        ("accumulator_dtype", "float31"),
    ],
)
def test_bad_argument_of_lars(argument, value):
    with pytest.raises(ValueError, match=argument) as error:
        lars_optax.lars(**{"learning_rate": 0.1, argument: value})
    assert str(value) in str(error.value) or repr(value) in str(error.value)


@pytest.mark.parametrize(
    "value", [np.float16(0.9), np.array(0.9, np.float16), jnp.bfloat16(0.9)]
)
def test_numbers_of_fewer_than_32_bits_are_refused_by_dtype(value):
    with pytest.raises(
        ValueError, match=f"momentum is an array of dtype {value.dtype}"
    ):
        lars_optax.lars(0.1, momentum=value)


@pytest.mark.parametrize("value", [jnp.asarray(True), jnp.asarray(1 + 2j)])
def test_arrays_that_are_no_real_numbers_are_refused_by_dtype(value):
    with pytest.raises(ValueError, match=f"learning_rate.*dtype {value.dtype}"):
        lars_optax.lars(value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_max_ratio(value):
    with pytest.raises(ValueError, match="max_ratio"):
        lars_optax.scale_by_lars(max_ratio=value)


def test_array_hyperparameters_are_refused():
    for argument in ("learning_rate", "weight_decay", "trust_coefficient", "eps"):
        for value in (jnp.ones(2), np.ones(2)):
            with pytest.raises(ValueError, match=argument):
                lars_optax.lars(**{"learning_rate": 0.1, argument: value})


def test_layer_stats_refuse_a_schedule():
    with pytest.raises(ValueError, match="weight_decay is a schedule"):
        lars_optax.layer_stats(PARAMS, PARAMS, optax.constant_schedule(0.1))


def test_traced_hyperparameters_are_not_validated():
    @jax.jit
    def run(rate, momentum):
        return step(lars_optax.lars(rate, momentum=momentum))[0]

    assert np.all(run(-1.0, 1.0)["head"] > 0)


@pytest.mark.parametrize("mask", ["weight_decay_mask", "trust_ratio_mask"])
@pytest.mark.parametrize("value", [False, np.False_, np.array(False), jnp.array(False)])
def test_bare_false_names_static_args(mask, value):
    with pytest.raises(ValueError, match=f"{mask} is False.*static_args"):
        lars_optax.lars(0.1, **{mask: value})


@pytest.mark.parametrize("mask", ["weight_decay_mask", "trust_ratio_mask"])
@pytest.mark.parametrize(
    "value",
    [
        lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        lars_optax.exclude_bias_and_norm,
        lars_optax.match_paths("kernel"),
    ],
    ids=["lambda", "exclude_bias_and_norm", "match_paths"],
)
def test_callable_swallowed_by_inject_hyperparams_names_static_args(mask, value):
    tx = optax.inject_hyperparams(lars_optax.lars)(0.1, **{mask: value})
    with pytest.raises(ValueError, match="static_args"):
        step(tx)


def test_dtype_swallowed_by_inject_hyperparams_names_static_args():
    tx = optax.inject_hyperparams(lars_optax.lars)(0.1, accumulator_dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"accumulator_dtype.*static_args"):
        step(tx)


@pytest.mark.parametrize("mask", ["weight_decay_mask", "trust_ratio_mask"])
@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"conv": True}, "not cover 'head'"),
        ({"conv": {"kernel": True}, "head": True}, "not cover 'conv/bias'"),
        ({"conv": True, "head": True, "tail": True}, "nothing at 'tail'"),
        ({"conv": {"kernel": True, "bias": True, "x": True}, "head": True},
         "nothing at 'conv/x'"),
        ({"conv": True, "head": {"kernel": True}}, "not cover 'head'"),
        ({"conv": True, "head": 1.0}, "1.0 for 'head'"),
        ({"conv": True, "head": None}, "None for 'head'"),
    ],
)  # fmt: skip
def test_mask_that_does_not_fit_names_the_path(mask, tree, message):
    for given in (tree, lambda _: tree):
        with pytest.raises(ValueError, match=f"{mask}.*{re.escape(message)}"):
            step(lars_optax.lars(0.1, 0.1, **{mask: given}))


def test_default_mask_that_selects_nothing_is_refused():
    flat = optax.flatten(lars_optax.lars(0.1))
    with pytest.raises(ValueError, match=r"trust_ratio_mask.*optax\.flatten"):
        step(flat)
    vector = jnp.ones(3)
    with pytest.raises(ValueError, match="trust_ratio_mask"):
        step(lars_optax.lars(0.1), vector, vector)
    with pytest.raises(ValueError, match="weight_decay_mask"):
        step(lars_optax.lars(0.1, 0.1, trust_ratio_mask=True), vector, vector)
    step(lars_optax.lars(0.1, trust_ratio_mask=True), vector, vector)
    assert step(lars_optax.lars(0.1), {}, {})[0] == {}


def test_missing_params_are_named():
    tx = lars_optax.lars(0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(PARAMS, tx.init(PARAMS))


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ({"conv": PARAMS["conv"]}, "updates have nothing at 'head'"),
        ({**PARAMS, "tail": jnp.ones(2)}, "params have nothing at 'tail'"),
        ({**PARAMS, "head": jnp.ones((2, 3))}, r"'head' has shape \(2, 3\)"),
        ({**PARAMS, "head": jnp.ones(2)}, r"'head' has shape \(2,\)"),
        ({**PARAMS, "head": optax.MaskedNode()}, "MaskedNode at 'head'"),
        ({**PARAMS, "head": 1j * PARAMS["head"]}, "'head' is complex"),
        (list(PARAMS.values()), "one structure"),
    ],
)
def test_updates_unlike_params_name_the_path(grads, message):
    tx = lars_optax.scale_by_lars()
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(PARAMS), PARAMS)


NOT_PARAMETERS = {
    "integers": (jnp.arange(4).reshape(2, 2), "has dtype int32"),
    "bools": (np.ones((2, 2), bool), "has dtype bool"),
    "key": (jax.random.key(0), "has dtype key<fry>"),
    "function": (lambda x: x, "is of type function, not an array"),
    "object": (object(), "is of type object, not an array"),
    "python_int": (3, "has dtype int32"),
}
MAKERS = {
    "scale_by_lars": lars_optax.scale_by_lars,
    "lars": partial(lars_optax.lars, 0.1),
    "larc": partial(lars_optax.larc, 0.1),
    "record_layer_stats": lars_optax.record_layer_stats,
    # Without a dtype Optax itself fails on a tree of other things than arrays.
    "injected": partial(
        optax.inject_hyperparams(lars_optax.lars, "stacked_axes", jnp.float32), 0.1
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", NOT_PARAMETERS)
def test_init_refuses_what_is_no_parameter_by_path_with_the_remedy(maker, name):
    leaf, found = NOT_PARAMETERS[name]
    params = {"net": {"kernel": jnp.ones((2, 2)), "x": leaf}}
    remedy = r".*equinox\.is_inexact_array.*optax\.masked"
    with pytest.raises(ValueError, match=f"parameter at 'net/x' {found}{remedy}"):
        MAKERS[maker]().init(params)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_ratio_mask": {"conv": True}}, "trust_ratio_mask.*not cover 'head'"),
        ({"stacked_axes": 2}, "stacked_axes is 2 for 'conv/bias'"),
        ({"axis_name": [3]}, "axis_name"),
    ],
    ids=["mask", "stacked_axes", "axis_name"],
)
def test_init_refuses_arguments_that_do_not_fit_the_parameters(maker, options, message):
    with pytest.raises(ValueError, match=message):
        MAKERS[maker](**options).init(PARAMS)


def test_init_refuses_a_default_mask_that_selects_no_leaf():
    with pytest.raises(ValueError, match=r"trust_ratio_mask.*selects no leaf"):
        lars_optax.lars(0.1).init({"bias": jnp.ones(3)})


def test_updates_that_are_not_floating_point_are_refused_by_path():
    with pytest.raises(ValueError, match="update at 'head' has dtype bool"):
        step(lars_optax.scale_by_lars(), PARAMS | {"head": jnp.ones((2, 2), bool)})
    tx = lars_optax.scale_by_lars()
    params = {"kernel": jnp.ones((2, 2)), "steps": jnp.arange(4).reshape(2, 2)}
    state = tx.init({"kernel": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="parameter at 'steps' has dtype int32"):
        tx.update(jax.tree.map(jnp.float32, params), state, params)


@pytest.mark.parametrize("argument", ["momentum", "trust_coefficient", "eps"])
def test_a_schedule_where_none_can_be_names_inject_hyperparams(argument):
    value = optax.constant_schedule(0.5)
    with pytest.raises(ValueError, match=rf"{argument}.*optax\.inject_hyperparams"):
        lars_optax.lars(0.1, **{argument: value})
    tx = optax.inject_hyperparams(lars_optax.lars)(0.1, **{argument: value})
    assert step(tx)[1].hyperparams[argument] == 0.5


def test_a_real_buffer_for_complex_parameters_is_refused():
    with pytest.raises(ValueError, match=r"accumulator_dtype=float32 .* leave it None"):
        lars_optax.lars(0.1, accumulator_dtype="float32").init(1j * jnp.ones((2, 2)))


def test_a_pattern_of_another_group_is_told_the_paths_of_its_own():
    mask = lars_optax.match_paths("^head", invert=True)
    tx = optax.masked(lars_optax.lars(0.1, 0.1, mask), {"conv": True, "head": False})
    with pytest.raises(ValueError, match=r"begin: 'conv/bias', .*optax\.masked"):
        step(tx)
    others = {str(i): optax.MaskedNode() for i in range(9)}
    with pytest.raises(ValueError, match="begin: 'tail'"):
        mask(others | {"tail": jnp.ones(2)})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (lambda params: jax.tree.map(lambda _: 2, params), "2 for 'conv/bias'"),
        (lambda _: {"conv": 0}, "not cover 'head'"),
        (lambda _: "0", "'0' for 'conv/bias'"),
        (2, "2 for 'conv/bias'"),
        ({"conv": 1, "head": 0}, r"1 for 'conv/bias', which has shape \(2,\)"),
        ({"conv": 0}, "not cover 'head'"),
        ({"conv": 0, "head": 0.5}, "0.5 for 'head'"),
        (True, "True for"),
    ],
)
def test_bad_stacked_axes_name_the_path(axes, message):
    with pytest.raises(ValueError, match=f"stacked_axes.*{message}"):
        step(lars_optax.scale_by_lars(trust_ratio_mask=True, stacked_axes=axes))


def test_stacked_lengths_must_agree():
    params = {"a": jnp.ones((3, 2, 2)), "b": jnp.ones((4, 2, 2))}
    tx = lars_optax.scale_by_lars(stacked_axes=0)
    with pytest.raises(ValueError, match=r"3 at 'a', 4 at 'b'"):
        step(tx, params, params)


def test_bad_axis_names_are_refused():
    for axes, message in [
        ({"conv": "x", "head": "x"}, "PartitionSpec"),
        (["x", "y"], "tuple of names"),
        (jax.sharding.PartitionSpec(None, "x"), "'conv/bias', which has only 1"),
        (jax.sharding.PartitionSpec(3), "'conv/bias'; each entry must be the name"),
        ((), "is empty; None"),
        ("x", "has 'x', but: unbound axis name: x. .* under jit too, leave"),
    ]:
        tx = lars_optax.scale_by_lars(trust_ratio_mask=True, axis_name=axes)
        with pytest.raises(ValueError, match=f"axis_name.*{message}"):
            step(tx)


def test_statistics_are_formatted_outside_jit():
    with pytest.raises(ValueError, match="outside"):
        jax.jit(lambda w: lars_optax.format_layer_stats(lars_optax.layer_stats(w, w)))(
            PARAMS
        )


def test_two_leaves_of_one_name_are_refused():
    params = OrderedDict([(0, jnp.ones((2, 2))), ("0", jnp.ones((2, 2)))])
    mask = OrderedDict([(0, True), ("0", False)])
    with pytest.raises(ValueError, match="mask has two leaves of one name among '0'"):
        lars_optax.describe_mask(mask, params)
