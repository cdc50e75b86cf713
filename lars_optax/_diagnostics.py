"""Each layer's norms and trust ratio: the paper's Table 4, for any network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars_optax._layerwise import FALLBACK_RATIO, Settings, norms_of
from lars_optax._masks import BY_ROLE, Mask
from lars_optax._text import columns
from lars_optax._tree import Path, flatten, path_string, replace_leaves


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


def format_layer_stats(stats: Any) -> str:
    """A table of `layer_stats`, a row per layer; a stacked leaf has a row per slice.

    Columns are the leaf's path, ‖w‖, ‖g‖, ‖w‖/‖g‖ and the ratio that multiplies the
    decayed gradient.

    Args:
      stats: what `layer_stats` returns, or, of a state with `record_layer_stats` in it,
        `optax.tree.get(state, "layer_stats")`.

    Raises:
      ValueError: on tracers, and on leaves that are no `LayerStats`.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(
        stats, is_leaf=lambda x: isinstance(x, LayerStats)
    )
    rows: list[tuple[str, ...]] = [("layer", "‖w‖", "‖g‖", "‖w‖/‖g‖", "ratio")]
    for path, leaf in flat:
        if not isinstance(leaf, LayerStats):
            raise ValueError(
                "format_layer_stats needs the tree that layer_stats returns, of a state"
                ' optax.tree.get(state, "layer_stats"); found '
                f"{type(leaf).__name__} at {path_string(path)!r}."
            )
        if any(isinstance(x, jax.core.Tracer) for x in leaf):
            raise ValueError(
                "format_layer_stats needs values, not tracers: return the statistics "
                "from jit, and format them outside."
            )
        values = [np.asarray(x, np.float64) for x in leaf]
        for i in np.ndindex(values[0].shape):
            param_norm, grad_norm, ratio = (float(x[i]) for x in values)
            quotient = param_norm / grad_norm if grad_norm else float("inf")
            cells = (param_norm, grad_norm, quotient, ratio)
            rows.append((layer_name(path, i), *(f"{x:.4g}" for x in cells)))
    return columns(rows)


def layer_name(path: Path, index: tuple[int, ...]) -> str:
    """Of a leaf, or of one of the layers it stacks; "parameters" if it has no path."""
    number = f"[{', '.join(map(str, index))}]" if index else ""
    return (path_string(path) or "parameters") + number
