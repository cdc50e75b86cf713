"""Norms of layers, summed across devices and separate for stacked layers.

Norms are computed in float32, or in float64 for float64 and complex128 arrays. A
float32 norm overflows above 1.8e19. An element smaller than about 1e-19 may not count,
because its square underflows.

Sums over devices take one `psum` for each distinct pair of `AxisNames` and dtype. No
leaf is reshaped, because that would gather a sharded leaf on every device.

On a GPU the launch of a kernel takes longer than the work of most kernels, because a
network has hundreds of small leaves. So a program for a GPU stacks the squares of w and
g, and one kernel sums both. XLA for a CPU would write this stack to memory, which takes
several times longer. `per_platform` chooses the form when a program is compiled.
"""

import functools
import math
from collections.abc import Callable
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


@functools.partial(jax.jit, static_argnames="stacked", inline=True)
def sum_of_squares(x: jax.Array, stacked: int | None = None) -> jax.Array:
    """Returns the sum of |x|² over all axes except `stacked`, in at least float32.

    `stacked` is the axis along which the array stacks layers. None sums over all axes.
    """
    if norm_dtype(x.dtype) != x.dtype:
        # Without the barrier XLA shares one widened copy between the norm and the
        # update. It writes that copy to memory, which is several times slower on a CPU
        # in bfloat16. In float16 XLA writes the copy with the barrier too.
        x = jax.lax.optimization_barrier(x)
    return jnp.sum(_squares(x), axis=[i for i in range(x.ndim) if i != stacked])


def _squares(x: jax.Array) -> jax.Array:
    x = x.astype(norm_dtype(x.dtype))
    squares = jnp.square(jnp.real(x))
    if jnp.iscomplexobj(x):
        squares += jnp.square(jnp.imag(x))
    return squares


def per_platform(function: Callable[[bool], Any]) -> Any:
    """Returns function(True) in a program for a GPU, and function(False) in others.

    JAX traces both, and the compiled program has one of them. So both have to return
    the same types.
    """
    on_gpu = functools.partial(function, True)
    elsewhere = functools.partial(function, False)
    return jax.lax.platform_dependent(default=elsewhere, cuda=on_gpu, rocm=on_gpu)


def safe_sqrt(squares: jax.Array) -> jax.Array:
    """Returns √`squares`, whose derivative at 0 is 0 in place of infinity."""
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


def layer_sums(
    layers: list[list[jax.Array]],
    stacked: list[int | None],
    axis_names: list[AxisNames],
) -> list[list[jax.Array]]:
    """Returns the sum of squares of each array of each layer.

    The arrays of a layer have the same shape. `stacked` has, for each entry of
    `layers`, the axis along which its arrays stack layers. Their sums are then vectors.
    Where it is None, they are scalars. `axis_names` has the mesh axes over which the
    arrays are sharded.

    Raises ValueError if a mesh axis is not one of a surrounding `shard_map` or `pmap`.
    """
    sums: list[list[jax.Array]] = per_platform(
        lambda on_gpu: list(map(_sums_at_once if on_gpu else _sums, layers, stacked))
    )
    groups: dict[Any, list[tuple[int, int]]] = {}
    for i, (names, row) in enumerate(zip(axis_names, sums, strict=True)):
        if names.summed:
            for j, x in enumerate(row):
                groups.setdefault((names, x.dtype), []).append((i, j))
    for (names, _), members in groups.items():
        _check_bound(names.summed)
        flat = jnp.concatenate([jnp.atleast_1d(sums[i][j]) for i, j in members])
        summed = jax.lax.psum(flat, names.summed)
        ends = np.cumsum([math.prod(sums[i][j].shape) for i, j in members])[:-1]
        for (i, j), part in zip(members, jnp.split(summed, ends), strict=True):
            sums[i][j] = part.reshape(sums[i][j].shape)
    return sums


def _sums(arrays: list[jax.Array], stacked: int | None) -> list[jax.Array]:
    return [sum_of_squares(x, stacked) for x in arrays]


@functools.partial(jax.jit, static_argnames="stacked", inline=True)
def _sums_at_once(arrays: list[jax.Array], stacked: int | None) -> list[jax.Array]:
    squares = [_squares(x) for x in arrays]
    if len({jax.typeof(x) for x in squares}) > 1:  # their shardings differ
        return _sums(arrays, stacked)
    # jnp.stack would reshape the arrays.
    stack = jnp.concatenate([jnp.expand_dims(x, 0) for x in squares])
    axes = [i + 1 for i in range(arrays[0].ndim) if i != stacked]
    return list(jnp.sum(stack, axis=axes))


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
