"""BatchNorm's means and variances, averaged over parts of a batch and over time."""

from typing import Any

import jax
import jax.numpy as jnp

Array = Any  # a JAX or a NumPy array
_RUNNING = 0.9  # decay of the running averages


def age(running: Any, new: Any, first: Array) -> Any:
    """Returns the running averages after a batch: 0.9 × the old ones + 0.1 × the new.

    After the first batch they are those of the batch. This is what batch_norm_layer in
    borisgin/nvcaffe-0.16 does with moving_average_fraction 0.9.
    """
    keep = jnp.where(first, 0.0, _RUNNING)
    return jax.tree.map(lambda old, x: keep * old + (1 - keep) * x, running, new)


def to_moments(stats: Any) -> Any:
    """Converts the mean and variance of every BatchNorm to mean and mean square.

    Unlike variances, these can be averaged over equal parts of a batch exactly.
    """
    return jax.tree.map(
        lambda s: {"mean": s["mean"], "square": s["var"] + s["mean"] ** 2},
        stats,
        is_leaf=lambda s: "var" in s,
    )


def from_moments(moments: Any) -> Any:
    """Converts the mean and mean square of every BatchNorm to mean and variance."""

    def split(m: dict[str, Array]) -> dict[str, Array]:
        # Rounding can leave a constant channel's difference just below zero.
        var = jnp.maximum(m["square"] - m["mean"] ** 2, 0.0)
        return {"mean": m["mean"], "var": var}

    return jax.tree.map(split, moments, is_leaf=lambda m: "square" in m)
