"""Laws of a leaf's role: its name decides, then its module's name, then its shape."""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compat import shard_map
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from trees import assert_equal, paths, update

import lars_optax

KEY = jax.random.key(0)
LAYERS = 3  # stacked in one leaf
mask_of = lars_optax.exclude_bias_and_norm


def cases(table):
    arguments = ("path", "shape", "weight")[: len(next(iter(table.values())))]
    return pytest.mark.parametrize(arguments, list(table.values()), ids=list(table))


def role(path, shape, **options):
    """True if a leaf of that path and shape is a weight."""
    tree = jax.ShapeDtypeStruct(shape, jnp.float32)
    for key in reversed(path.split("/")):
        tree = {key: tree}
    return jax.tree.leaves(mask_of(tree, **options)) == [True]


@cases({
    "linen_attention": ("attention/bias", (2, 4)),
    "swin_relative_positions": ("swin/relative_position_bias_table", (9, 4)),
    "equinox_gru": ("cell/bias_n", (3,)),
    "plural": ("mlp/biases", (3, 4)),
    "haiku_b": ("b", (3, 3)),
    "equinox_convolution": ("conv/bias", (8, 1, 1)),
    "bias_of_an_embedding": ("embedding_bias", (4, 4)),
})  # fmt: skip
def test_a_name_with_the_word_bias_is_a_bias_of_any_rank(path, shape):
    assert not role(path, shape)


@cases({
    "haiku_layer_norm": ("net/~/layer_norm/scale", (1, 1, 1, 3)),
    "linen_layer_norm": ("LayerNorm_0/weight", (3, 3)),
    "linen_rms_norm": ("RMSNorm_0/weight", (3, 3)),
    "llama": ("input_layernorm/weight", (3, 3)),
    "gpt2": ("ln_1/weight", (3, 3)),
    "resnet": ("bn2/weight", (3, 3)),
    "layer_norm_2d": ("LayerNorm2d_0/weight", (3, 1, 1)),
    "list_of_norms": ("norms/0/weight", (3, 3)),
    "keras": ("layer_normalization/weight", (3, 3)),
    "evonorm": ("EvoNorm2DS0/v", (1, 1, 1, 3)),
    "letter_after_the_number": ("norm1a/weight", (3, 3)),
    "vector_named_w": ("rms_norm/w", (3,)),
    "unit_axes_in_a_norm": ("group_norm/weight", (8, 1, 1)),
    "equinox_norm_of_an_image": ("patch_norm/weight", (4, 4)),
    "token_in_a_norm": ("token_norm/cls_token", (1, 1, 8)),
    "global_response_norm": ("grn/gamma", (1, 1, 1, 40)),
    "convnext_layer_scale": ("block/gamma", (40,)),
    "stacked_gamma": ("block/gamma", (12, 40)),
})  # fmt: skip
def test_a_norm_is_known_by_its_leaf_or_its_module(path, shape):
    assert not role(path, shape)


@cases({
    "norm_is_not_the_last_word": ("pre_norm_linear/weight", (3, 3)),
    "norm_before_dense": ("NormDense_0/v", (3, 3)),
    "convolution_before_bn": ("bn_conv/weight", (3, 3)),
    "normal": ("normal/weight", (3, 3)),
    "abnormal": ("abnormal_dense/weight", (3, 3)),
    "learner": ("learner/weight", (3, 3)),
    "kernel_in_a_norm": ("BatchNorm_0/kernel", (3, 3)),
    "state_space_matrix": ("s4/B", (4, 4)),
    "dict_key_value": ("value", (3, 3)),
    "positions": ("position", (1, 16, 8)),
    "named_w_of_rank_1": ("dense/w", (3,)),
})  # fmt: skip
def test_what_is_not_named_for_a_norm_or_bias_is_a_weight(path, shape):
    assert role(path, shape)


