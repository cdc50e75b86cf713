"""Law: what cannot be meant is refused, naming the argument or path and the value."""

import math
import re
from collections import OrderedDict
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_refused

import lars_optax

MATRIX, VECTOR = jnp.ones((2, 2)), jnp.ones(3)
PARAMS = {"conv": {"kernel": MATRIX, "bias": jnp.ones(2)}, "head": MATRIX}
MASKS = pytest.mark.parametrize("mask", ["weight_decay_mask", "trust_ratio_mask"])
CONSTANT = optax.constant_schedule(0.5)
lars = partial(lars_optax.lars, 0.1)
injected = optax.inject_hyperparams(lars_optax.lars)


def step(tx, grads=PARAMS, params=PARAMS):
    return tx.update(grads, tx.init(params), params)


BAD = {
    "learning_rate": [-0.1, math.nan, math.inf, "0.1", True],
    "weight_decay": [-1e-4, math.nan, np.float32(-1), None],
    "trust_coefficient": [0, 0.0, -0.001, math.nan],
    "eps": [-1e-8, math.nan, np.ones(2)],
    "momentum": [1, 1.0, -0.1, 1.5, math.nan],
    "fallback_ratio": [-0.5, math.inf],
    "denominator": ["sum", None],
    "weight_decay_mask": ["no_bias", 0.001],
    "trust_ratio_mask": ["norms", None],
    "nesterov": ["no"],
    "accumulator_dtype": ["int32", "float31"],
}


PAIRS = [(argument, value) for argument, values in BAD.items() for value in values]


@pytest.mark.parametrize(("argument", "value"), PAIRS)
def test_bad_argument_of_lars(argument, value):
    with pytest.raises(ValueError, match=argument) as error:
        lars_optax.lars(**{"learning_rate": 0.1, argument: value})
    assert str(value) in str(error.value) or repr(value) in str(error.value)


@pytest.mark.parametrize("value", [
    np.float16(0.9), np.array(0.9, np.float16), jnp.bfloat16(0.9)])  # fmt: skip
def test_numbers_of_fewer_than_32_bits_are_refused_by_dtype(value):
    message = f"momentum is an array of dtype {value.dtype}"
    assert_refused(message, lars, momentum=value)


@pytest.mark.parametrize("value", [jnp.asarray(True), jnp.asarray(1 + 2j)])
def test_arrays_that_are_no_real_numbers_are_refused_by_dtype(value):
    assert_refused(f"learning_rate.*dtype {value.dtype}", lars_optax.lars, value)


