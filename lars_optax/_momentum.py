"""Momentum as parts of a chain: Optax's trace, its buffer in a dtype of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars_optax._validate import check_number, is_zero


def momentum_parts(
    momentum: Any, nesterov: bool, accumulator_dtype: Any
) -> list[optax.GradientTransformation]:
    """The transforms that add momentum; none, and no buffer, for a momentum of 0."""
    check_number("momentum", momentum, high=1.0, optional=True)
    dtype = _check_dtype(accumulator_dtype)
    if momentum is None or is_zero(momentum):
        return []
    trace = optax.trace(momentum, nesterov, dtype)
    return [trace] if dtype is None else [trace, optax.stateless(_cast_like_params)]


def _check_dtype(accumulator_dtype: Any) -> Any:
    if accumulator_dtype is None:
        return None
    try:
        # An array is what optax.inject_hyperparams makes of jnp.float32, a callable.
        is_value = isinstance(accumulator_dtype, jax.Array | np.ndarray | np.generic)
        dtype = None if is_value else jnp.dtype(accumulator_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            "accumulator_dtype must be a floating-point dtype or its name, got "
            f"{accumulator_dtype!r}. Under optax.inject_hyperparams give its name, "
            "'float32', or put 'accumulator_dtype' in static_args."
        )
    return dtype


def _cast_like_params(updates: optax.Updates, params: Any) -> optax.Updates:
    return jax.tree.map(
        lambda u, p: None if u is None else u.astype(jnp.result_type(p)),
        updates,
        params,
        is_leaf=lambda x: x is None,
    )
