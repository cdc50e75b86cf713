"""The parameters of real networks as shapes alone."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from examples.imagenet.models import image_pixels, make_model

NETWORKS = ("resnet50", "alexnet", "vit_b")


def shapes(network: str) -> Any:
    """A tree of ShapeDtypeStruct, in float32."""
    if network == "vit_b":
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            _vit(width=768, depth=12, heads=12),
            is_leaf=lambda x: isinstance(x, tuple),
        )
    model = make_model(network, classes=1000, pixel_mean=0.0, pixel_std=1.0)
    side = image_pixels(network)
    images = jnp.zeros((1, side, side, 3), jnp.uint8)
    init = partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images)["params"]


def _vit(width: int, depth: int, heads: int) -> Any:
    """ViT-B/16 at 224 pixels."""
    head = width // heads
    norm = {"scale": (width,), "bias": (width,)}
    project = {"kernel": (width, heads, head), "bias": (heads, head)}
    block = {
        "LayerNorm_0": norm,
        "attention": {
            **dict.fromkeys(("query", "key", "value"), project),
            "out": {"kernel": (heads, head, width), "bias": (width,)},
        },
        "LayerNorm_1": norm,
        "Dense_0": {"kernel": (width, 4 * width), "bias": (4 * width,)},
        "Dense_1": {"kernel": (4 * width, width), "bias": (width,)},
    }
    return {
        "embedding": {"kernel": (16, 16, 3, width), "bias": (width,)},
        "class_token": (1, 1, width),
        "position_embedding": (1, 197, width),
        **{f"block_{i}": block for i in range(depth)},
        "LayerNorm": norm,
        "head": {"kernel": (width, 1000), "bias": (1000,)},
    }