@pytest.mark.parametrize("value", [Fraction(1, 2), 10**20])
@pytest.mark.parametrize(
    "name",
    ["learning_rate", "weight_decay", "trust_coefficient", "eps", "fallback_ratio"],
)
@pytest.mark.parametrize("optimizer", [lars_optax.lars, lars_optax.larc])
def test_numbers_that_jax_cannot_hold_act_as_floats(optimizer, name, value):
    options = {"learning_rate": 0.1, "weight_decay": 1e-4}
    found, _ = step(optimizer(**options | {name: value}))
    expected, _ = step(optimizer(**options | {name: float(value)}))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bad_max_ratio(value):
    assert_refused("max_ratio", lars_optax.scale_by_lars, max_ratio=value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "a number, got None"),
        (-0.1, "finite and >= 0, got -0.1"),
        (math.nan, "finite and >= 0, got nan"),
        (jnp.ones(2), r"one number, got an array of shape \(2,\)"),
        (jnp.bfloat16(0.1), "dtype bfloat16"),
    ],
)
@pytest.mark.parametrize("argument", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("optimizer", [lars_optax.lars, lars_optax.larc])
def test_values_of_a_schedule_are_checked(optimizer, argument, value, said):
    tx = optimizer(**{"learning_rate": 0.1, argument: lambda count: value})
    assert_refused(f"the value of the {argument} schedule .*{said}", step, tx)


@pytest.mark.parametrize("value", [jnp.ones(2), np.ones(2)], ids=["jax", "numpy"])
@pytest.mark.parametrize("argument", [*BAD][:4])
def test_array_hyperparameters_are_refused(argument, value):
    options = {"learning_rate": 0.1, argument: value}
    assert_refused(argument, lars_optax.lars, **options)


def test_traced_hyperparameters_are_not_validated():
    @jax.jit
    def run(rate, momentum):
        return step(lars_optax.lars(rate, momentum=momentum))[0]

    assert np.all(run(-1.0, 1.0)["head"] > 0)


@MASKS
@pytest.mark.parametrize("value", [False, np.False_, np.array(False), jnp.array(False)])
def test_bare_false_names_static_args(mask, value):
    assert_refused(f"{mask} is False.*static_args", lars, **{mask: value})


CALLABLES = {
    "lambda": lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    "exclude_bias_and_norm": lars_optax.exclude_bias_and_norm,
    "match_paths": lars_optax.match_paths("kernel"),
}


@MASKS
@pytest.mark.parametrize("name", CALLABLES)
def test_callable_swallowed_by_inject_hyperparams_names_static_args(mask, name):
    assert_refused("static_args", step, injected(0.1, **{mask: CALLABLES[name]}))


@MASKS
@pytest.mark.parametrize(("tree", "message"), [
    ({"conv": True}, "not cover 'head'"),
    ({"conv": {"kernel": True}, "head": True}, "not cover 'conv/bias'"),
    ({"conv": True, "head": True, "tail": True}, "nothing at 'tail'"),
    ({"conv": {"kernel": True, "bias": True, "x": True}, "head": True},
     "nothing at 'conv/x'"),
    ({"conv": True, "head": {"kernel": True}}, "not cover 'head'"),
    ({"conv": True, "head": 1.0}, "1.0 for 'head'"),
    ({"conv": True, "head": None}, "None for 'head'"),
])  # fmt: skip
def test_mask_that_does_not_fit_names_the_path(mask, tree, message):
    for given in (tree, lambda _: tree):
        tx = lars(0.1, **{mask: given})
        assert_refused(f"{mask}.*{re.escape(message)}", step, tx)


def test_default_masks_may_select_nothing_where_nothing_is_asked_of_them():
    step(lars(trust_ratio_mask=True), VECTOR, VECTOR)
    assert step(lars(), {}, {})[0] == {}


@pytest.mark.parametrize(("grads", "message"), [
    ({"conv": PARAMS["conv"]}, "updates have nothing at 'head'"),
    ({**PARAMS, "tail": jnp.ones(2)}, "params have nothing at 'tail'"),
    ({**PARAMS, "head": jnp.ones((2, 3))}, r"'head' has shape \(2, 3\)"),
    ({**PARAMS, "head": jnp.ones(2)}, r"'head' has shape \(2,\)"),
    ({**PARAMS, "head": optax.MaskedNode()}, "MaskedNode at 'head'"),
    ({**PARAMS, "head": 1j * PARAMS["head"]}, "'head' is complex"),
    ({**PARAMS, "head": jnp.ones((2, 2), bool)}, "update at 'head' has dtype bool"),
    (list(PARAMS.values()), "same structure"),
])  # fmt: skip
def test_updates_unlike_params_name_the_path(grads, message):
    assert_refused(message, step, lars_optax.scale_by_lars(), grads)


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
    "keep_layer_stats": partial(lars_optax.scale_by_lars, keep_layer_stats=True),
    # Without a dtype Optax itself fails on a tree of other things than arrays.
    "injected": partial(optax.inject_hyperparams(
        lars_optax.lars, "stacked_axes", jnp.float32), 0.1),
}  # fmt: skip


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", NOT_PARAMETERS)
def test_init_refuses_what_is_no_parameter_by_path_with_the_remedy(maker, name):
    leaf, found = NOT_PARAMETERS[name]
    params = {"net": {"kernel": jnp.ones((2, 2)), "x": leaf}}
    remedy = r".*equinox\.is_inexact_array.*optax\.masked"
    message = f"parameter at 'net/x' {found}{remedy}"
    assert_refused(message, MAKERS[maker]().init, params)


