"""Collects the values of each layer over the steps of a run, for a plot.

A history is a list of records, one for each step. A record is the tree that
`layer_stats` returned, or the state of an optimizer with `keep_layer_stats=True`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lars_optax._rule import LayerStats
from lars_optax._tables import layer_name
from lars_optax._transform import ScaleByLarsState
from lars_optax._tree import Path, flatten, is_empty, list_some, path_string, quote

_WANTED = (
    "the trees that layer_stats returns, or states of an optimizer with "
    "keep_layer_stats=True"
)


class Line(NamedTuple):
    """One plotted line, shared by all layers with equal values."""

    layer: int  # the index of the first of these layers
    label: str
    values: np.ndarray  # one value for each record


def records(history: Any) -> tuple[list[Any], list[Any]]:
    """Returns the statistics of each record, and the update count of each state.

    A record is the tree that `layer_stats` returned, or an optimizer's state. Only a
    state has an update count, so the second list may be shorter than the first.

    Raises ValueError if `history` is not a list or is empty, or if a record has the
    states of several optimizers, steps or devices.
    """
    if not isinstance(history, Sequence) or hasattr(history, "_fields"):
        raise ValueError(
            f"history must be a list of records, got {type(history).__name__}. "
            f"Records are {_WANTED}. Pass a single record as [record]."
        )
    if not history:
        raise ValueError(f"history is empty. Append to it {_WANTED}.")
    trees, counts = [], []
    for i, record in enumerate(history):
        found = [x for x in jax.tree.leaves(record, is_leaf=_is_state) if _is_state(x)]
        if len(found) > 1:
            raise ValueError(
                f"history[{i}] holds the layer_stats of {len(found)} optimizers; pass "
                "the state of one optimizer."
            )
        if found and found[0].count.ndim:
            raise ValueError(
                f"history[{i}] is a state of several steps or devices, because its "
                f"count has shape {found[0].count.shape}. Select one step or one "
                "device of each array."
            )
        counts += [state.count for state in found]
        trees.append(found[0].layer_stats if found else record)
    return trees, counts


def _is_state(x: Any) -> bool:
    return isinstance(x, ScaleByLarsState) and x.layer_stats is not None


def _leaves(tree: Any, i: int, quantity: str) -> dict[Path, Any]:
    """Returns the values of `quantity` at each path of record number `i`.

    The value is None at a path without statistics. `quantity` is a field of
    `LayerStats`, or "norm_ratio" for ‖w‖/‖g‖.

    Raises ValueError if a leaf is not a `LayerStats`, or if the record holds tracers.
    """
    paths, leaves, _ = flatten(tree, lambda x: is_empty(x) or isinstance(x, LayerStats))
    for path, leaf in zip(paths, leaves, strict=True):
        if not isinstance(leaf, LayerStats) and not is_empty(leaf):
            raise ValueError(
                f"history[{i}] has {type(leaf).__name__} at {quote(path)}, but records "
                f"must be {_WANTED}."
            )
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(leaves)):
        raise ValueError(
            f"history[{i}] holds tracers; return the statistics from jit and plot them "
            "outside."
        )
    fields = ["param_norm", "grad_norm"] if quantity == "norm_ratio" else [quantity]
    arrays = jax.device_get(
        [
            None if is_empty(x) else [getattr(x, field) for field in fields]
            for x in leaves
        ]
    )
    return dict(zip(paths, map(_positive_values, arrays), strict=True))


def _positive_values(arrays: list[Any] | None) -> np.ndarray | None:
    """Returns the first array, divided by the second one if there are two.

    Values that are not finite and positive become NaN, because a log axis cannot show
    them. Returns None if `arrays` is None.
    """
    if arrays is None:
        return None
    values, *divisors = (np.asarray(x, np.float64) for x in arrays)
    with np.errstate(divide="ignore", invalid="ignore"):
        for divisor in divisors:
            values = values / divisor
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def series_of(trees: Sequence[Any], quantity: str) -> list[tuple[str, np.ndarray]]:
    """Returns the name of each layer, and its value of `quantity` in each tree.

    Values that are not finite and positive become NaN, because a log axis cannot show
    them.

    Raises ValueError if the trees have different paths, if a leaf does not have the
    same number of stacked layers in all trees, or if there are no statistics.
    """
    tables = [_leaves(tree, i, quantity) for i, tree in enumerate(trees)]
    for i, table in enumerate(tables):
        both = tables[0] | table
        if other := [p for p in both if p not in table or p not in tables[0]]:
            raise ValueError(
                f"history[{i}] and history[0] have different trees: only one of them "
                f"has {list_some(other)}. Plot one network at a time."
            )
    series = []
    for path in _in_order(tables[0]):
        found = {i: t[path] for i, t in enumerate(tables) if t[path] is not None}
        shapes = {values.shape: i for i, values in found.items()}
        if len(shapes) > 1:
            listed = ", ".join(f"{x} in history[{i}]" for x, i in shapes.items())
            raise ValueError(
                f"the number of layers stacked at {quote(path)} changes: its shape is "
                f"{listed}. Plot one network at a time."
            )
        for shape in shapes:
            values = np.full((len(tables), *shape), np.nan)
            for i, at_step in found.items():
                values[i] = at_step
            for k in np.ndindex(shape):
                series.append((layer_name(path, k), values[(slice(None), *k)]))
    if not series:
        raise ValueError(f"history holds no statistics. Append to it {_WANTED}.")
    return series


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Returns the paths in their given order, or sorted if that order is alphabetical.

    They are sorted with numbers by value, so that layer2 stands before layer10.
    """
    parts = {path: path_string(path).split("/") for path in paths}
    if list(parts.values()) != sorted(parts.values()):
        return list(parts)

    def numbered(path: Path) -> list[list[Any]]:
        cut = [re.split(r"(\d+)", part) for part in parts[path]]
        return [[int(x) if x.isdecimal() else x for x in part] for part in cut]

    return sorted(parts, key=numbered)


def merge_equal(series: list[tuple[str, np.ndarray]]) -> list[Line]:
    """Returns one line for each group of layers with equal values.

    `series` has the name and the values of each layer. The label of a line is the name
    of the first layer, followed by the number of further layers.
    """
    equal: dict[bytes, list[int]] = {}
    for i, (_, values) in enumerate(series):
        equal.setdefault(values.tobytes(), []).append(i)
    lines = []
    for first, *others in equal.values():
        name, values = series[first]
        label = name + (f" and {len(others)} more" if others else "")
        label += " (0 or not finite)" if np.isnan(values).all() else ""
        lines.append(Line(first, label, values))
    return lines
