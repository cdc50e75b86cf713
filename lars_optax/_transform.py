"""The gradient transformation that adds weight decay and applies the trust ratio."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lars_optax._layer_stats import newest_stats, zero_stats
from lars_optax._norms import expand_to_leaf
from lars_optax._rule import Layer, Settings
from lars_optax._tree import flatten, is_empty
from lars_optax._validate import check_bool


class ScaleByLarsState(NamedTuple):
    """The state of `scale_by_lars` with a schedule or with `keep_layer_stats=True`.

    `count` is the number of completed updates. `layer_stats` is a tree of the
    statistics of the last update, or None without `keep_layer_stats`.

    The states of `lars` and `larc` begin with this state under the same conditions. The
    state of `larc` also does so if its learning rate is a schedule.

    `optax.tree.map_params` calls its argument `transform_non_params` once with the
    whole tree `layer_stats`.
    """

    count: jax.Array  # type: ignore[assignment]  # int32, shape (): completed updates
    layer_stats: Any = None  # a tree like the parameters with LayerStats as leaves


def transform(
    settings: Settings, keep_layer_stats: bool
) -> optax.GradientTransformationExtraArgs:
    """Returns the transform that adds weight decay and multiplies by the trust ratio.

    Its updates have at least the precision of float32.
    """
    check_bool("keep_layer_stats", keep_layer_stats)
    scheduled = callable(settings.weight_decay) or callable(settings.clip_at)
    has_state = scheduled or keep_layer_stats

    def init_fn(params: optax.Params) -> Any:
        settings.check(params)
        if not has_state:
            return optax.EmptyState()
        count = jnp.zeros([], jnp.int32)
        if not keep_layer_stats:
            return ScaleByLarsState(count)
        # `optax.tree.map_params` passes a tree without leaves to find out which parts
        # of the state have the structure of the parameters. An array in place of the
        # statistics tells it that they have another structure. It is a copy, because an
        # array cannot be donated twice.
        is_empty_tree = not flatten(params)[1]
        stats = count.copy() if is_empty_tree else zero_stats(settings, params)
        return ScaleByLarsState(count, stats)

    def update_fn(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        now = settings.at(state.count) if has_state else settings
        if has_state:
            state = state._replace(count=optax.safe_increment(state.count))
        layers = now.layers(updates, params)
        if keep_layer_stats and layers:
            stats = now.layer_stats(layers, kept=True)
            ratios = [x.trust_ratio for x in stats]
            newest = newest_stats(state.layer_stats, updates, stats)
            state = state._replace(layer_stats=newest)
        else:
            ratios = now.trust_ratios(layers)
        scaled = (_scale(x, ratio) for x, ratio in zip(layers, ratios, strict=True))
        _, old, structure = flatten(updates)
        # None and MaskedNode stay unchanged.
        new = [x if is_empty(x) else next(scaled) for x in old]
        return structure.unflatten(new), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _scale(layer: Layer, ratio: jax.Array) -> jax.Array:
    x = layer.decayed_grad
    return expand_to_leaf(ratio, x, layer.stacked).astype(x.dtype) * x
