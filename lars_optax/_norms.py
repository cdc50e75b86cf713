"""Norms of layers: sums of squares over a layer, across devices and stacked layers.

Everything here is computed in float32 at least (float64 for float64 and complex128),
whatever the parameter's dtype. In float32 a norm is right up to 1.8e19, and for
elements above about 1e-19: squares must be in its range. Norms are
summed over devices with one `psum` for each distinct pair of `AxisNames` and dtype, so
leaves whose stacking axis is sharded are summed apart. No leaf is reshaped, which would
gather a sharded one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lars_optax._axes import AxisNames


def norm_dtype(dtype: Any) -> Any:
    """What arrays of that dtype are widened to: float32 at least."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def sum_of_squares(x: jax.Array, stacked: int | None = None) -> jax.Array:
    """Σ|x|² over all axes but the stacking one, in one pass, in float32 at least."""
    if norm_dtype(x.dtype) != x.dtype:
        # Else XLA widens once for norm and step, into memory, several times slower on
        # a CPU in bfloat16. (float16 it widens into memory all the same.)
        x = jax.lax.optimization_barrier(x).astype(norm_dtype(x.dtype))
    squares = jnp.square(jnp.real(x))
    if jnp.iscomplexobj(x):
        squares += jnp.square(jnp.imag(x))
    return jnp.sum(squares, axis=[i for i in range(x.ndim) if i != stacked])


def root(squares: jax.Array) -> jax.Array:
    """√ with derivative 0, not infinity, at 0."""
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


def layer_norms(
    arrays: list[jax.Array],
    stacked: list[int | None],
    axis_names: list[AxisNames],
) -> list[jax.Array]:
    """‖x‖ of each layer: a scalar for each array, a vector where it is stacked."""
    squares = [sum_of_squares(x, axis) for x, axis in zip(arrays, stacked, strict=True)]
    groups: dict[Any, list[int]] = {}
    for i, (names, x) in enumerate(zip(axis_names, squares, strict=True)):
        if names.summed:
            groups.setdefault((names, x.dtype), []).append(i)
    for (names, _), members in groups.items():
        _check_bound(names.summed)
        flat = jnp.concatenate([jnp.atleast_1d(squares[i]) for i in members])
        summed = jax.lax.psum(flat, names.summed)
        ends = np.cumsum([math.prod(squares[i].shape) for i in members])[:-1]
        for i, part in zip(members, jnp.split(summed, ends), strict=True):
            squares[i] = part.reshape(squares[i].shape)
    return [root(x) for x in squares]


def _check_bound(names: tuple[str, ...]) -> None:
    try:
        jax.lax.psum(1, names)  # of a constant: nothing is sent
    except NameError as error:
        raise ValueError(
            f"axis_name has {', '.join(map(repr, names))}, but: {error}. Inside "
            "shard_map or pmap give the names of their axes; elsewhere, under jit too, "
            "leave axis_name None."
        ) from error


def per_layer(value: jax.Array, leaf: jax.Array, stacked: int | None) -> jax.Array:
    """A scalar as it is, a vector over stacked layers shaped to multiply the leaf."""
    if not value.ndim:
        return value
    return jnp.expand_dims(value, [i for i in range(leaf.ndim) if i != stacked])
