"""Laws of the default mask: it finds the weights of networks in every framework."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from mask_nets import NnxNet, linen_params, paths
from trees import assert_equal, update

import lars_optax


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
