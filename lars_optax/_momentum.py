"""Momentum with a chosen dtype of its buffer, and updates in the parameters' dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars_optax._tree import Path, quote
from lars_optax._validate import is_zero


def wide_momentum(
    momentum: Any, nesterov: Any, accumulator_dtype: Any
) -> optax.GradientTransformation:
    """Returns a transform that applies momentum.

    Sums are computed in the dtype of the updates. The buffer has `accumulator_dtype`,
    or the dtype of each parameter if that is None. If the momentum is None or 0, the
    transform changes nothing and has no buffer.

    Raises ValueError if `accumulator_dtype` is neither a floating-point nor a complex
    dtype. The `init` of the transform raises ValueError if this dtype is real and a
    parameter is complex.
    """
    dtype = _check_dtype(accumulator_dtype)
    if momentum is None or is_zero(momentum):
        return optax.identity()
    if not isinstance(momentum, jax.Array):
        momentum = float(momentum)  # a NumPy scalar would promote the buffer's dtype
    trace = optax.trace(momentum, bool(nesterov))

    def init_fn(params: optax.Params) -> Any:
        real = dtype and jnp.issubdtype(dtype, jnp.floating)
        if real and any(map(jnp.iscomplexobj, jax.tree.leaves(params))):
            raise ValueError(
                f"accumulator_dtype={dtype} is real, but a parameter is complex; use "
                "a complex dtype or leave it None."
            )
        return optax.trace(momentum, accumulator_dtype=dtype).init(params)

    def update_fn(updates: optax.Updates, state: Any, params: Any = None) -> Any:
        wide = jax.tree_util.tree_map_with_path(
            _widen, updates, state.trace, is_leaf=lambda x: x is None
        )
        updates, new = trace.update(updates, state._replace(trace=wide), params)
        # optax.trace drops the buffer of a leaf without a gradient. Keep it.
        kept = jax.tree.map(
            lambda x, old: old if x is None else x.astype(old.dtype),
            new,
            state,
            is_leaf=lambda x: x is None,
        )
        return updates, kept

    return optax.GradientTransformation(init_fn, update_fn)


def _widen(path: Path, update: Any, buffer: Any) -> Any:
    """Returns the momentum buffer of a leaf in the dtype of its update.

    Raises ValueError if their shapes differ.
    """
    if update is None:
        return buffer
    if jnp.shape(update) != jnp.shape(buffer):
        raise ValueError(
            f"the momentum buffer at {quote(path)} of the optimizer's state has shape "
            f"{jnp.shape(buffer)}, but the update has shape {jnp.shape(update)}. Pass "
            "the state that init made for these parameters."
        )
    return buffer.astype(update.dtype)


def in_dtype_of_params(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transform `inner` with updates cast to the parameters' dtypes."""
    inner = optax.with_extra_args_support(inner)

    def cast(x: Any, y: Any) -> Any:
        return None if x is None else x.astype(jnp.result_type(y))

    def update_fn(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        updates, state = inner.update(updates, state, params, **extra_args)
        updates = jax.tree.map(cast, updates, params, is_leaf=lambda x: x is None)
        return updates, state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _check_dtype(accumulator_dtype: Any) -> Any:
    """Returns `accumulator_dtype` as a dtype, or None if it is None.

    Raises ValueError if it is not a floating-point or complex dtype.
    """
    if accumulator_dtype is None:
        return None
    try:
        # optax.inject_hyperparams calls jnp.float32, which then returns an array.
        is_value = isinstance(accumulator_dtype, jax.Array | np.ndarray | np.generic)
        dtype = None if is_value else jnp.dtype(accumulator_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            "accumulator_dtype must be a floating-point dtype or its name, got "
            f"{accumulator_dtype!r}. Under optax.inject_hyperparams pass a name such "
            "as 'float32', or put 'accumulator_dtype' in static_args."
        )
    return dtype
