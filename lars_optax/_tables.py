"""Text tables of the leaves that a mask selects and of the statistics of layers."""

import math
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
from lars_optax._masks import Mask, resolve_mask
from lars_optax._rule import LayerStats
from lars_optax._tree import Path, check_parameter, flatten, is_empty, path_string


def describe_mask(
    mask: Mask,
    params: optax.Params,
    *,
    stacked_axes: Any = None,
    axis_name: Any = None,
) -> str:
    """Returns a table of the leaves that a mask selects.

    Each leaf has a row with its path, its shape, and "yes" if the mask selects it or
    "no" otherwise. The last row has the totals.

    Args:
      mask: Any mask that `lars` accepts.
      params: The parameters, or their shapes from `jax.eval_shape`.
      stacked_axes: The axis along which a leaf stacks several layers, as given to the
        optimizer. None means that every leaf is a single layer.
      axis_name: The mesh axes over which parameters are sharded, as given to the
        optimizer. It changes only a mask that is given by its name. None means that no
        parameter is sharded.

    Returns:
      The table as text. Its paths are those that `match_paths` searches.

    Raises:
      ValueError: If the mask, `stacked_axes` or `axis_name` is invalid or does not fit
        the parameters, or if a parameter is not floating-point.

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
    resolve_axis_names(axis_name, params, stacked)  # raises its errors
    shapes = shapes_for_roles(axis_name, params)
    chosen = resolve_mask(mask, "mask", params, stacked, shapes)
    rows, sizes = [], {True: 0, False: 0}
    for path, leaf, yes in zip(paths, leaves, chosen, strict=True):
        if not is_empty(leaf):
            shape = np.shape(leaf)
            rows.append((path_string(path), str(shape), "yes" if yes else "no"))
            sizes[yes] += math.prod(shape)
    count = sum(row[-1] == "yes" for row in rows)
    total = f"{sizes[True]:,} of {sum(sizes.values()):,} parameters"
    lines = columns(rows).splitlines()
    return "\n".join([*lines, f"{count} of {len(rows)} leaves, {total}"])


def format_layer_stats(stats: Any) -> str:
    """Returns a table of the norms and the trust ratio of each layer.

    Each layer has a row. A leaf that stacks several layers has a row for each of them.
    The columns are the path, ‖w‖, ‖g‖, ‖w‖/‖g‖ and the trust ratio. Here ‖w‖ is the
    norm of the layer's weights and ‖g‖ is the norm of its gradient.

    Args:
      stats: The tree that `layer_stats` returns, or `optax.tree.get(state,
        "layer_stats")` of an optimizer with `keep_layer_stats=True`.

    Returns:
      The table as text.

    Raises:
      ValueError: If a leaf is not a `LayerStats`, or if `stats` has no leaf or holds
        tracers.

    Example:
      >>> import jax.numpy as jnp
      >>> from lars_optax import layer_stats
      >>> params = {"kernel": jnp.full((2, 2), 3.0)}
      >>> grads = {"kernel": jnp.full((2, 2), 0.5)}
      >>> print(format_layer_stats(layer_stats(grads, params)))
      layer   ‖w‖  ‖g‖  ‖w‖/‖g‖  ratio
      kernel  6    1    6        0.006
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(
        stats, is_leaf=lambda x: isinstance(x, LayerStats)
    )
    if not flat:
        raise ValueError(
            "stats holds no statistics. Create the optimizer with "
            "keep_layer_stats=True, or pass the tree that layer_stats returns."
        )
    rows: list[tuple[str, ...]] = [("layer", "‖w‖", "‖g‖", "‖w‖/‖g‖", "ratio")]
    for path, leaf in flat:
        if not isinstance(leaf, LayerStats):
            raise ValueError(
                "format_layer_stats needs the tree that layer_stats returns, or "
                'optax.tree.get(state, "layer_stats") of an optimizer with '
                f"keep_layer_stats=True, got {type(leaf).__name__} at "
                f"{path_string(path)!r}."
            )
        if any(isinstance(x, jax.core.Tracer) for x in leaf):
            raise ValueError(
                "format_layer_stats got tracers; return the statistics from jit and "
                "format them outside."
            )
        values = [np.asarray(x, np.float64) for x in leaf]
        for i in np.ndindex(values[0].shape):
            param_norm, grad_norm, ratio = (float(x[i]) for x in values)
            with np.errstate(divide="ignore", invalid="ignore"):
                quotient = np.float64(param_norm) / grad_norm
            cells = (param_norm, grad_norm, quotient, ratio)
            rows.append((layer_name(path, i), *(f"{x:.4g}" for x in cells)))
    return columns(rows)


def layer_name(path: Path, index: tuple[int, ...]) -> str:
    """Returns the name of a layer, such as 'conv/kernel' or 'blocks/kernel[2]'.

    It is the path of the leaf, or "parameters" if the path is empty. If the leaf stacks
    several layers, `index` has the number of the layer. Otherwise `index` is empty.
    """
    number = f"[{', '.join(map(str, index))}]" if index else ""
    return (path_string(path) or "parameters") + number


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows as lines of text, with each column padded to one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