@cases({
    "weightnorm_gain_of_a_tiny_wav2vec2": ("pos_conv_embed/conv/weight_g", (1, 1, 8)),
    "weightnorm_gain_of_wav2vec2": ("pos_conv_embed/conv/weight_g", (1, 1, 128)),
    "weightnorm_gain_of_equimo": ("last/weight_g", (1024, 1)),
    "weightnorm_gain_of_a_recurrent_layer": ("weight_ih_l0_g", (64, 1)),
    "weightnorm_gain_as_torch_parametrizes": ("weight/original0", (64, 1, 1)),
    "gain_named_for_its_kernel": ("dense/kernel_scale", (1, 1, 8)),
    "difference_control_of_equimo": ("token_mixer/difference_control", (1, 1, 1, 40)),
    "layer_scale": ("block/layer_scale", (1, 1, 32)),
    "per_channel_mixing_of_rwkv": ("time_mix_k", (1, 1, 768)),
    "column": ("state_space/D", (64, 1)),
    "one_number": ("temperature", (1, 1)),
    "scalar": ("temperature", ()),
    "vector": ("anything", (7,)),
})  # fmt: skip
def test_an_unexplained_name_counts_only_axes_longer_than_1(path, shape):
    assert not role(path, shape)
    assert role(path, tuple(max(n, 2) for n in (*shape, 1, 1)))


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("name", ["layer_scale", "difference_control", "g", "weight_g"])
def test_an_axis_of_length_1_never_changes_an_unexplained_role(name, rank):
    for shape in itertools.product((1, 2, 3), repeat=rank):
        for at in range(rank + 1):
            longer = (*shape[:at], 1, *shape[at:])
            assert role(f"block/{name}", longer) == role(f"block/{name}", shape)


@cases({
    "linen_output_of_one": ("head/kernel", (8, 1)),
    "linen_input_of_one": ("stem/kernel", (1, 8)),
    "linen_kernel_of_one_number": ("Dense_0/kernel", (1, 1)),
    "equinox_or_torch": ("linear/weight", (1, 8)),
    "depthwise_convolution": ("conv/weight", (8, 1, 1, 1)),
    "haiku_linear": ("linear/w", (8, 1)),
    "haiku_gru_of_one_input": ("gru/w_i", (1, 18)),
    "equinox_gru_of_one_input": ("cell/weight_ih", (9, 1)),
    "torch_attention": ("in_proj_weight", (24, 1)),
    "numbered": ("mlp/w2", (8, 1)),
    "camel_case": ("mlp/outWeight", (8, 1)),
    "embedding_of_one_word": ("embed/embedding", (1, 8)),
    "haiku_embedding_of_one_word": ("embed/embeddings", (1, 8)),
    "nnx_lora_of_rank_1": ("lora/lora_a", (8, 1)),
    "weightnorm_direction_of_one_input": ("dense/weight_v", (8, 1)),
    "weightnorm_direction": ("pos_conv_embed/conv/weight_v", (32, 2, 8)),
    "weightnorm_direction_in_its_module": ("weight_norm/weight_v", (8, 1)),
    "weightnorm_direction_named_v": ("WeightNorm_0/v", (8, 4)),
    "torch_parametrized_direction": ("weight/original1", (64, 32, 3)),
    "list_of_weights": ("mlp/weights/1", (8, 1)),
})  # fmt: skip
def test_a_leaf_named_as_a_weight_counts_all_its_axes(path, shape):
    assert role(path, shape)


@cases({
    "equinox_norm_in_a_sequential": ("layers/1/weight", (8,)),
    "weight_of_a_prelu": ("prelu/weight", ()),
    "flax_clip_class_embedding": ("embeddings/class_embedding", (768,)),
    "class_token": ("cls_token", (768,)),
    "probe": ("MAPHead_0/probe", (768,)),
    "weightnorm_gain": ("conv/weight_g", (8,)),
})  # fmt: skip
def test_a_vector_is_a_weight_only_by_a_full_name(path, shape):
    assert not role(path, shape)


@cases({
    "big_vision_class_token": ("cls", (1, 1, 768)),
    "class_token": ("class_token", (1, 1, 768)),
    "equimo_class_token": ("cls_token", (1, 384)),
    "query_token_of_partialformer": ("qa_token", (1, 64)),
    "mask_token": ("embeddings/mask_token", (1, 1, 768)),
    "one_register": ("reg_tokens", (1, 384)),
    "numbered": ("cls_token_0", (1, 1, 768)),
    "one_word": ("clstoken", (1, 1, 768)),
    "list_of_tokens": ("tokens/0", (1, 768)),
    "probe_of_attention_pooling": ("MAPHead_0/probe", (1, 1, 768)),
    "timm_positions": ("pos_embed", (1, 197, 768)),
    "one_position": ("pos_embed", (1, 1, 768)),
    "big_vision_positions": ("pos_embedding", (1, 197, 768)),
    "positions": ("position_embedding", (1, 1, 768)),
    "huggingface_positions": ("embeddings/position_embeddings", (1, 1, 768)),
})  # fmt: skip
def test_tokens_probes_and_embeddings_are_weights_of_whatever_shape(path, shape):
    assert role(path, shape)


