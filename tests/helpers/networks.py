"""The networks of the trainer's tests: made, shaped and filled without compiling."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from examples.imagenet.models import make_model

KEY = jax.random.key(0, impl="rbg")  # compiles fast


def make(network, classes=1000, **options):
    options = {"pixel_mean": 128.0, "pixel_std": 64.0} | options
    return make_model(network, classes=classes, **options)


@cache
def shapes(model, side):
    """What `init` would return, as shapes and dtypes."""
    images = jnp.zeros((1, side, side, 3), jnp.uint8)
    return jax.eval_shape(partial(model.init, train=False), KEY, images)


def random_inputs(model, n, side):
    """Variables and n images.

    Weights have a variance of 2 / fan_in, scales and variances are near 1, the rest
    near 0.
    """
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (n, side, side, 3), np.uint8)

    def draw(path, leaf):
        noise = random.normal(size=leaf.shape).astype(np.float32)
        if name(path).endswith("kernel"):
            return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return 0.1 * noise + name(path).endswith(("scale", "var"))

    return jax.tree_util.tree_map_with_path(draw, shapes(model, side)), images


@partial(jax.jit, static_argnums=0)
def logits_of(model, variables, images):
    return model.apply(variables, images, train=False)


def name(path):
    return "/".join(str(key.key) for key in path if hasattr(key, "key"))


def named_leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): leaf for path, leaf in flat}
