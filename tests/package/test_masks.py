"""Laws of masks: the default in every framework, by path, as trees, in print."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from trees import assert_equal, assert_refused, paths, update

import lars_optax


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x)))
        x = nn.LayerNorm()(x.reshape(x.shape[0], -1, 4))
        x = nn.MultiHeadDotProductAttention(2)(x, x)
        return nn.Dense(3)(nn.GroupNorm(2)(x)).mean(1)


def linen_params():
    net = LinenNet()
    return jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 4, 4, 3)))["params"]


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn1 = nnx.BatchNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.RMSNorm(4, rngs=rngs)])


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    attention: eqx.nn.MultiheadAttention
    cell: eqx.nn.GRUCell
    patch_norm: eqx.nn.LayerNorm

    def __init__(self):
        key = jax.random.key(0)
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=key)
        self.norm = eqx.nn.GroupNorm(2, 4)
        self.attention = eqx.nn.MultiheadAttention(2, 4, use_output_bias=True, key=key)
        self.cell = eqx.nn.GRUCell(2, 3, key=key)
        self.patch_norm = eqx.nn.LayerNorm((4, 4))  # weight and bias of rank 2

    def __call__(self, x):
        return self.norm(self.conv(x))


def test_linen_names():
    params = linen_params()
    mask = lars_optax.exclude_bias_and_norm(params)
    attention = "MultiHeadDotProductAttention_0"
    assert paths(mask, True) == {
        "Conv_0/kernel", "Dense_0/kernel",
        *(f"{attention}/{x}/kernel" for x in ("query", "key", "value", "out")),
    }  # fmt: skip
    # A bias by name although it has rank 2: a mask by rank would adapt it.
    assert params[attention]["query"]["bias"].ndim == 2
    assert mask[attention]["value"]["bias"] is False


def test_nnx_names_end_before_value():
    mask = lars_optax.exclude_bias_and_norm(nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param))
    assert paths(mask, True) == {
        "conv/kernel", "blocks/0/kernel",
        *(f"attention/{x}/kernel" for x in ("query", "key", "value", "out")),
    }  # fmt: skip
    assert "blocks/1/scale" in paths(mask, False)


def test_haiku_batchnorm_of_rank_4_is_a_norm():
    net = hk.transform_with_state(lambda x: hk.nets.ResNet18(10)(x, is_training=True))
    params, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    mask = lars_optax.exclude_bias_and_norm(params)
    names = [{path.rsplit("/")[-1] for path in paths(mask, x)} for x in (True, False)]
    assert names == [{"w"}, {"b", "scale", "offset"}]
    assert params["res_net18/~/initial_batchnorm"]["scale"].ndim == 4


def test_equinox_names():
    params = eqx.filter(EquinoxNet(), eqx.is_inexact_array)
    mask = lars_optax.exclude_bias_and_norm(params)
    assert paths(mask, True) == {
        "conv/weight", "cell/weight_ih", "cell/weight_hh",
        *(f"attention/{x}_proj/weight" for x in ("query", "key", "value", "output")),
    }  # fmt: skip
    assert params.conv.bias.ndim == 3
    assert mask.conv.bias is False
    assert mask.patch_norm.weight is False
    # A mask made from a model is callable, as the model is; it is a tree all the same.
    assert callable(mask)
    tx = lars_optax.lars(0.1, weight_decay_mask=mask, trust_ratio_mask=mask)
    by_name = lars_optax.lars(0.1)
    assert_equal(update(tx, params, params), update(by_name, params, params))


class Attention(eqx.Module):
    query: jax.Array
    value: jax.Array
    bias: jax.Array | None = None


@pytest.mark.parametrize("inner", [{}, {"bias": jnp.ones(2)}], ids=["none", "bias"])
def test_a_field_called_value_is_a_name_beside_others(inner):
    w = jnp.ones((2, 2))
    params = {"a": Attention(w, w, **inner), "b": w}
    names = {"a/query", "a/value", "b", *(f"a/{name}" for name in inner)}
    everything = jax.tree.map(lambda _: True, params)
    table = lars_optax.describe_mask(everything, params)
    assert {line.split()[0] for line in table.splitlines()[:-1]} == names
    one = lars_optax.match_paths("value$")(params)
    assert lars_optax.describe_mask(one, params).count("yes") == 1
    prefix = {"a": {"query": True, "value": False, "bias": False}, "b": False}
    assert "1 of" in lars_optax.describe_mask(prefix, params)


def test_none_and_masked_nodes_keep_their_place():
    params = {"w": jnp.ones((2, 2)), "frozen": None, "other": optax.MaskedNode()}
    mask = lars_optax.exclude_bias_and_norm(params)
    assert mask == {"w": True, "frozen": None, "other": optax.MaskedNode()}
    tx = lars_optax.lars(0.1, weight_decay_mask=mask, trust_ratio_mask=mask)
    assert update(tx, params, params)["frozen"] is None


@pytest.mark.parametrize("count", [3, np.int32(3), jnp.asarray(3)])
def test_masks_refuse_a_step_count(count):
    for mask in (lars_optax.exclude_bias_and_norm, lars_optax.match_paths("x")):
        assert_refused(r"step count.*static_args", mask, count)


W = jnp.ones((2, 2))
PARAMS = {"stem": {"kernel": W}, "head": {"kernel": W, "bias": jnp.ones(2)}}


def selected(*patterns, params=PARAMS, **options):
    return paths(lars_optax.match_paths(*patterns, **options)(params), True)


def test_match_paths_searches_joined_paths():
    assert selected("kernel") == {"stem/kernel", "head/kernel"}
    assert selected("^head/") == {"head/kernel", "head/bias"}
    assert selected("stem", "bias$") == {"stem/kernel", "head/bias"}
    assert selected("^head/", invert=True) == {"stem/kernel"}
    assert selected("head/kernel|bias") == {"head/kernel", "head/bias"}


def test_match_paths_sees_nnx_paths_without_value():
    state = nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param)
    assert selected("^conv/kernel$", params=state) == {"conv/kernel"}


def test_match_paths_refuses_what_matches_nothing():
    assert_refused(r"'kernal'.*'stem/kernel'", selected, "stem", "kernal")
    assert_refused("tree without leaves", lars_optax.match_paths("x"), {"a": None})
    assert_refused("invert must be", lars_optax.match_paths, "x", invert="False")
    assert_refused("regular expression", lars_optax.match_paths, "(")
    assert_refused("at least one", lars_optax.match_paths)
    assert_refused("strings", lars_optax.match_paths, 3)


def test_masks_of_every_form_select_alike():
    mask = {"stem": True, "head": {"kernel": False, "bias": True}}
    forms = [
        mask,
        jax.tree.map(np.bool_, mask),
        {"stem": {"kernel": True}, "head": {"kernel": False, "bias": True}},
        lambda _: mask,
        lars_optax.match_paths("head/kernel", invert=True),
    ]
    tables = {lars_optax.describe_mask(form, PARAMS) for form in forms}
    assert len(tables) == 1
    rules = [lars_optax.scale_by_lars(0.1, form, 0.01, 0.0, form) for form in forms]
    first, *others = (update(tx, PARAMS, PARAMS) for tx in rules)
    for other in others:
        assert_equal(other, first)


def test_describe_mask_prints_every_leaf_and_totals():
    table = lars_optax.describe_mask("exclude_bias_and_norm", PARAMS)
    assert table.splitlines() == [
        "head/bias    (2,)    no",
        "head/kernel  (2, 2)  yes",
        "stem/kernel  (2, 2)  yes",
        "2 of 3 leaves, 8 of 10 parameters",
    ]
    everything = lars_optax.describe_mask(True, linen_params())
    assert " no" not in everything


def test_describe_mask_knows_stacked_axes():
    params = {"v": jnp.ones((3, 4)), "m": jnp.ones((3, 4, 4))}
    table = lars_optax.describe_mask("exclude_bias_and_norm", params, stacked_axes=0)
    assert [line.split()[-1] for line in table.splitlines()[:2]] == ["yes", "no"]


def test_prefix_may_cover_a_subtree_without_leaves():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "empty": {}}
    table = lars_optax.describe_mask({"a": True, "empty": False}, params)
    assert "1 of 1 leaves" in table


@pytest.mark.parametrize("axis_name", ["m", {"layer_scale": P(None, None, "m")}])
def test_the_printed_mask_is_that_of_the_optimizer_with_its_axis_name(axis_name):
    params = {"layer_scale": jnp.ones((1, 1, 32))}
    mask = "exclude_bias_and_norm"
    table = lars_optax.describe_mask(mask, params, axis_name=axis_name)
    # With a name alone any axis may be the sharded one.
    assert table.splitlines()[-1].startswith("1 of 1" if axis_name == "m" else "0 of 1")
