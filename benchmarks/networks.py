"""The parameter shapes of ResNet-50, AlexNet and ViT-B/16, without their values."""

from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.imagenet.models import image_pixels, make_model

Network = Literal["resnet50", "alexnet", "vit_b"]
NETWORKS: tuple[Network, ...] = get_args(Network)
TITLES = {
    "resnet50": "ResNet-50",
    "resnet50_v1.5": "ResNet-50 v1.5",
    "alexnet": "AlexNet",
    "alexnet_bn": "AlexNet-BN",
    "vit_b": "ViT-B/16",
}


class Encoder(nn.Module):
    """A Transformer encoder block of ViT-B (Dosovitskiy et al. 2020)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(12)(y, y)
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class ViT(nn.Module):
    """ViT-B/16 for images of 224 pixels a side."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:  # noqa: D102
        zeros = nn.initializers.zeros_init()
        patches = nn.Conv(768, (16, 16), 16)(images).reshape(len(images), -1, 768)
        token = self.param("class_token", zeros, (1, 1, 768))
        tokens = jnp.broadcast_to(token, (len(images), 1, 768))
        x = jnp.concatenate([tokens, patches], axis=1)
        x = x + self.param("position_embedding", zeros, (1, 197, 768))
        for _ in range(12):
            x = Encoder()(x)
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


def shapes(network: str) -> Any:
    """Returns the parameter shapes of a network as a tree of float32 ShapeDtypeStruct.

    `network` is a key of TITLES.
    """
    model: Any = ViT()
    side = 224
    if network != "vit_b":
        model = make_model(network, classes=1000, pixel_mean=0.0, pixel_std=1.0)
        side = image_pixels(network)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    init = partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images)["params"]
