"""What one layer is: a leaf or a slice of it, and the devices that hold it.

Turns `stacked_axes` and `axis_name` into one value per leaf.
"""

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import PartitionSpec

from lars_optax._tree import (
    Path,
    broadcast_prefix,
    called,
    flatten,
    is_empty,
    quote,
)


def resolve_stacked_axes(stacked_axes: Any, params: Any) -> list[int | None]:
    """The stacking axis of each leaf of `flatten(params)`; None: it is one layer."""
    stacked_axes = called(stacked_axes, params)
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
                f"stacked_axes={stacked_axes} says that every leaf stacks the same "
                f"layers, but the lengths differ: {found}. Pass a tree of axes with "
                "None where a leaf is one layer."
            )
    return axes


def _stacking_axis(path: Path, leaf: Any, axis: Any) -> int | None:
    if axis is None:
        return None
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise ValueError(
            "stacked_axes must be an int, a tree of ints and None, or a function from "
            f"the parameters to such a tree; got {axis!r} for {quote(path)}. Under "
            "optax.inject_hyperparams pass static_args='stacked_axes'."
        )
    rank = np.ndim(leaf)
    if not -rank <= axis < rank:
        raise ValueError(
            f"stacked_axes is {axis} for {quote(path)}, which has shape "
            f"{np.shape(leaf)} and no such axis."
        )
    return int(axis) % rank


class AxisNames(NamedTuple):
    """The mesh axes over which a leaf is sharded."""

    summed: tuple[str, ...] = ()  # they shard its layers: squares are summed over them
    between: tuple[str, ...] = ()  # they shard the stacking axis: nothing is summed


def _is_names(axis_name: Any) -> bool:
    # Not isinstance: in older versions of jax a PartitionSpec is a tuple too.
    return isinstance(axis_name, str) or (
        type(axis_name) is tuple and all(isinstance(x, str) for x in axis_name)
    )


def resolve_axis_names(
    axis_name: Any, params: Any, stacked: list[int | None]
) -> list[AxisNames]:
    """The mesh axes over which each leaf is sharded.

    Where a `PartitionSpec` shards the stacking axis, each device has its own layers.
    """
    if axis_name is None:
        return [AxisNames()] * len(stacked)
    if _is_names(axis_name):
        if stacked and not axis_name:
            raise ValueError("axis_name is empty; None says that nothing is sharded.")
        names = (axis_name,) if isinstance(axis_name, str) else axis_name
        return [AxisNames(names)] * len(stacked)
    if (
        axis_name
        and isinstance(axis_name, list)
        and all(isinstance(x, str) for x in axis_name)
    ):
        raise ValueError(f"axis_name must be a tuple of names, got {axis_name!r}.")
    specs = _specs(axis_name, params)
    paths, leaves, _ = flatten(params)
    return [
        AxisNames() if is_empty(leaf) else _sharded_on(path, leaf, spec, axis)
        for path, leaf, spec, axis in zip(paths, leaves, specs, stacked, strict=True)
    ]


def shapes_for_roles(axis_name: Any, params: Any) -> list[tuple[int, ...]]:
    """The shape of each leaf, in which an axis that may be sharded is longer than 1.

    Inside `shard_map` an axis of one device's shard can have length 1 where the same
    axis of the whole leaf is longer. With names alone any axis may be the sharded one.
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


def _sharded_on(path: Path, leaf: Any, spec: Any, stacked: int | None) -> AxisNames:
    if not isinstance(spec, PartitionSpec):
        raise ValueError(
            "axis_name must be a mesh axis name, a tuple of them, or a tree of "
            f"PartitionSpec; found {spec!r} for {quote(path)}."
        )
    if len(spec) > np.ndim(leaf):
        raise ValueError(
            f"axis_name has {spec} for {quote(path)}, which has only "
            f"{np.ndim(leaf)} axes."
        )
    summed: set[str] = set()
    between: set[str] = set()
    for axis, entry in enumerate(spec):
        if entry is not None:
            names = (entry,) if isinstance(entry, str) else entry
            if not (
                isinstance(names, tuple) and all(isinstance(x, str) for x in names)
            ):
                raise ValueError(
                    f"axis_name has {spec} for {quote(path)}; each entry must be the "
                    "name of a mesh axis, a tuple of them or None."
                )
            (between if axis == stacked else summed).update(names)
    return AxisNames(tuple(sorted(summed)), tuple(sorted(between)))
