"""The gradient transformation itself: weight decay and trust ratio, nothing else."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lars_optax._layer_stats import newest_stats, zero_stats
from lars_optax._norms import per_layer
from lars_optax._rule import Settings
from lars_optax._tree import flatten, is_empty
from lars_optax._validate import check_bool


class ScaleByLarsState(NamedTuple):
    """State of `scale_by_lars` with a schedule or with `keep_layer_stats`.

    The states of `lars` and `larc` begin with one under the same conditions; in `larc`
    the learning rate counts as such a schedule too.
    """

    count: jax.Array  # type: ignore[assignment]  # int32, shape (): updates done
    layer_stats: Any = None  # a tree like the parameters with a LayerStats at each leaf


def transform(
    settings: Settings, keep_layer_stats: bool
) -> optax.GradientTransformationExtraArgs:
    """The transform; its updates stay as wide as computed, float32 at least."""
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
        # A tree without leaves has no statistics. `optax.tree.map_params` passes one to
        # find the parts of a state that are like the parameters. An array here tells it
        # that the statistics are not.
        is_empty_tree = not flatten(params)[1]
        stats = count if is_empty_tree else zero_stats(settings, params)
        return ScaleByLarsState(count, stats)

    def update_fn(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        now = settings.at(state.count) if has_state else settings
        if has_state:
            state = state._replace(count=optax.safe_increment(state.count))
        layers = now.layers(updates, params)
        ratios = now.trust_ratios(layers)
        if keep_layer_stats and layers:
            stats = newest_stats(state.layer_stats, updates, layers, ratios)
            state = state._replace(layer_stats=stats)
        steps = (
            per_layer(ratio, x.step, x.stacked).astype(x.step.dtype) * x.step
            for x, ratio in zip(layers, ratios, strict=True)
        )
        _, old, structure = flatten(updates)
        # None and MaskedNode stay as they are.
        new = [x if is_empty(x) else next(steps) for x in old]
        return structure.unflatten(new), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
