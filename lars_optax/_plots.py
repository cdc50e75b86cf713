"""Plots of each layer's statistics over the steps.

matplotlib is imported only when something is plotted. Lines have different dashes and
markers, so that they can be distinguished without colour.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lars_optax._history import Line, merge_equal, records, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# There are 4 dashes, 7 markers and 9 colours. These numbers have no common divisor, so
# two lines with the same dash differ in marker or colour.
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "v", "D", "P", "*")
_COLOURS = ("#08306b", "#d94801", "#238b45", "#756bb1", "#000000", "#e7298a", "#1b9e9e",
            "#b8860b", "#8c8c8c")  # fmt: skip
_MAX_DISTINCT = 24  # the largest number of lines that a reader can distinguish
_NUM_NAMED = 12  # the number of lines in the legend if there are more than that
_MARKERS_PER_LINE = 6  # approximate
_QUANTITIES = {
    "trust_ratio": "trust ratio",
    "param_norm": "‖w‖",
    "grad_norm": "‖g‖",
    "norm_ratio": "‖w‖ / ‖g‖",
}


def line_style(i: int) -> dict[str, Any]:
    """Returns the colour, dash and marker of line `i` as keywords for `Axes.plot`."""
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
    """Plots each layer's trust ratio, or its norms, over the steps on a log axis.

    Each layer has a line, which is labelled by its path. The labels of layers stacked
    in one leaf are `path[0]`, `path[1]` and so on. Layers with equal values share a
    line, for example the biases and norm parameters without a trust ratio. If there are
    more than 24 lines, the legend names twelve of them, and their colours run from dark
    for the first layer to light for the last. A line has a gap where a log axis cannot
    show its value: at 0, NaN and infinity, and where the gradient is None.

    The function needs matplotlib. If `ax` is given, it draws on these Axes and does not
    make a figure. Otherwise `matplotlib.pyplot` makes a new figure, which a notebook
    shows.

    Args:
      history: A list of records, one for each step. A record is the tree that
        `layer_stats` returned, or the state of an optimizer with
        `keep_layer_stats=True`. If a `lax.scan` over steps stacked the statistics, make
        the list with `[jax.tree.map(lambda x: x[t], stats) for t in range(steps)]`. If
        a later step donates the state, copy it with `jax.device_get`.
      steps: The step of each record, a list of numbers. If it is None, an optimizer's
        state has the number of updates that it has counted, and trees have the numbers
        0, 1, 2 and so on.
      quantity: "trust_ratio", "param_norm" for ‖w‖, "grad_norm" for ‖g‖, or
        "norm_ratio" for ‖w‖/‖g‖. Here w are the weights of a layer and g is its
        gradient.
      ax: The matplotlib Axes to draw on. The legend stands to the right of them. None
        makes new Axes.

    Returns:
      The Axes. `ax.figure.savefig("ratios.pdf", bbox_inches="tight")` saves the plot.

    Raises:
      ValueError: If the history is empty or holds no statistics, if its records have
        different trees, if `steps` has another length, or if `quantity` is unknown.
      ImportError: If matplotlib is not installed.

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
    lines = merge_equal(series)
    at, unit = _positions(steps, counts, len(trees))
    if ax is None:
        ax = _new_axes(at, [line.label for line in lines])
    elif not callable(getattr(ax, "plot", None)):
        raise ValueError(
            f"ax must be one matplotlib Axes, got {type(ax).__name__}; pass a single "
            "element of an array of Axes."
        )
    # With few layers, a layer has the same style in the plots of all quantities.
    named = _draw(ax, at, lines, few=len(series) <= _MAX_DISTINCT)
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
        handlelength=4.0,  # long enough to show the dashes
    )
    ax.set(xlabel=unit, ylabel=_QUANTITIES[quantity])
    return ax


def _positions(steps: Any, counts: list[Any], n: int) -> tuple[np.ndarray, str]:
    """Returns the x position of each of `n` records, and the label of the x axis.

    The positions are `steps`. If that is None, they are `counts`, the update counts of
    the records. If not every record has one, they are 0 to n − 1.

    Raises ValueError if `steps` is not None and not a list of `n` numbers.
    """
    if steps is None:
        if len(counts) < n:
            return np.arange(n), "record"
        return np.asarray(jax.device_get(counts)), "updates"
    at = np.asarray(steps)
    if at.dtype.kind not in "iuf" or at.ndim != 1:
        raise ValueError(f"steps must be a list of numbers, got {steps!r}.")
    if len(at) != n:
        raise ValueError(
            f"steps has {len(at)} numbers, but history has {n} records; pass one step "
            "for each record."
        )
    return at, "step"


def _new_axes(at: np.ndarray, labels: Sequence[str]) -> "Axes":
    try:
        from matplotlib import pyplot
        from matplotlib.ticker import AutoLocator
    except ImportError as error:
        raise ImportError(
            "plot_layer_stats needs matplotlib; run pip install matplotlib."
        ) from error
    width = 5.5 + 0.065 * max(map(len, labels))  # room for the legend
    height = max(3.5, 0.8 + 0.18 * min(len(labels), _MAX_DISTINCT))
    _, ax = pyplot.subplots(figsize=(width, height), layout="constrained")
    ax.grid(color="0.85")
    locator = AutoLocator()
    locator.set_params(integer=at.dtype.kind in "iu")
    ax.xaxis.set_major_locator(locator)
    if len(at) == 1:
        ax.set_xticks(at)
    return ax


def _draw(ax: "Axes", at: np.ndarray, lines: list[Line], few: bool) -> list[Any]:
    """Draws all lines at the x positions `at` and returns those that the legend names.

    If `few` is True, the style of a line depends on the number of its layer. A layer
    then has the same style in the plots of all quantities.
    """
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.85, len(lines)))
    if len(lines) <= _MAX_DISTINCT:
        styles = {k: line.layer if few else k for k, line in enumerate(lines)}
    else:
        named = np.linspace(0, len(lines) - 1, _NUM_NAMED)
        styles = {round(k): i for i, k in enumerate(named)}
    drawn = []
    for k, line in enumerate(lines):
        i = styles.get(k, 0)
        regular, alone = _marks(line.values, i)
        style = line_style(i) | {
            "zorder": 3,
            "markevery": np.flatnonzero(regular | alone),
        }
        if len(lines) > _MAX_DISTINCT:
            style |= {"color": shades[k], "linestyle": "-"}
        if k not in styles:  # a point between two gaps needs a marker
            style |= {"marker": ".", "linewidth": 0.6, "zorder": 2}
            style |= {"markevery": np.flatnonzero(alone)}
        drawn += ax.plot(at, line.values, label=line.label, **style)
    return [drawn[k] for k in styles]


def _marks(values: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where line `i` has markers, and where a point stands between two gaps.

    Both are bool arrays with one entry for each value. A point between two gaps is
    visible only with a marker. The markers of neighbouring lines are at other steps.
    """
    every = max(1, len(values) // _MARKERS_PER_LINE)
    seen = np.pad(np.isfinite(values), 1)
    alone = seen[1:-1] & ~seen[:-2] & ~seen[2:]
    return np.arange(len(values)) % every == i % every, alone
