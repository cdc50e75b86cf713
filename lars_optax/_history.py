"""The statistics of several steps as a series of numbers for each layer."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lars_optax._layer_stats import LayerStats
from lars_optax._tables import layer_name
from lars_optax._transform import ScaleByLarsState
from lars_optax._tree import Path, flatten, is_empty, list_some, path_string, quote

_WANTED = (
    "the trees that layer_stats returns, or states of an optimizer with "
    "keep_layer_stats=True"
)


class Line(NamedTuple):
    """What several layers have in common, or one has alone."""

    layer: int  # the first of them
    label: str
    values: np.ndarray  # one for each record


def records(history: Any) -> tuple[list[Any], list[Any]]:
    """A tree of statistics for each record; the count of each that is a state."""
    if not isinstance(history, Sequence) or hasattr(history, "_fields"):
        raise ValueError(
            f"history must be a list of records, got {type(history).__name__}. "
            f"Records are {_WANTED}; pass one as [record]."
        )
    if not history:
        raise ValueError(f"history is empty. Append to it {_WANTED}.")
    trees, counts = [], []
    for i, record in enumerate(history):
        found = [x for x in jax.tree.leaves(record, is_leaf=_is_state) if _is_state(x)]
        if len(found) > 1:
            raise ValueError(
                f"history[{i}] holds the layer_stats of {len(found)} optimizers; pass "
                "the state of one of them."
            )
        if found and found[0].count.ndim:
            raise ValueError(
                f"history[{i}] holds several states in one, of shape "
                f"{found[0].count.shape}: take one step, or one device, of each array."
            )
        counts += [state.count for state in found]
        trees.append(found[0].layer_stats if found else record)
    return trees, counts


def _is_state(x: Any) -> bool:
    return isinstance(x, ScaleByLarsState) and x.layer_stats is not None


def _leaves(tree: Any, i: int, quantity: str) -> dict[Path, Any]:
    """Path to the quantity's values, or to None, of record `i`."""
    paths, leaves, _ = flatten(tree, lambda x: is_empty(x) or isinstance(x, LayerStats))
    for path, leaf in zip(paths, leaves, strict=True):
        if not isinstance(leaf, LayerStats) and not is_empty(leaf):
            raise ValueError(
                f"history[{i}] has {type(leaf).__name__} at {quote(path)}; records "
                f"must be {_WANTED}."
            )
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(leaves)):
        raise ValueError(
            f"history[{i}] holds tracers: return the statistics from jit, and draw "
            "them outside."
        )
    fields = ["param_norm", "grad_norm"] if quantity == "norm_ratio" else [quantity]
    arrays = jax.device_get(
        [
            None if is_empty(x) else [getattr(x, field) for field in fields]
            for x in leaves
        ]
    )
    return dict(zip(paths, map(_on_log_axis, arrays), strict=True))


def _on_log_axis(arrays: list[Any] | None) -> np.ndarray | None:
    """One quantity, or the first by the second; NaN where its logarithm is not."""
    if arrays is None:
        return None
    values, *divisors = (np.asarray(x, np.float64) for x in arrays)
    with np.errstate(divide="ignore", invalid="ignore"):
        for divisor in divisors:
            values = values / divisor
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def series_of(trees: Sequence[Any], quantity: str) -> dict[str, np.ndarray]:
    """Each layer's values over the records, NaN where a log axis has none."""
    tables = [_leaves(tree, i, quantity) for i, tree in enumerate(trees)]
    for i, table in enumerate(tables):
        both = tables[0] | table
        if other := [p for p in both if p not in table or p not in tables[0]]:
            raise ValueError(
                f"history[{i}] and history[0] are of different trees: only one of them "
                f"has {list_some(other)}."
            )
    series = {}
    for path in _in_order(tables[0]):
        found = {i: t[path] for i, t in enumerate(tables) if t[path] is not None}
        shapes = {values.shape: i for i, values in found.items()}
        if len(shapes) > 1:
            listed = ", ".join(f"{x} in history[{i}]" for x, i in shapes.items())
            raise ValueError(
                f"the layers stacked at {quote(path)} differ in number: {listed}."
            )
        for shape in shapes:
            values = np.full((len(tables), *shape), np.nan)
            for i, at_step in found.items():
                values[i] = at_step
            for k in np.ndindex(shape):
                series[layer_name(path, k)] = values[(slice(None), *k)]
    if not series:
        raise ValueError(f"history holds no statistics. Append to it {_WANTED}.")
    return series


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """As the tree has them; 2 before 10 where the tree goes by the alphabet."""
    parts = {path: path_string(path).split("/") for path in paths}
    if list(parts.values()) != sorted(parts.values()):
        return list(parts)

    def numbered(path: Path) -> list[list[Any]]:
        cut = [re.split(r"(\d+)", part) for part in parts[path]]
        return [[int(x) if x.isdecimal() else x for x in part] for part in cut]

    return sorted(parts, key=numbered)


def merged(series: dict[str, np.ndarray]) -> list[Line]:
    """A line for all that are equal."""
    names = list(series)
    equal: dict[bytes, list[int]] = {}
    for i, values in enumerate(series.values()):
        equal.setdefault(values.tobytes(), []).append(i)
    lines = []
    for first, *others in equal.values():
        values = series[names[first]]
        label = names[first] + (f" and {len(others)} more" if others else "")
        label += " (0 or not finite)" if np.isnan(values).all() else ""
        lines.append(Line(first, label, values))
    return lines
