"""Draws the accuracy, the loss and each layer's norms from the logs of training runs.

Pictures are PNG files. Lines differ in dash and marker, so that they can be told apart
without colour.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lars_optax import LayerStats, plot_layer_stats

from ..log import Record, read_log
from ..terminal import printable

# Values outside are drawn at the bound: a logit axis has neither 0 nor 1, and one huge
# loss must not hide all others.
_BOUNDS = {"accuracy": (0.01, 0.999), "loss": (0, 100)}
_DIVERGED = "diverged"
# The most lines, and characters of a line's label, of a legend inside the axes.
_INSIDE, _SHORT = 4, 50
_FEW = 24  # most leaves that are all drawn; of more, only the kernels are
# The three axes of a picture of layers: label, quantity that `plot_layer_stats` draws,
# and the field of the log that it takes as the trust ratio.
_PANELS = (
    ("‖w‖ / ‖∇L‖", "norm_ratio", "trust_ratio"),
    ("trust ratio λ", "trust_ratio", "trust_ratio"),
    ("layer's learning rate γλ", "trust_ratio", "local_rate"),
)
# `plot_layer_stats` has the same styles, so that the pictures of a report look alike.
# The numbers of dashes, markers and colours have no common divisor.
_COLOURS = ("#08306b", "#d94801", "#238b45", "#756bb1", "#000000", "#e7298a", "#1b9e9e",
            "#b8860b", "#8c8c8c")  # fmt: skip
_DASHES, _MARKERS = ("-", "--", ":", "-."), "os^vDP*"


def line_style(i: int) -> dict[str, Any]:
    """Returns the colour, dash and marker of line `i`, as arguments of `Axes.plot`."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "linestyle": _DASHES[i % len(_DASHES)],
        "marker": _MARKERS[i % len(_MARKERS)],
    }


def curve(log: Sequence[Record]) -> dict[str, np.ndarray]:
    """Returns the accuracy and the mean training loss of each epoch in a run's log.

    The keys are "epoch", "accuracy" and "loss".
    """
    # A run that diverges right after an epoch is evaluated twice in that epoch.
    epochs = list({r["epoch"]: r for r in log if r["kind"] == "epoch"}.values())
    updates = [record for record in log if record["kind"] == "step"]
    steps = np.array([update["step"] for update in updates])
    losses = np.array([update["loss"] for update in updates], float)  # None is NaN
    ends = [0, *(e["step"] for e in epochs)]
    parts = [losses[(low <= steps) & (steps < high)] for low, high in pairwise(ends)]
    return {
        "epoch": np.array([e["epoch"] for e in epochs]),
        "accuracy": np.array([e["accuracy"] for e in epochs]),
        # A run that diverges at its first step is evaluated but has no update.
        "loss": np.array([part.mean() if part.size else np.nan for part in parts]),
    }


