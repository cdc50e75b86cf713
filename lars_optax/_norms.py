"""Norms of layers, summed across devices and separate for stacked layers.

Norms are computed in float32, or in float64 for float64 and complex128 arrays. A
float32 norm overflows above 1.8e19. An element smaller than about 1e-19 may not count,
because its square underflows.

Sums over devices take one `psum` for each distinct pair of `AxisNames` and dtype. No
leaf is reshaped, because that would gather a sharded leaf on every device.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lars_optax._axes import AxisNames


def norm_dtype(dtype: Any) -> Any:
    """Returns the dtype in which norms of arrays of `dtype` are computed.

    It is `dtype`, or float32 if `dtype` has fewer than 32 bits.
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def sum_of_squares(x: jax.Array, stacked: int | None = None) -> jax.Array:
    """Returns the sum of |x|² over all axes except `stacked`, in at least float32.

    `stacked` is the axis along which the array stacks layers. None sums over all axes.
    """
    if norm_dtype(x.dtype) != x.dtype:
        # Without the barrier XLA shares one widened copy between the norm and the
        # update. It writes that copy to memory, which is several times slower on a CPU
        # in bfloat16. In float16 XLA writes the copy with the barrier too.
        x = jax.lax.optimization_barrier(x).astype(norm_dtype(x.dtype))
    squares = jnp.square(jnp.real(x))
    if jnp.iscomplexobj(x):
        squares += jnp.square(jnp.imag(x))
    return jnp.sum(squares, axis=[i for i in range(x.ndim) if i != stacked])


def safe_sqrt(squares: jax.Array) -> jax.Array:
    """Returns √`squares`, whose derivative at 0 is 0 in place of infinity."""
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


def layer_norms(
    arrays: list[jax.Array],
    stacked: list[int | None],
    axis_names: list[AxisNames],
) -> list[jax.Array]:
    """Returns the norm of each array, or the norms of the layers that it stacks.

    `stacked` has the axis along which each array stacks layers. At None the norm is a
    scalar, and otherwise a vector. `axis_names` has the mesh axes over which each array
    is sharded.

    Raises ValueError if a mesh axis is not one of a surrounding `shard_map` or `pmap`.
    """
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
    return [safe_sqrt(x) for x in squares]


def _check_bound(names: tuple[str, ...]) -> None:
    try:
        jax.lax.psum(1, names)  # the psum of a constant sends nothing
    except NameError as error:
        raise ValueError(
            f"axis_name has {', '.join(map(repr, names))}, but no shard_map or pmap "
            f"around this call has such an axis ({error}). Inside shard_map or pmap "
            "pass the names of their axes. Elsewhere, under jit too, leave axis_name "
            "None."
        ) from error


def expand_to_leaf(value: jax.Array, leaf: jax.Array, stacked: int | None) -> jax.Array:
    """Returns `value` in a shape that broadcasts against `leaf`.

    `value` is a scalar, or a vector with one entry for each layer that the leaf stacks
    along the axis `stacked`.
    """
    if not value.ndim:
        return value
    return jnp.expand_dims(value, [i for i in range(leaf.ndim) if i != stacked])
