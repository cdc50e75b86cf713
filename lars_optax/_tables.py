"""Tables as text: what a mask selects, and the statistics of layers."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from lars_optax._axes import (
    resolve_axis_names,
    resolve_stacked_axes,
    shapes_for_roles,
)
from lars_optax._layer_stats import LayerStats
from lars_optax._masks import Mask, resolve_mask
from lars_optax._tree import Path, check_parameter, flatten, is_empty, path_string


def describe_mask(
    mask: Mask,
    params: optax.Params,
    *,
    stacked_axes: Any = None,
    axis_name: Any = None,
) -> str:
    """A table of what a mask selects: path, shape, yes or no, and a line of totals.

    Args:
      mask: any mask that `lars` accepts.
      params: the parameters, or their `jax.eval_shape`.
      stacked_axes: as given to the optimizer.
      axis_name: likewise; it matters to the mask that is given by its name.

    Returns:
      A line for each leaf, with paths as `match_paths` sees them, then the totals.

    Raises:
      ValueError: on what the optimizer refuses for these arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
      >>> print(describe_mask("exclude_bias_and_norm", params))
      bias    (3,)    no
      kernel  (2, 3)  yes
      1 of 2 leaves, 6 of 9 parameters
    """
    paths, leaves, _ = flatten(params)
    for path, leaf in zip(paths, leaves, strict=True):
        if not is_empty(leaf):
            check_parameter(path, leaf)
    stacked = resolve_stacked_axes(stacked_axes, params)
    resolve_axis_names(axis_name, params, stacked)  # for its errors
    shapes = shapes_for_roles(axis_name, params)
    chosen = resolve_mask(mask, "mask", params, stacked, shapes)
    rows, sizes = [], {True: 0, False: 0}
    for path, leaf, yes in zip(paths, leaves, chosen, strict=True):
        if not is_empty(leaf):
            shape = np.shape(leaf)
            rows.append((path_string(path), str(shape), "yes" if yes else "no"))
            sizes[yes] += int(np.prod(shape))
    count = sum(row[-1] == "yes" for row in rows)
    total = f"{sizes[True]:,} of {sum(sizes.values()):,} parameters"
    lines = columns(rows).splitlines()
    return "\n".join([*lines, f"{count} of {len(rows)} leaves, {total}"])


def format_layer_stats(stats: Any) -> str:
    """A table of `layer_stats`, a row per layer; a stacked leaf has a row per slice.

    Columns are the leaf's path, ‖w‖, ‖g‖, ‖w‖/‖g‖ and the ratio that multiplies the
    decayed gradient.

    Args:
      stats: what `layer_stats` returns, or `optax.tree.get(state, "layer_stats")` of an
        optimizer with `keep_layer_stats=True`.

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
                "format_layer_stats needs the tree that layer_stats returns, or "
                'optax.tree.get(state, "layer_stats") of a state that has one; found '
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


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A line for each row, its cells padded to the widest of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
