"""Pictures of logs as PNG: accuracy and loss, and every layer's norms and rates.

Curves differ by dash and marker, so they can be told apart without colour. What a log
does not hold is not drawn. `plot_schedules` draws learning rates on axes it is given.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from lars_optax import LayerStats, plot_layer_stats

from ..log import Record, read_log

_BOUNDS = {"accuracy": (0.01, 0.999), "loss": (0, 100)}  # of what is drawn
_LOST = "diverged"
_INSIDE = 4  # labels that fit into the picture of the curves
_FEW = 24  # leaves that can be told apart
# Of a picture of layers: label, quantity of `plot_layer_stats`, and its trust ratio.
_PANELS = (
    ("‖w‖ / ‖∇L‖", "norm_ratio", "trust_ratio"),
    ("trust ratio λ", "trust_ratio", "trust_ratio"),
    ("local rate γλ", "trust_ratio", "local_rate"),
)
_COLOURS = ("#08306b", "#d94801", "#238b45", "#756bb1", "#000000", "#e7298a", "#1b9e9e",
            "#b8860b", "#8c8c8c")  # fmt: skip
_DASHES, _MARKERS = ("-", "--", ":", "-."), "os^vDP*"


def line_style(i: int) -> dict[str, Any]:
    """Colour, dash and marker of line `i`, for `Axes.plot`."""
    return {
        "color": _COLOURS[i % 9],
        "linestyle": _DASHES[i % 4],
        "marker": _MARKERS[i % 7],
    }


def curve(log: Sequence[Record]) -> dict[str, np.ndarray]:
    """By epoch: its number, the evaluation's accuracy, the mean training loss."""
    # A run that diverges right after an epoch has two evaluations at its end.
    epochs = list({r["epoch"]: r for r in log if r["kind"] == "epoch"}.values())
    updates = [record for record in log if record["kind"] == "step"]
    steps = np.array([update["step"] for update in updates])
    losses = np.array([_number(update["loss"]) for update in updates])
    ends = [0, *(e["step"] for e in epochs)]
    parts = [losses[(low <= steps) & (steps < high)] for low, high in pairwise(ends)]
    return {
        "epoch": np.array([e["epoch"] for e in epochs]),
        "accuracy": np.array([e["accuracy"] for e in epochs]),
        # A run that diverges at its first step has an evaluation but no update.
        "loss": np.array([part.mean() if part.size else np.nan for part in parts]),
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def plot_runs(runs: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Accuracy and training loss over epochs: mean and range of each label's logs."""
    plot_logs({label: list(map(read_log, paths)) for label, paths in runs.items()}, out)


def plot_logs(runs: Mapping[str, Sequence[Sequence[Record]]], out: Path) -> None:
    """`plot_runs` of logs that have been read."""
    from matplotlib.figure import Figure

    below = len(runs) > _INSIDE
    height = 4 + below * len(runs) * 0.18
    figure = Figure(figsize=(10, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    finite = False
    for i, (label, logs) in enumerate(runs.items()):
        curves = [curve(log) for log in logs]
        finite |= any((c["loss"] > 0).any() for c in curves)
        for axes, key in ((left, "accuracy"), (right, "loss")):
            _band(axes, curves, key, i, label)
            for log, points in zip(logs, curves, strict=True):
                if any(record["kind"] == "not_finite" for record in log):
                    _mark_end(axes, points["epoch"], _drawn(points, key))
    splits = {r["split"]: 0 for logs in runs.values() for r in _epochs(logs)}
    left.set_ylabel(f"{' or '.join(splits) or 'evaluation'} accuracy")
    left.set(xlabel="epoch")
    spread_accuracies(left)
    right.set(xlabel="epoch", ylabel="training loss, mean of the epoch")
    if finite:  # a log axis of nothing but NaN or 0 cannot be drawn
        right.set_yscale("log")
    for axes in (left, right):
        axes.grid(color="0.85")
    _legend(figure, left, below=below)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def spread_accuracies(axes: Any) -> None:
    """A logit axis, on which 95 % and 96 % can be told apart though one is at 10 %."""
    axes.set_yscale("logit")
    ticks = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    axes.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _epochs(logs: Sequence[Sequence[Record]]) -> list[Record]:
    return [record for log in logs for record in log if record["kind"] == "epoch"]


def _legend(figure: Any, axes: Any, *, below: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))  # each label once
    if _LOST in found:
        found[_LOST] = found.pop(_LOST)
    if below:
        figure.legend(found.values(), found, loc="outside lower center", fontsize=8)
    else:
        axes.legend(found.values(), found, loc="lower right")


def _band(
    axes: Any, curves: Sequence[dict[str, np.ndarray]], key: str, i: int, label: str
) -> None:
    """Mean line and shaded range; a run that stopped early ends the mean there."""
    shared = reduce(np.intersect1d, [c["epoch"] for c in curves])
    values = np.stack([_drawn(c, key)[np.isin(c["epoch"], shared)] for c in curves])
    every, style = max(1, len(shared) // 6), line_style(i)
    axes.plot(shared, values.mean(0), markevery=every, label=label, **style)
    low, high = values.min(0), values.max(0)
    axes.fill_between(shared, low, high, color=style["color"], alpha=0.2)


def _drawn(points: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    """The logit axis has neither 0 nor 1, and one loss must not hide all others."""
    return points[key].clip(*_BOUNDS[key])


def _mark_end(axes: Any, epochs: np.ndarray, values: np.ndarray) -> None:
    """A cross where a run that diverged has its last number."""
    last = np.flatnonzero(np.isfinite(values))[-1:]
    cross = {"color": "red", "markersize": 11, "markeredgewidth": 2}
    axes.plot(epochs[last], values[last], "x", label=_LOST, **cross)


def plot_layers(log: Sequence[Record], heading: str, out: Path) -> None:
    """‖w‖/‖∇L‖, λ and γλ of the leaves over epochs, of the weights alone where many."""
    from matplotlib.figure import Figure

    tables = [record for record in log if record["kind"] == "layers"]
    epoch = {r["step"]: r["epoch"] for r in log if r["kind"] == "step"}
    at = [epoch.get(record["step"], np.nan) for record in tables]
    names = list(tables[0]["layers"])
    drawn = [n for n in names if len(names) <= _FEW or n.endswith("/kernel")]
    what = "" if len(drawn) == len(names) else f"; the weights of {len(names)} leaves"
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(f"{heading}{what}")
    parts = figure.subplots(1, 3, sharex=True)
    for axes, (label, quantity, ratio) in zip(parts, _PANELS, strict=True):
        keys = ("param_norm", "grad_norm", ratio)
        history = [
            {n: LayerStats(*(_array(r["layers"][n][k]) for k in keys)) for n in drawn}
            for r in tables
        ]
        plot_layer_stats(history, at, quantity=quantity, ax=axes)
        axes.set(xlabel="epoch", ylabel=label)
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.set_yscale("linear")  # a log axis of nothing cannot be drawn
        axes.grid(color="0.85")
    # One legend serves all: that of the norms, of which hardly two layers' are equal.
    key = parts[0].get_legend()
    texts, title = [t.get_text() for t in key.get_texts()], key.get_title().get_text()
    for axes in parts:
        axes.get_legend().remove()
    place: Any = {"loc": "outside right center", "fontsize": 8, "handlelength": 4.0}
    figure.legend(key.legend_handles, texts, title=title or None, **place)
    figure.savefig(out, dpi=150)


def _array(value: float | None) -> Any:
    return np.array(_number(value))


def plot_schedules(
    schedules: Mapping[str, optax.Schedule], steps: int, axes: Any
) -> None:
    """Draw each label's learning rate at the steps from 0 to `steps` on `axes`."""
    at = np.unique(np.linspace(0, steps, 2001).round().astype(int))
    for i, (label, schedule) in enumerate(schedules.items()):
        rates = np.broadcast_to(jax.vmap(schedule)(at), at.shape)
        every = (i * len(at) // 30, max(1, len(at) // 6))  # first, distance
        axes.plot(at, rates, label=label, markevery=every, **line_style(i))
    axes.set(xlabel="step", ylabel="learning rate γ")
    axes.grid(color="0.85")
    axes.legend()
