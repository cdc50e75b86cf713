"""Finds where a value that is not finite first appears, by running the network again.

It is slow, because every layer runs on its own, and used only when a run diverges.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..data.dataset import Batch
from .step import TrainState, forward, mirrored


def first_not_finite(
    model: nn.Module,
    state: TrainState,
    batch: Batch,
    slot: int,
    alive: Callable[[], None] = lambda: None,
) -> str | None:
    """Returns the first parameter, or else layer output, that is not finite.

    Returns None if all are finite; then only a gradient overflowed. The batch runs
    forward in parts of `slot` images, and `alive` is called before each part.
    """
    if name := leaf_not_finite(state.params):
        return f"the parameter {name}"
    found: list[str] = []

    def look(layer: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = layer(*args, **kwargs)
        layer_done = context.method_name == "__call__"  # else a method within a layer
        if layer_done and not jnp.isfinite(output).all():
            found.append("/".join(context.module.path) or "the network")
        return output

    alone, key = model.clone(bn_axis_name=None), jax.random.key(0)
    for start in range(0, len(batch.labels), slot):
        alive()
        here = slice(start, start + slot)
        mirror = None if batch.mirror is None else batch.mirror[here]
        # The whole batch could be too large for one device.
        part = mirrored(batch.images[here], mirror)
        with nn.intercept_methods(look):
            forward(alone, state.params, state.batch_stats, part, key)
        if found:
            return f"the output of {found[0]}"
    return None


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def leaf_not_finite(tree: Any) -> str | None:
    """Returns the path of the first leaf with a value that is not finite, or None."""
    found = named_leaves(jax.device_get(_finite(tree)))
    return next((name for name, finite in found if not finite), None)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of a tree, each with its path, joined by "/"."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
