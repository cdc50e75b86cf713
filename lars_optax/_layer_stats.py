"""Each layer's norms and trust ratio: the paper's Table 4, for any network.

`layer_stats` takes them, and `record_layer_stats` keeps them in an optimizer's state.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lars_optax._axes import resolve_stacked_axes
from lars_optax._masks import BY_ROLE, Mask
from lars_optax._norms import norm_dtype, sum_of_squares
from lars_optax._rule import FALLBACK_RATIO, Settings, norms_of
from lars_optax._tree import flatten, is_empty, replace_leaves


class LayerStats(NamedTuple):
    """Norms and ratio of one leaf: scalars, or vectors over the layers it stacks."""

    param_norm: jax.Array  # ‖w‖
    grad_norm: jax.Array  # ‖g‖
    trust_ratio: jax.Array  # what `lars` multiplies g + βw by: λ, or fallback_ratio


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
    weight decay. Inside one jit with the optimizer's update on the same gradients this
    reads no array of an adapted layer again: XLA shares the reductions. (With
    denominator="joint" and decay, ‖g‖ is one reduction more.)

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
    return stats_of(settings, grads, params)


def stats_of(settings: Settings, grads: optax.Updates, params: optax.Params) -> Any:
    """`layer_stats` under settings that hold no schedule."""
    layers = settings.layers(grads, params)
    found = [layer for layer in layers if layer is not None]
    ratios = iter(settings.trust_ratios([x for x in found if x.adapted]))
    arrays = [x.leaf.param for x in found] + [x.leaf.grad for x in found]
    norms = norms_of(arrays, found + found)
    stats = (
        LayerStats(
            w,
            g,
            next(ratios) if x.adapted else jnp.full_like(w, settings.fallback_ratio),
        )
        for x, w, g in zip(found, norms[: len(found)], norms[len(found) :], strict=True)
    )
    pairs = zip(flatten(grads)[1], layers, strict=True)
    kept = (x if layer is None else next(stats) for x, layer in pairs)
    return replace_leaves(grads, kept)


def _zero_stats(settings: Settings, params: optax.Params) -> Any:
    """Zeros in the shapes and dtypes of the statistics of these parameters."""
    settings.check(params)
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


@functools.cache
def _placeholder() -> type:
    """What `optax.tree.map_params` gives to `init` to see where parameters go."""
    given: list[Any] = []
    optax.tree.map_params(given.append, lambda x: x, None)
    return type(given[0])


class RecordLayerStatsState(NamedTuple):
    """State of `record_layer_stats`."""

    count: jax.Array  # type: ignore[assignment]  # int32, shape (): updates done
    layer_stats: Any  # a tree like the parameters with a LayerStats at each leaf


def record_layer_stats(
    weight_decay: optax.ScalarOrSchedule = 0.0,
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
) -> optax.GradientTransformationExtraArgs:
    """Pass the updates on, and keep each layer's `layer_stats` in the state.

    Put it right before `scale_by_lars` or `lars` in a chain, with the arguments given
    to that: it then sees the same gradients, clipped, averaged or however they come,
    and XLA computes what both need once. The state has the same structure, shapes and
    dtypes from `init` on, so it can be scanned over, checkpointed, and passed through
    `lax.cond` and `optax.MultiSteps`; read it with
    `optax.tree.get(state, "layer_stats")`. Before `larc`, pass
    its `trust_coefficient`, `eps` and fallback_ratio=1.0; the state then has λ, not
    min(λ/γ, 1). (Where `shard_map` cuts the axis of stacked
    layers, call `init` outside of it. To `optax.tree.map_params` the statistics are one
    subtree that is no parameter.)

    Args: as `scale_by_lars`; `weight_decay` may be a schedule.

    Returns:
      A transformation whose update needs `params`. Before the first update all norms
      and ratios are 0; a leaf without a gradient keeps what it had.

    Raises:
      ValueError: as `scale_by_lars`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from lars_optax import format_layer_stats, scale_by_lars
      >>> tx = optax.chain(record_layer_stats(5e-4), scale_by_lars(5e-4))
      >>> params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.1)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> print(format_layer_stats(optax.tree.get(state, "layer_stats")))
      layer   ‖w‖       ‖g‖       ‖w‖/‖g‖   ratio
      bias    1.414     0.1414    10        0.02
      kernel  6         1         6         0.005982
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

    def init_fn(params: optax.Params) -> RecordLayerStatsState:
        count = jnp.zeros([], jnp.int32)
        if isinstance(params, _placeholder()):  # statistics are no parameters
            return RecordLayerStatsState(count, count)
        return RecordLayerStatsState(count, _zero_stats(settings, params))

    def update_fn(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, RecordLayerStatsState]:
        del extra_args
        new = stats_of(settings.at(state.count), updates, params)
        kept = jax.tree.map(
            lambda old, x: old if x is None else x,
            state.layer_stats,
            new,
            is_leaf=lambda x: isinstance(x, LayerStats),
        )
        count = optax.safe_increment(state.count)
        return updates, RecordLayerStatsState(count, kept)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