def plot_runs(runs: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Draws the accuracy and the training loss over epochs into the file `out`.

    `runs` maps labels to log files. Each label has a line for the mean over its files,
    and a band for their range.
    """
    plot_logs({label: list(map(read_log, paths)) for label, paths in runs.items()}, out)


def plot_logs(runs: Mapping[str, Sequence[Sequence[Record]]], out: Path) -> None:
    """Draws the accuracy and the training loss over epochs, as `plot_runs` does.

    `runs` maps labels to the records of logs that have been read already.
    """
    from matplotlib.figure import Figure

    below = len(runs) > _INSIDE or max(map(len, runs), default=0) > _SHORT
    height = 4 + below * len(runs) * 0.18
    figure = Figure(figsize=(10, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    finite = False
    for i, (label, logs) in enumerate(runs.items()):
        curves = [curve(log) for log in logs]
        finite |= any((c["loss"] > 0).any() for c in curves)
        for axes, key in ((left, "accuracy"), (right, "loss")):
            _band(axes, curves, key, i, _drawable(label))
            for log, points in zip(logs, curves, strict=True):
                if any(record["kind"] == "not_finite" for record in log):
                    _mark_end(axes, points["epoch"], _drawn(points, key))
    records = [record for logs in runs.values() for log in logs for record in log]
    splits = {r["split"]: 0 for r in records if r["kind"] == "epoch"}
    evaluated = _drawable(" or ".join(splits), 25) or "evaluation"
    left.set_ylabel(f"{evaluated} accuracy")
    left.set(xlabel="epoch")
    spread_accuracies(left)
    right.set(xlabel="epoch", ylabel="mean training loss in the epoch")
    if finite:  # a log axis cannot show only NaN and 0
        right.set_yscale("log")
    for axes in (left, right):
        axes.grid(color="0.85")
    _legend(figure, left, below=below)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def _drawable(text: str, most: int = 120) -> str:
    """Returns the beginning of a text, in which "$" does not begin a formula."""
    return printable(text)[:most].replace("$", r"\$")


def spread_accuracies(axes: Any) -> None:
    """Gives the y axis a logit scale, which sets 95 % and 96 % apart and shows 10 %."""
    axes.set_yscale("logit")
    ticks = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    axes.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _legend(figure: Any, axes: Any, *, below: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))  # has each label once
    if _DIVERGED in found:
        found[_DIVERGED] = found.pop(_DIVERGED)
    if below:
        figure.legend(found.values(), found, loc="outside lower center", fontsize=8)
    else:
        axes.legend(found.values(), found, loc="lower right")


def _band(
    axes: Any, curves: Sequence[dict[str, np.ndarray]], key: str, i: int, label: str
) -> None:
    """Draws the mean of several runs as a line, and their range as a band.

    Both cover the epochs that all of the runs have.
    """
    shared = reduce(np.intersect1d, [c["epoch"] for c in curves])
    values = np.stack([_drawn(c, key)[np.isin(c["epoch"], shared)] for c in curves])
    every, style = max(1, len(shared) // 6), line_style(i)
    axes.plot(shared, values.mean(0), markevery=every, label=label, **style)
    low, high = values.min(0), values.max(0)
    axes.fill_between(shared, low, high, color=style["color"], alpha=0.2)


def _drawn(points: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    """Returns the accuracies or losses of a curve, clipped to the range of the axis."""
    return points[key].clip(*_BOUNDS[key])


def _mark_end(axes: Any, epochs: np.ndarray, values: np.ndarray) -> None:
    """Draws a cross at the last finite value of a run that diverged."""
    last = np.flatnonzero(np.isfinite(values))[-1:]
    cross = {"color": "red", "markersize": 11, "markeredgewidth": 2}
    axes.plot(epochs[last], values[last], "x", label=_DIVERGED, **cross)


def plot_layers(log: Sequence[Record], heading: str, out: Path) -> None:
    """Draws each layer's norm ratio ‖w‖/‖∇L‖, trust ratio λ and rate γλ over epochs.

    If there are many layers, only those with kernels are drawn. `out` is the file.
    """
    from matplotlib.figure import Figure

    tables = [record for record in log if record["kind"] == "layers"]
    epoch = {r["step"]: r["epoch"] for r in log if r["kind"] == "step"}
    at = [epoch.get(record["step"], np.nan) for record in tables]
    norms = [record["layers"] for record in tables]
    names = list(norms[0])
    drawn = [n for n in names if len(names) <= _FEW or n.endswith("/kernel")]
    what = "" if len(drawn) == len(names) else f"; kernels of {len(names)} leaves"
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(f"{_drawable(heading)}{what}")
    parts = figure.subplots(1, 3, sharex=True)
    for axes, (label, quantity, ratio) in zip(parts, _PANELS, strict=True):
        keys = ("param_norm", "grad_norm", ratio)
        history = [
            {
                _drawable(name[-60:]): LayerStats(
                    *(_array(rows.get(name, {}).get(key)) for key in keys)
                )
                for name in drawn
            }
            for rows in norms
        ]
        plot_layer_stats(history, at, quantity=quantity, ax=axes)
        axes.set(xlabel="epoch", ylabel=label)
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.set_yscale("linear")  # a log axis cannot show only NaN
        axes.grid(color="0.85")
    # Layers with equal values share a line. Their norms hardly ever are equal, so the
    # legend of the norms names each layer, and it serves all three axes.
    key = parts[0].get_legend()
    texts, title = [t.get_text() for t in key.get_texts()], key.get_title().get_text()
    for axes in parts:
        axes.get_legend().remove()
    place: Any = {"loc": "outside right center", "fontsize": 8, "handlelength": 4.0}
    figure.legend(key.legend_handles, texts, title=title or None, **place)
    figure.savefig(out, dpi=150)


def plot_noise_scale(
    epochs: Sequence[float],
    scales: Sequence[float],
    batch_size: int,
    heading: str,
    out: Path,
) -> None:
    """Draws the gradient noise scale over epochs, and the batch size, into a file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_drawable(heading), fontsize="medium")
    every = max(1, len(scales) // 6)
    drawn = np.array([_array(scale) for scale in scales])
    axes.plot(epochs, drawn, label="noise scale", markevery=every, **line_style(0))
    label = f"batch size, {batch_size:,}"
    axes.axhline(batch_size, label=label, color=_COLOURS[1], linestyle=_DASHES[1])
    axes.set(xlabel="epoch", ylabel="images", yscale="log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    # Of several powers of ten, the numbers between them would cover each other.
    low, high = axes.get_ylim()
    few = StrMethodFormatter("{x:,g}") if high < 20 * low else NullFormatter()
    axes.yaxis.set_minor_formatter(few)
    axes.grid(color="0.85")
    axes.legend()
    figure.savefig(out, dpi=150)


def _array(value: float | None) -> Any:
    # The trainer's numbers are of float32; no axis has room for what is far beyond it.
    drawn = value if value and 1e-50 < abs(value) < 1e50 else None
    return np.array(drawn, float)  # None is NaN
