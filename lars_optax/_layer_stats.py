"""The norms and the trust ratio of each layer, as in Table 4 of the LARS paper.

`layer_stats` computes them. An optimizer with `keep_layer_stats=True` keeps them in its
state.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lars_optax._axes import resolve_stacked_axes
from lars_optax._masks import BY_ROLE, Mask
from lars_optax._norms import norm_dtype, sum_of_squares
from lars_optax._rule import FALLBACK_RATIO, LayerStats, Settings
from lars_optax._tree import flatten, is_empty, replace_leaves


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
    """Returns the norms and the trust ratio of each layer, as `scale_by_lars` has them.

    The norms are ‖w‖ of a layer's weights w and ‖g‖ of its gradient g. The trust ratio
    is the factor by which `scale_by_lars` multiplies g + βw, where β is the weight
    decay. Pass the arguments that you give to `scale_by_lars`. If the weight decay is a
    schedule, pass its current value. An optimizer with `keep_layer_stats=True` keeps
    the same statistics in its state and needs no second set of arguments.

    Call this function in the jitted function that updates the parameters with the same
    gradients. The statistics of layers with a trust ratio then cost no further pass
    over memory, because XLA shares the reductions. With denominator="joint" and weight
    decay, ‖g‖ takes one further reduction.

    Args:
      grads: The gradients, a tree like `params`. A leaf may be None.
      params: The parameters.
      weight_decay: The weight decay β, a number of at least 0. 0 disables weight decay.
      weight_decay_mask: The leaves that get weight decay, as in `scale_by_lars`.
      trust_coefficient: The trust coefficient η, a number above 0.
      eps: The term ε in the denominator, a number of at least 0. 0 leaves it out.
      trust_ratio_mask: The leaves that get a trust ratio, as in `scale_by_lars`.
      denominator: "separate" or "joint", as in `scale_by_lars`.
      fallback_ratio: The factor on leaves and layers without a trust ratio, a number of
        at least 0.
      max_ratio: An upper bound of the trust ratio, a number above 0. None sets no
        bound.
      stacked_axes: The axis along which a leaf stacks several layers, as in
        `scale_by_lars`. None means that every leaf is a single layer.
      axis_name: The mesh axes over which parameters are sharded inside `shard_map` or
        `pmap`. Leave it None elsewhere.

    Returns:
      A tree like `params` with a `LayerStats` at each leaf, or None if the gradient is
      None.

    Raises:
      ValueError: If `weight_decay` is a schedule, if an argument is out of range, or if
        an argument does not fit the parameters, as in `scale_by_lars`.

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
      You, Gitman, Ginsburg 2017, "Scaling SGD Batch Size to 32K for ImageNet Training",
      https://arxiv.org/abs/1708.03888v1, Table 4. Its rows x.1 are weights and its
      rows x.0 are biases, except for conv4. The caption says the reverse.
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
            "weight_decay is a schedule, but layer_stats needs a number; pass "
            "weight_decay(count), its value at the current step."
        )
    layers = settings.layers(grads, params)
    return stats_tree(grads, settings.layer_stats(layers))


def stats_tree(grads: optax.Updates, stats: list[LayerStats]) -> Any:
    """Returns a tree like `grads` with the statistics of each layer as leaves.

    `stats` has one entry for each gradient that is not None.
    """
    rest, leaves = iter(stats), flatten(grads)[1]
    return replace_leaves(grads, (x if is_empty(x) else next(rest) for x in leaves))


def newest_stats(old: Any, grads: optax.Updates, stats: list[LayerStats]) -> Any:
    """Returns a tree like `grads` with the statistics of each layer as leaves.

    A leaf whose gradient is None keeps its statistics from `old`.
    """
    return jax.tree.map(
        lambda before, now: before if now is None else now,
        old,
        stats_tree(grads, stats),
        is_leaf=lambda x: isinstance(x, LayerStats),
    )


def zero_stats(settings: Settings, params: optax.Params) -> Any:
    """Returns the statistics that a state has before the first update, which are 0.

    Their shapes and dtypes are those of later statistics of the same parameters.
    """
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