@cases({
    "token_inside": ("token_scale", (1, 1, 8)),
    "probe_inside": ("probed_gain", (1, 1, 8)),
    "embed_inside": ("embedded", (1, 1, 8)),
    "token_mixer": ("token_mixer/difference_control", (1, 1, 1, 8)),
})  # fmt: skip
def test_only_the_end_of_a_name_makes_a_token(path, shape):
    assert not role(path, shape)


@cases({
    "layer_scale": ("layer_scale", (LAYERS, 1, 1, 8), False),
    "weightnorm_gain": ("weight_g", (LAYERS, 8, 1), False),
    "vectors": ("gain", (LAYERS, 8), False),
    "token_of_rank_1": ("cls_token", (LAYERS, 8), False),
    "weight_of_rank_1": ("weight", (LAYERS, 8), False),
    "matrices": ("matrix", (LAYERS, 8, 4), True),
    "kernels_of_one_output": ("kernel", (LAYERS, 8, 1), True),
    "tokens": ("cls_token", (LAYERS, 1, 8), True),
    "a_stack_of_one": ("matrix", (1, 8, 4), True),
})  # fmt: skip
def test_a_stacked_leaf_has_the_role_of_its_slices(path, shape, weight):
    assert role(path, shape, stacked_axes=0) is weight
    assert role(path, shape[1:]) is weight
    assert role(path, (*shape[1:], shape[0]), stacked_axes=-1) is weight


def test_without_stacked_axes_a_stack_of_vectors_looks_like_a_matrix():
    assert role("gain", (LAYERS, 8))
    assert not role("gain", (LAYERS, 8), stacked_axes=0)


MESH = Mesh(np.array(jax.devices()[:4]), "x")
SHARDED = {
    "rows": ((4, 3), P("x")),
    "columns": ((3, 4), P(None, "x")),
    "gain": ((1, 1, 4), P(None, None, "x")),
    "stack": ((2, 4, 3), P(None, "x")),
}


def test_a_shard_has_the_role_of_the_whole_leaf():
    params = {name: jnp.ones(shape) for name, (shape, _) in SHARDED.items()}
    specs = {name: spec for name, (_, spec) in SHARDED.items()}
    stacked = {name: 0 if name == "stack" else None for name in SHARDED}
    expected = update(lars_optax.scale_by_lars(stacked_axes=stacked), params, params)
    tx = lars_optax.scale_by_lars(stacked_axes=stacked, axis_name=specs)
    where = {"mesh": MESH, "in_specs": (specs,), "out_specs": specs}
    found = shard_map(lambda shards: update(tx, shards, shards), **where)(params)
    assert_equal(found, expected, 1e-6)


class LinenWeightNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Dense(4))(x)
        x = nn.WeightNorm(nn.Conv(3, (3,)), feature_axes=(-2, -1))(x)
        return nn.WeightNorm(nn.Dense(1), feature_axes=None)(x)


def linen_weight_norm():
    return LinenWeightNorm().init(KEY, jnp.ones((2, 5, 3)))["params"]


def nnx_weight_norm():
    rngs = nnx.Rngs(0)
    linear, conv = nnx.Linear(8, 4, rngs=rngs), nnx.Conv(8, 4, (3,), rngs=rngs)
    conv = nnx.WeightNorm(conv, feature_axes=(-2, -1), rngs=rngs)
    layers = {"norm": nnx.WeightNorm(linear, rngs=rngs), "conv": conv}
    # Its scales are arrays, not nnx.Param.
    return {name: nnx.to_pure_dict(nnx.state(x)) for name, x in layers.items()}


def equinox_weight_norm():
    layers = eqx.nn.Conv1d(3, 4, 3, key=KEY), eqx.nn.Linear(1, 4, key=KEY)
    conv, linear = map(eqx.nn.WeightNorm, layers)
    params = {"conv": conv, "weight_norm": linear,
              "whole": eqx.nn.WeightNorm(linear.layer, axis=None)}  # fmt: skip
    return eqx.filter(params, eqx.is_inexact_array)


