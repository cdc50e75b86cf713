"""A printed view of a mask."""

from typing import Any

import numpy as np
import optax

from lars_optax._layers import (
    resolve_axis_names,
    resolve_stacked_axes,
    shapes_for_roles,
)
from lars_optax._masks import Mask, resolve_mask
from lars_optax._text import columns
from lars_optax._tree import check_parameter, flatten, is_empty, path_string


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
