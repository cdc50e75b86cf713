"""Each layer's norms and trust ratio: the paper's Table 4, for any network.

`layer_stats` computes them. With `keep_layer_stats=True` an optimizer keeps them in its
state.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lars_optax._axes import resolve_stacked_axes
from lars_optax._masks import BY_ROLE, Mask
from lars_optax._norms import norm_dtype, sum_of_squares
from lars_optax._rule import FALLBACK_RATIO, Layer, Settings, norms_of
from lars_optax._tree import flatten, is_empty, replace_leaves


class LayerStats(NamedTuple):
    """Norms and ratio of one leaf: scalars, or vectors over the layers it stacks."""

    param_norm: jax.Array  # ‖w‖
    grad_norm: jax.Array  # ‖g‖
    trust_ratio: jax.Array  # the factor of g + βw: λ, or fallback_ratio


def layer_stats(
    grads: optax.Updates,
    params: optax.Params,
    weight_decay: jax.typing.ArrayLike = 0.0,
    weight_decay_mask: Mask = BY_ROLE,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    trust_ratio_mask: Mask = BY_ROLE,
    *,
    denominator: str = "separate",
    fallback_ratio: jax.typing.ArrayLike = FALLBACK_RATIO,
    max_ratio: jax.typing.ArrayLike | None = None,
    stacked_axes: Any = None,
    axis_name: Any = None,
) -> Any:
    """‖w‖, ‖g‖ and the trust ratio of every leaf, as `scale_by_lars` would take them.

    Pass the arguments given to `scale_by_lars`, with the present value of a scheduled
    weight decay. An optimizer with `keep_layer_stats=True` keeps the same statistics in
    its state, and is told its arguments only once.

    Inside one jit with the optimizer's update on the same gradients, no array of an
    adapted layer is read twice, because XLA shares the reductions. With
    denominator="joint" and weight decay, ‖g‖ is one reduction more.

    Args: the gradients, the parameters, then as `scale_by_lars`.

    Returns:
      A tree like `params` with a `LayerStats` at each leaf, None where the gradient is
      None.

    Raises:
      ValueError: as `scale_by_lars`.

    Example:
      >>> import jax.numpy as jnp
      >>> from lars_optax import format_layer_stats
      >>> params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.1)}
      >>> stats = layer_stats(grads, params)
      >>> print(format_layer_stats(stats))
      layer   ‖w‖       ‖g‖       ‖w‖/‖g‖   ratio
      bias    1.414     0.1414    10        0.02
      kernel  6         1         6         0.006

    References:
      You, Gitman, Ginsburg 2017, Table 4 (where x.1 are weights and x.0 biases, the
      reverse of its caption, except at conv4).
    """
    settings = Settings(
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        trust_coefficient=trust_coefficient,
        eps=eps,
        trust_ratio_mask=trust_ratio_mask,
        denominator=denominator,
        fallback_ratio=fallback_ratio,
        max_ratio=max_ratio,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
    )
    if callable(weight_decay):
        raise ValueError(
            "weight_decay is a schedule; layer_stats needs its present value, "
            "weight_decay(count)."
        )
    layers = settings.layers(grads, params)
    return stats_tree(grads, layers, settings.trust_ratios(layers))


def stats_tree(
    grads: optax.Updates, layers: list[Layer], ratios: list[jax.Array]
) -> Any:
    """A tree like `grads` with the `LayerStats` of each layer that has a gradient."""
    arrays = [x.param for x in layers] + [x.grad for x in layers]
    norms = norms_of(arrays, layers + layers)
    pairs = zip(norms[: len(layers)], norms[len(layers) :], strict=True)
    stats = (
        LayerStats(w, g, ratio if x.adapted else jnp.full_like(w, ratio))
        for x, (w, g), ratio in zip(layers, pairs, ratios, strict=True)
    )
    leaves = flatten(grads)[1]
    return replace_leaves(grads, (x if is_empty(x) else next(stats) for x in leaves))


def newest_stats(
    old: Any, grads: optax.Updates, layers: list[Layer], ratios: list[jax.Array]
) -> Any:
    """`stats_tree`, with the statistics of `old` where there is no gradient."""
    return jax.tree.map(
        lambda before, now: before if now is None else now,
        old,
        stats_tree(grads, layers, ratios),
        is_leaf=lambda x: isinstance(x, LayerStats),
    )


def zero_stats(settings: Settings, params: optax.Params) -> Any:
    """Zeros in the shapes and dtypes of the statistics of these parameters."""
    stacked = resolve_stacked_axes(settings.stacked_axes, params)

    def zeros(param: Any, axis: int | None) -> Any:
        if is_empty(param):
            return param
        norm = jax.eval_shape(functools.partial(sum_of_squares, stacked=axis), param)
        dtype = jnp.finfo(norm_dtype(jnp.result_type(param))).dtype
        sharding = getattr(norm, "sharding", None)
        like = jax.ShapeDtypeStruct(norm.shape, dtype, sharding=sharding)
        return LayerStats(*(jnp.zeros_like(like) for _ in LayerStats._fields))

    return replace_leaves(params, map(zeros, flatten(params)[1], stacked))
