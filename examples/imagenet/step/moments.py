"""BatchNorm's moments: merged over slots exactly, and averaged over time."""

from typing import Any

import jax
import jax.numpy as jnp

Array = Any  # of JAX, or of NumPy
_RUNNING = 0.9  # share of the running moments that outlives a step


def age(running: Any, new: Any, first: Array) -> Any:
    """0.9 of the running moments + 0.1 of the batch's; the first batch's as they are.

    As borisgin/nvcaffe-0.16's batch_norm_layer with moving_average_fraction 0.9.
    """
    keep = jnp.where(first, 0.0, _RUNNING)
    return jax.tree.map(lambda old, x: keep * old + (1 - keep) * x, running, new)


def to_moments(stats: Any) -> Any:
    """(mean, var) of every BatchNorm to (E x, E x²), which average over equal shares.

    The mean of variances is not the variance: it lacks the spread of the means.
    """
    return jax.tree.map(
        lambda s: {"mean": s["mean"], "square": s["var"] + s["mean"] ** 2},
        stats,
        is_leaf=lambda s: "var" in s,
    )


def from_moments(moments: Any) -> Any:
    """(E x, E x²) back to (mean, var)."""

    def split(m: dict[str, Array]) -> dict[str, Array]:
        # Rounding can leave a constant channel's difference just below zero.
        var = jnp.maximum(m["square"] - m["mean"] ** 2, 0.0)
        return {"mean": m["mean"], "var": var}

    return jax.tree.map(split, moments, is_leaf=lambda m: "square" in m)
