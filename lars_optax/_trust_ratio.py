"""The maths of one layer: its decayed gradient, its norms and its trust ratio λ.

Knows no trees, masks or devices. Everything here is computed in float32 at least
(float64 for float64 and complex128), whatever the parameter's dtype. In float32 a norm
is right up to 1.8e19, and for elements above about 1e-19: squares must be in its range.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Rule(NamedTuple):
    """The constants of the trust ratio, each a number or a scalar array."""

    trust_coefficient: Any  # η, the paper's l
    eps: Any  # ε
    fallback_ratio: Any  # stands in for λ where it is not defined
    max_ratio: Any  # upper bound of λ, or None
    clip_at: Any = None  # LARC: the learning rate γ, to which λ is clipped


class Leaf(NamedTuple):
    """One parameter and its gradient; `step` is g + βw, in float32 at least."""

    param: jax.Array
    grad: jax.Array
    step: jax.Array
    weight_decay: Any  # β, 0 where the leaf is not decayed


def norm_dtype(dtype: Any) -> Any:
    """What arrays of that dtype are widened to: float32 at least."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def with_step(grad: Any, param: Any, weight_decay: Any) -> Leaf:
    """A leaf and its step; a `weight_decay` of None means not decayed."""
    param, grad = jnp.asarray(param), jnp.asarray(grad)
    wide = norm_dtype(param.dtype)
    step = grad.astype(wide)
    if norm_dtype(grad.dtype) != wide:
        grad = step  # both norms have the parameter's precision
    if weight_decay is None:
        return Leaf(param, grad, step, 0.0)
    weight_decay = jnp.asarray(weight_decay, jnp.finfo(wide).dtype)
    step += weight_decay.astype(wide) * param.astype(wide)
    return Leaf(param, grad, step, weight_decay)


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


def trust_ratio(
    param_norm: jax.Array, grad_norm: jax.Array, weight_decay: Any, rule: Rule
) -> jax.Array:
    """λ = η‖w‖ / (‖g‖ + β‖w‖ + ε), from the two norms.

    For the joint denominator pass ‖g + βw‖ as `grad_norm` and 0 as `weight_decay`.
    Where the rule clips, min(λ/γ, 1), for a learning rate γ that is still to come.
    """
    eta, eps, fallback = (
        jnp.asarray(x, param_norm.dtype)
        for x in (rule.trust_coefficient, rule.eps, rule.fallback_ratio)
    )
    # Zero norms: a layer not yet trained (w = 0) or one the loss does not see (g = 0).
    undefined = (param_norm == 0) | (grad_norm == 0)
    # 0/0 must not reach the division: its derivative would be NaN on both branches.
    denominator = jnp.where(undefined, 1, grad_norm + weight_decay * param_norm + eps)
    ratio = eta * param_norm / denominator
    if rule.max_ratio is not None:
        ratio = jnp.minimum(ratio, jnp.asarray(rule.max_ratio, ratio.dtype))
    if rule.clip_at is not None:
        gamma = jnp.asarray(rule.clip_at, ratio.dtype)
        # γ = 0, as a warm-up may start: no factor matters, and 1 is finite.
        is_zero = gamma == 0
        factor = jnp.minimum(ratio / jnp.where(is_zero, 1, gamma), 1)
        ratio = jnp.where(is_zero, 1, factor)
    ratio = jnp.where(undefined, fallback, ratio)
    # An infinite norm would give λ = 0 and freeze the layer in silence.
    finite = jnp.isfinite(param_norm) & jnp.isfinite(grad_norm)
    return jnp.where(finite, ratio, jnp.nan)