@pytest.mark.parametrize(("build", "directions", "gains"), [
    (linen_weight_norm, {"Dense_0/kernel", "Conv_0/kernel", "Dense_1/kernel"},
     {"WeightNorm_0/Dense_0/kernel/scale", "WeightNorm_1/Conv_0/kernel/scale",
      "WeightNorm_2/Dense_1/kernel/scale"}),
    (nnx_weight_norm, {"norm/layer_instance/kernel", "conv/layer_instance/kernel"},
     {"norm/scales/('kernel',)", "conv/scales/('kernel',)"}),
    (equinox_weight_norm,
     {"conv/layer/weight", "weight_norm/layer/weight", "whole/layer/weight"},
     {"conv/g", "weight_norm/g", "whole/g"}),
], ids=["linen", "nnx", "equinox"])  # fmt: skip
def test_of_a_weight_norm_only_directions_are_weights(build, directions, gains):
    mask = mask_of(build())
    assert paths(mask, True) == directions
    assert {x for x in paths(mask, False) if not x.endswith("bias")} == gains


class Block(nn.Module):
    """Of a transformer, with a layer scale after each half."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(2)(y, y)
        x = x + y * self.param("layer_scale", nn.initializers.ones, (1, 1, 8))
        y = nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.RMSNorm()(x))))
        return x + y * self.param("gamma", nn.initializers.ones, (8,)), None


class VisionTransformer(nn.Module):
    """With scanned blocks, a class token and attention pooling; 1 output."""

    @nn.compact
    def __call__(self, x):
        def param(name, *shape):
            return self.param(name, nn.initializers.zeros, shape)

        x = nn.Conv(8, (4, 4), strides=(4, 4), name="embedding")(x)
        x = jnp.concatenate([param("cls", 1, 1, 8), x.reshape(1, -1, 8)], axis=1)
        x = x + param("pos_embedding", 1, x.shape[1], 8)
        axes, split = {"params": 0}, {"params": True}
        blocks = nn.scan(Block, axes, split_rngs=split, length=LAYERS)
        x, _ = blocks(name="blocks")(x, None)
        x = nn.GroupNorm(2, name="encoder_norm")(x)
        x = nn.MultiHeadDotProductAttention(2)(param("probe", 1, 1, 8), x)
        return nn.Dense(1, name="head")(x)


def test_a_scanned_vision_transformer_has_these_weights():
    net = VisionTransformer()
    params = jax.eval_shape(net.init, KEY, jnp.ones((1, 16, 16, 3)))["params"]
    axes = {name: 0 if name == "blocks" else None for name in params}
    attention = "MultiHeadDotProductAttention_0"
    projections = {f"{attention}/{x}/kernel" for x in ("query", "key", "value", "out")}
    assert params["blocks"]["layer_scale"].shape == (LAYERS, 1, 1, 8)
    assert paths(mask_of(params, stacked_axes=axes), True) == {
        "embedding/kernel", "cls", "pos_embedding", "probe", "head/kernel",
        *projections, "blocks/Dense_0/kernel", "blocks/Dense_1/kernel",
        *(f"blocks/{x}" for x in projections),
    }  # fmt: skip


@pytest.mark.parametrize("params", [
    [(jnp.ones((1, 32)), jnp.ones(32)), (jnp.ones((32, 1)), jnp.ones(1))],
    [[jnp.ones((3, 1)), jnp.ones(1)]],
    {0: {0: jnp.ones((1, 3)), 1: jnp.ones(3)}},
    {"net": [(jnp.ones((8, 1)), jnp.ones(1))]},
], ids=["pairs", "one_layer", "numbered", "in_a_dict"])  # fmt: skip
def test_a_leaf_without_a_name_is_a_weight_at_rank_2(params):
    assert mask_of(params) == jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    assert mask_of(jnp.ones((3, 1)))
    assert not mask_of([jnp.ones((1, 1, 8))])[0]


@cases({
    "dots": ("fc.weight", (1, 64), True),
    "dots_of_flax": ("params.Dense_0.kernel", (64, 1), True),
    "slashes": ("params/Dense_0/kernel", (64, 1), True),
    "tuple": (("params", "Dense_0", "kernel"), (64, 1), True),
    "dots_in_a_norm": ("layers.0.norm.weight", (8, 8), False),
    "dots_and_bias": ("attention.bias", (2, 4), False),
    "tuple_in_a_norm": (("LayerNorm_0", "weight"), (8, 8), False),
    "tuple_and_bias": (("attention", "bias"), (2, 4), False),
})  # fmt: skip
def test_a_key_that_is_a_whole_path_has_the_role_of_its_names(path, shape, weight):
    assert mask_of({path: jnp.ones(shape)})[path] is weight
