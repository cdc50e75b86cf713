"""What LARS does to each layer, drawn over steps.

matplotlib is imported when something is drawn, never with the package. Lines differ by
dash and marker, so that they can be told apart without colour.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lars_optax._history import Line, merged, records, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# 4, 7 and 9 have no common divisor: lines that share one differ by the others.
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "v", "D", "P", "*")
_COLOURS = ("#08306b", "#d94801", "#238b45", "#756bb1", "#000000", "#e7298a", "#1b9e9e",
            "#b8860b", "#8c8c8c")  # fmt: skip
_FEW = 24  # lines that can be told apart
_NAMED = 12  # lines that are named where there are more
_MARKS = 6  # markers on a line, about
_QUANTITIES = {
    "trust_ratio": "trust ratio",
    "param_norm": "‖w‖",
    "grad_norm": "‖g‖",
    "norm_ratio": "‖w‖ / ‖g‖",
}


def line_style(i: int) -> dict[str, Any]:
    """Colour, dash and marker of line `i`, for `Axes.plot`."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "linestyle": _DASHES[i % len(_DASHES)],
        "marker": _MARKERS[i % len(_MARKERS)],
    }


def plot_layer_stats(
    history: Sequence[Any],
    steps: Any = None,
    *,
    quantity: str = "trust_ratio",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw each layer's trust ratio, or its norms, over steps on a log axis.

    A line for each layer, labelled by its path, `path[0]`, `path[1]`, … for layers
    stacked in one leaf. Layers with equal values throughout, such as the biases and
    norm parameters LARS leaves out, share a line. Of more than 24 lines twelve are
    named, and all are shaded from the first layer, dark, to the last. What a log axis
    has no place for (0, NaN, infinity, a gradient of None) leaves a gap.

    Needs matplotlib. Where `ax` is given, nothing but that is drawn on; else
    `matplotlib.pyplot` makes a new figure, which a notebook shows.

    Args:
      history: a list with the tree that `layer_stats` returned, or the state of an
        optimizer with `keep_layer_stats=True`, of each step looked at. What a
        `lax.scan` over steps stacked up is such a list after
        `[jax.tree.map(lambda x: x[t], stats) for t in range(steps)]`. Copy with
        `jax.device_get` what a later step donates.
      steps: the step of each record. None takes the updates that the states have
        counted, and 0, 1, 2, … for trees.
      quantity: "trust_ratio", "param_norm" (‖w‖), "grad_norm" (‖g‖) or "norm_ratio"
        (‖w‖/‖g‖).
      ax: the matplotlib Axes to draw on; the legend stands to its right.

    Returns:
      The Axes; `ax.figure.savefig("ratios.pdf", bbox_inches="tight")` keeps a picture.

    Raises:
      ValueError: on an empty history, records that are no statistics or of different
        trees, steps of another length, an unknown quantity.
      ImportError: without matplotlib.

    Example::

        import jax.numpy as jnp
        from lars_optax import layer_stats, plot_layer_stats

        grads = {"conv": jnp.ones((3, 3)), "dense": jnp.full((3, 2), 0.1)}
        history = []
        for step in (0, 10, 20):
            params = {"conv": jnp.full((3, 3), 1.0 + step), "dense": jnp.ones((3, 2))}
            history.append(layer_stats(grads, params))
        ax = plot_layer_stats(history, [0, 10, 20])  # conv's ratio rises to 0.021
    """
    if quantity not in _QUANTITIES:
        raise ValueError(
            f"quantity must be one of {', '.join(map(repr, _QUANTITIES))}, "
            f"got {quantity!r}."
        )
    trees, counts = records(history)
    series = series_of(trees, quantity)
    lines = merged(series)
    at, unit = _steps(steps, counts, len(trees))
    if ax is None:
        ax = _new_axes(at, [line.label for line in lines])
    elif not callable(getattr(ax, "plot", None)):
        raise ValueError(f"ax must be one matplotlib Axes, got {type(ax).__name__}.")
    # With few layers, a layer's style is the same whatever is drawn.
    named = _draw(ax, at, lines, few=len(series) <= _FEW)
    ax.set_yscale("log")
    title = None if len(named) == len(lines) else f"{len(named)} of {len(lines)} lines"
    ax.legend(
        handles=named,
        labels=[line.get_label() for line in named],
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        fontsize=8,
        handlelength=4.0,  # dashes show
    )
    ax.set(xlabel=unit, ylabel=_QUANTITIES[quantity])
    return ax


def _steps(steps: Any, counts: list[Any], n: int) -> tuple[np.ndarray, str]:
    """Where the records stand, and what is counted."""
    if steps is None:
        if len(counts) < n:
            return np.arange(n), "record"
        return np.asarray(jax.device_get(counts)), "updates"
    at = np.asarray(steps)
    if at.dtype.kind not in "iuf" or at.ndim != 1:
        raise ValueError(f"steps must be a list of numbers, got {steps!r}.")
    if len(at) != n:
        raise ValueError(
            f"steps has {len(at)} numbers, history has {n} records; give a step for "
            "each record."
        )
    return at, "step"


def _new_axes(at: np.ndarray, labels: Sequence[str]) -> "Axes":
    try:
        from matplotlib import pyplot
        from matplotlib.ticker import AutoLocator
    except ImportError as error:
        raise ImportError(
            "plot_layer_stats needs matplotlib: pip install matplotlib"
        ) from error
    wide = 5.5 + 0.065 * max(map(len, labels))  # the legend's letters
    tall = max(3.5, 0.8 + 0.18 * min(len(labels), _FEW))
    _, ax = pyplot.subplots(figsize=(wide, tall), layout="constrained")
    ax.grid(color="0.85")
    locator = AutoLocator()
    locator.set_params(integer=at.dtype.kind in "iu")
    ax.xaxis.set_major_locator(locator)
    if len(at) == 1:
        ax.set_xticks(at)
    return ax


def _draw(ax: "Axes", at: np.ndarray, lines: list[Line], few: bool) -> list[Any]:
    """All lines; returns those that the legend names."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.85, len(lines)))
    if len(lines) <= _FEW:
        styles = {k: line.layer if few else k for k, line in enumerate(lines)}
    else:
        named = np.linspace(0, len(lines) - 1, _NAMED)
        styles = {round(k): i for i, k in enumerate(named)}
    drawn = []
    for k, line in enumerate(lines):
        i = styles.get(k, 0)
        regular, alone = _marks(line.values, i)
        style = line_style(i) | {
            "zorder": 3,
            "markevery": np.flatnonzero(regular | alone),
        }
        if len(lines) > _FEW:
            style |= {"color": shades[k], "linestyle": "-"}
        if k not in styles:  # a number between two gaps is still to be seen
            style |= {"marker": ".", "linewidth": 0.6, "zorder": 2}
            style |= {"markevery": np.flatnonzero(alone)}
        drawn += ax.plot(at, line.values, label=line.label, **style)
    return [drawn[k] for k in styles]


def _marks(values: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Where line `i` has a marker, not where its neighbours have; and lone points."""
    every = max(1, len(values) // _MARKS)
    seen = np.pad(np.isfinite(values), 1)
    alone = seen[1:-1] & ~seen[:-2] & ~seen[2:]
    return np.arange(len(values)) % every == i % every, alone