UNFIT = {
    "trust_ratio_mask": ({"conv": True}, "trust_ratio_mask.*not cover 'head'"),
    "stacked_axes": (2, "stacked_axes is 2 for 'conv/bias'"),
    "axis_name": ([3], "axis_name"),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("argument", UNFIT)
def test_init_refuses_arguments_that_do_not_fit_the_parameters(maker, argument):
    value, message = UNFIT[argument]
    assert_refused(message, MAKERS[maker](**{argument: value}).init, PARAMS)


@pytest.mark.parametrize("argument", ["momentum", "trust_coefficient", "eps"])
def test_a_schedule_where_none_can_be_names_inject_hyperparams(argument):
    message = rf"{argument}.*optax\.inject_hyperparams"
    assert_refused(message, lars, **{argument: CONSTANT})
    tx = injected(0.1, **{argument: CONSTANT})
    assert step(tx)[1].hyperparams[argument] == 0.5


def test_a_pattern_of_another_group_is_told_the_paths_of_its_own():
    mask = lars_optax.match_paths("^head", invert=True)
    tx = optax.masked(lars(0.1, mask), {"conv": True, "head": False})
    assert_refused(r"paths are 'conv/bias', .*optax\.masked", step, tx)
    others = {str(i): optax.MaskedNode() for i in range(9)}
    assert_refused("paths are 'tail'", mask, others | {"tail": jnp.ones(2)})


@pytest.mark.parametrize(("axes", "message"), [
    (lambda params: jax.tree.map(lambda _: 2, params), "2 for 'conv/bias'"),
    (lambda _: {"conv": 0}, "not cover 'head'"),
    (lambda _: "0", "'0' for 'conv/bias'"),
    (2, "2 for 'conv/bias'"),
    ({"conv": 1, "head": 0}, r"1 for 'conv/bias', which has shape \(2,\)"),
    ({"conv": 0}, "not cover 'head'"),
    ({"conv": 0, "head": 0.5}, "0.5 for 'head'"),
    (True, "True for"),
])  # fmt: skip
def test_bad_stacked_axes_name_the_path(axes, message):
    tx = lars_optax.scale_by_lars(trust_ratio_mask=True, stacked_axes=axes)
    assert_refused(f"stacked_axes.*{message}", step, tx)


@pytest.mark.parametrize(("axes", "message"), [
    ({"conv": "x", "head": "x"}, "PartitionSpec"),
    (["x", "y"], "tuple of names"),
    (jax.sharding.PartitionSpec(None, "x"), "'conv/bias', which has only 1"),
    (jax.sharding.PartitionSpec(3), "'conv/bias'; for each dimension of the array"),
    ((), "is an empty tuple.*or None"),
    ("x", r"has 'x', but no .* \(unbound axis name: x.*\)\. .* under jit too, leave"),
])  # fmt: skip
def test_bad_axis_names_are_refused(axes, message):
    tx = lars_optax.scale_by_lars(trust_ratio_mask=True, axis_name=axes)
    assert_refused(f"axis_name.*{message}", step, tx)


SCALE = lars_optax.scale_by_lars
INTEGERS = {"kernel": MATRIX, "steps": jnp.arange(4).reshape(2, 2)}
OTHER_HEAD = PARAMS | {"head": jnp.ones((3, 2))}
LAYERS = {"a": jnp.ones((3, 2, 2)), "b": jnp.ones((4, 2, 2))}


def table(params):
    return lars_optax.format_layer_stats(lars_optax.layer_stats(params, params))


OTHERS = {
    "scheduled_decay_of_statistics": (
        "weight_decay is a schedule", lars_optax.layer_stats, PARAMS, PARAMS, CONSTANT),
    "dtype_swallowed_by_inject_hyperparams": (
        "accumulator_dtype.*static_args", step,
        injected(0.1, accumulator_dtype=jnp.float32)),
    "flattened": (r"trust_ratio_mask.*optax\.flatten", step, optax.flatten(lars())),
    "vector": ("trust_ratio_mask", step, lars(), VECTOR, VECTOR),
    "decayed_vector": (
        "weight_decay_mask", step, lars(0.1, trust_ratio_mask=True), VECTOR, VECTOR),
    "vector_at_init": (
        "trust_ratio_mask.*selects no leaf", lars().init, {"bias": VECTOR}),
    "missing_params": (
        "params is None", lars().update, PARAMS, lars().init(PARAMS)),
    "parameters_that_init_did_not_see": (
        "parameter at 'steps' has dtype int32", SCALE().update,
        jax.tree.map(jnp.float32, INTEGERS), SCALE().init(MATRIX), INTEGERS),
    "state_of_another_network": (
        r"buffer at 'head' .* shape \(2, 2\).*the update has shape \(3, 2\)",
        lars().update, OTHER_HEAD, lars().init(PARAMS), OTHER_HEAD),
    "real_buffer_for_complex_parameters": (
        r"accumulator_dtype=float32 .* leave it None",
        lars(accumulator_dtype="float32").init, 1j * MATRIX),
    "stacked_lengths": (
        "3 at 'a', 4 at 'b'", step, SCALE(stacked_axes=0), LAYERS, LAYERS),
    "table_inside_jit": ("outside", jax.jit(table), PARAMS),
    "two_leaves_of_one_name": (
        "mask has two leaves with the same name among '0'", lars_optax.describe_mask,
        OrderedDict([(0, True), ("0", False)]),
        OrderedDict([(0, MATRIX), ("0", MATRIX)])),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_mistakes_are_named(name):
    assert_refused(*OTHERS[name])
