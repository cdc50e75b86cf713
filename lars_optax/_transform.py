"""The gradient transformation itself: decay, ratio, and nothing else."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lars_optax._norms import per_layer
from lars_optax._rule import Settings
from lars_optax._tree import flatten


class ScaleByLarsState(NamedTuple):
    """State of `scale_by_lars` when its weight decay is a schedule.

    And of `larc`, when its weight decay or learning rate is one.
    """

    count: jax.Array  # type: ignore[assignment]  # int32, shape (): updates done


def transform(
    settings: Settings, wide: bool = False
) -> optax.GradientTransformationExtraArgs:
    """The transform; its updates have the dtype of their parameters.

    Unless they are to stay as wide as they were computed, float32 at least.
    """
    scheduled = callable(settings.weight_decay) or callable(settings.clip_at)

    def init_fn(params: optax.Params) -> Any:
        settings.check(params)
        if scheduled:
            return ScaleByLarsState(count=jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        now = settings
        if scheduled:
            now = settings.at(state.count)
            state = ScaleByLarsState(count=optax.safe_increment(state.count))
        layers = now.layers(updates, params)
        adapted = [layer for layer in layers if layer is not None and layer.adapted]
        ratios = iter(now.trust_ratios(adapted))
        _, old, structure = flatten(updates)
        weights = flatten(params)[1]
        new = []
        for layer, grad, weight in zip(layers, old, weights, strict=True):
            if layer is None:
                new.append(grad)  # None and MaskedNode stay as they are
                continue
            step = layer.leaf.step
            ratio = (
                per_layer(next(ratios), step, layer.stacked)
                if layer.adapted
                else jnp.asarray(settings.fallback_ratio)
            )
            update = ratio.astype(step.dtype) * step
            new.append(update if wide else update.astype(jnp.result_type(weight)))
        return structure.unflatten(new), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
