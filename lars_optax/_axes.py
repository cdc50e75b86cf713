"""Turns the arguments `stacked_axes` and `axis_name` into one value for each leaf.

The stacking axis of a leaf is the axis along which it stacks several layers. Its mesh
axes are the axes of the device mesh over which it is sharded.
"""

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import PartitionSpec

from lars_optax._tree import (
    Path,
    broadcast_prefix,
    call_if_function,
    flatten,
    is_empty,
    quote,
)


def resolve_stacked_axes(stacked_axes: Any, params: Any) -> list[int | None]:
    """Returns the axis along which each leaf stacks layers, or None for a single layer.

    `stacked_axes` has one of the forms that `scale_by_lars` describes.

    Raises ValueError if an axis is not an int, if a leaf does not have its axis, or if
    `stacked_axes` is one int and the leaves have different lengths along this axis.
    """
    stacked_axes = call_if_function(stacked_axes, params)
    paths, leaves, _ = flatten(params)
    per_leaf = broadcast_prefix(stacked_axes, params, "stacked_axes")
    axes = [
        None if is_empty(x) else _stacking_axis(path, x, axis)
        for path, x, axis in zip(paths, leaves, per_leaf, strict=True)
    ]
    if isinstance(stacked_axes, int | np.integer):
        lengths: dict[int, Path] = {}
        for path, x, axis in zip(paths, leaves, axes, strict=True):
            if axis is not None:
                lengths.setdefault(np.shape(x)[axis], path)
        if len(lengths) > 1:
            found = ", ".join(f"{n} at {quote(path)}" for n, path in lengths.items())
            raise ValueError(
                f"stacked_axes={stacked_axes} needs leaves of equal length along axis "
                f"{stacked_axes}, but the lengths are {found}. Pass a tree of axes "
                "with None for each leaf that is a single layer."
            )
    return axes


def _stacking_axis(path: Path, leaf: Any, axis: Any) -> int | None:
    if axis is None:
        return None
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise ValueError(
            "stacked_axes must be an int, a tree of ints and None, or a function from "
            f"the parameters to such a tree, got {axis!r} for {quote(path)}. Under "
            "optax.inject_hyperparams pass static_args='stacked_axes'."
        )
    rank = np.ndim(leaf)
    if not -rank <= axis < rank:
        raise ValueError(
            f"stacked_axes is {axis} for {quote(path)}, which has shape "
            f"{np.shape(leaf)}. Pass an axis of the leaf, or None if it is a single "
            "layer."
        )
    return int(axis) % rank


class AxisNames(NamedTuple):
    """The names of the mesh axes over which a leaf is sharded."""

    summed: tuple[str, ...] = ()  # shard the inside of a layer: norms are summed
    stacking: tuple[str, ...] = ()  # shard the stacking axis: norms are not summed


def _is_names(axis_name: Any) -> bool:
    # In older versions of jax a PartitionSpec is an instance of tuple.
    return isinstance(axis_name, str) or (
        type(axis_name) is tuple and all(isinstance(x, str) for x in axis_name)
    )


def resolve_axis_names(
    axis_name: Any, params: Any, stacked: list[int | None]
) -> list[AxisNames]:
    """Returns the mesh axes over which each leaf of `flatten(params)` is sharded.

    `stacked` has the axis along which each leaf stacks layers, or None. If a
    `PartitionSpec` shards this axis, each device has different layers, and norms are
    not summed over these devices.

    Raises ValueError if `axis_name` has another form than `scale_by_lars` describes, or
    if a `PartitionSpec` does not fit its leaf.
    """
    if axis_name is None:
        return [AxisNames()] * len(stacked)
    if _is_names(axis_name):
        if stacked and not axis_name:
            raise ValueError(
                "axis_name is an empty tuple. Pass the names of the mesh axes over "
                "which the parameters are sharded, or None if they are not sharded."
            )
        names = (axis_name,) if isinstance(axis_name, str) else axis_name
        return [AxisNames(names)] * len(stacked)
    if (
        axis_name
        and isinstance(axis_name, list)
        and all(isinstance(x, str) for x in axis_name)
    ):
        raise ValueError(
            f"axis_name must be a tuple of names, got the list {axis_name!r}. Pass "
            f"{tuple(axis_name)!r}."
        )
    specs = _specs(axis_name, params)
    paths, leaves, _ = flatten(params)
    return [
        AxisNames() if is_empty(leaf) else _mesh_axes(path, leaf, spec, axis)
        for path, leaf, spec, axis in zip(paths, leaves, specs, stacked, strict=True)
    ]


def shapes_for_roles(axis_name: Any, params: Any) -> list[tuple[int, ...]]:
    """Returns the shapes by which a mask decides whether each leaf is a weight.

    Inside `shard_map` a device has only a shard of each leaf. An axis of the shard can
    have length 1 although the axis of the whole leaf is longer. So length 1 is replaced
    by 2 if the axis may be sharded. If `axis_name` holds only names, every axis may be
    sharded.
    """
    shapes = [np.shape(leaf) for leaf in flatten(params)[1]]
    if axis_name is None:
        return shapes
    if _is_names(axis_name):
        return [tuple(max(n, 2) for n in shape) for shape in shapes]
    return [
        tuple(
            max(n, 2) if i < len(spec or ()) and spec[i] is not None else n
            for i, n in enumerate(shape)
        )
        for shape, spec in zip(shapes, _specs(axis_name, params), strict=True)
    ]


def _specs(axis_name: Any, params: Any) -> list[Any]:
    return broadcast_prefix(
        axis_name, params, "axis_name", is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def _mesh_axes(path: Path, leaf: Any, spec: Any, stacked: int | None) -> AxisNames:
    if not isinstance(spec, PartitionSpec):
        raise ValueError(
            "axis_name must be the name of a mesh axis, a tuple of names, or a tree of "
            f"PartitionSpec, got {spec!r} for {quote(path)}."
        )
    if len(spec) > np.ndim(leaf):
        raise ValueError(
            f"axis_name has {spec} for {quote(path)}, which has only "
            f"{np.ndim(leaf)} axes. Pass a PartitionSpec with no more entries."
        )
    summed: set[str] = set()
    stacking: set[str] = set()
    for axis, entry in enumerate(spec):
        if entry is not None:
            names = (entry,) if isinstance(entry, str) else entry
            if not (
                isinstance(names, tuple) and all(isinstance(x, str) for x in names)
            ):
                raise ValueError(
                    f"axis_name has {spec} for {quote(path)}; for each dimension of "
                    "the array give the name of a mesh axis, a tuple of such names, or "
                    "None."
                )
            (stacking if axis == stacked else summed).update(names)
    return AxisNames(tuple(sorted(summed)), tuple(sorted(stacking)))
