"""Small networks of several frameworks, and the paths of what a mask selects."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


def paths(tree, value):
    """The paths of the leaves that are `value`."""
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {name(path).removesuffix("/value") for path, leaf in flat if leaf is value}


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
