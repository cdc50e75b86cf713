"""Checks of hyperparameters that are Python or NumPy values or JAX arrays.

Only the shape and the dtype of a JAX array are checked. Its value may be traced, and
reading it would wait for the device.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_number(
    argument: str,
    value: Any,
    *,
    high: float = math.inf,
    positive: bool = False,
    optional: bool = False,
    schedule: bool = False,
) -> Any:
    """Returns `value`, as a float if it is a Python or NumPy number.

    Raises ValueError unless it is a finite number with 0 <= value < high. `positive`
    also excludes 0. `optional` allows None. With `schedule`, `value` may be a callable,
    and the result is a callable that checks each of its values in the same way. Of a
    JAX array only shape and dtype are checked. Floating-point arrays of fewer than 32
    bits are not allowed.
    """
    if optional and value is None:
        return value
    if schedule and callable(value):
        name = f"the value of the {argument} schedule"
        return lambda count: check_number(
            name, value(count), high=high, positive=positive
        )
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        dtype = value.dtype
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"{argument} is an array of dtype {dtype}, but floating-point arrays "
                "need at least 32 bits: in bfloat16 0.999 becomes 1. Pass a Python "
                "number or a float32 array. Under optax.inject_hyperparams pass "
                "hyperparam_dtype=jnp.float32."
            )
    if isinstance(value, jax.Array):
        if value.shape != ():
            raise ValueError(
                f"{argument} must be one number, got an array of shape {value.shape}."
            )
        if not any(jnp.issubdtype(value.dtype, x) for x in (jnp.integer, jnp.floating)):
            raise ValueError(
                f"{argument} must be an integer or a floating-point number, got an "
                f"array of dtype {value.dtype}."
            )
        return value
    scalar = isinstance(value, numbers.Real) or (
        isinstance(value, np.ndarray)
        and value.shape == ()
        and value.dtype.kind in "iuf"
    )
    if not scalar or isinstance(value, bool | np.bool_):
        what = "a number or a schedule" if schedule else "a number"
        hint = " To schedule it, wrap the optimizer in optax.inject_hyperparams."
        hint *= callable(value)
        raise ValueError(f"{argument} must be {what}, got {value!r}.{hint}")
    try:
        number = float(value)
    except OverflowError:  # an int above the largest float
        number = math.inf
    above = number > 0 if positive else number >= 0
    if not (math.isfinite(number) and above and number < high):
        bounds = "> 0" if positive else ">= 0"
        bounds += "" if math.isinf(high) else f" and < {high:g}"
        raise ValueError(f"{argument} must be finite and {bounds}, got {value!r}.")
    return number


def check_sgd(learning_rate: Any, momentum: Any, nesterov: Any) -> tuple[Any, Any]:
    """Returns the learning rate and the momentum, numbers as in `check_number`.

    The learning rate may be a schedule, whose values are then checked too. A momentum
    of None disables momentum.

    Raises ValueError if one of them is out of range, or if `nesterov` is not a bool.
    """
    check_bool("nesterov", nesterov)
    return (
        check_number("learning_rate", learning_rate, schedule=True),
        check_number("momentum", momentum, high=1.0, optional=True),
    )


def check_bool(argument: str, value: Any) -> None:
    """Raises ValueError unless `value` is a Python or NumPy bool."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{argument} must be True or False, got {value!r}.")


def is_zero(value: Any) -> bool:
    """Returns True for a Python or NumPy 0, and False for any JAX array."""
    return isinstance(value, numbers.Real | np.ndarray) and bool(value == 0)


def check_count(
    argument: str,
    value: Any,
    *,
    low: int = 0,
    high: int | None = None,
    remedy: str = "",
) -> int:
    """Returns `value` as an int.

    Raises ValueError unless `value` is a Python or NumPy integer from `low` to `high`.
    If it is not an integer, the message ends with `remedy`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        message = f"{argument} must be an int, got {value!r}. {remedy}"
        raise ValueError(message.rstrip())
    if value < low:
        raise ValueError(f"{argument} must be >= {low}, got {value!r}.")
    if high is not None and int(value) > high:
        raise ValueError(f"{argument} must be <= {high}, got {value!r}.")
    return int(value)
