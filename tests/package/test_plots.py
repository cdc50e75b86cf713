"""Laws of the layers' picture: what is drawn is what the statistics say, or a gap."""

import functools
import sys
from importlib import import_module
from textwrap import dedent

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from trees import PARAMS, RECORDED, assert_refused

import lars_optax
from lars_optax import LayerStats, plot_layer_stats
from lars_optax._plots import line_style

matplotlib.use("agg")
STEPS = [0, 10, 30]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


@pytest.fixture
def ax():
    return Figure().subplots()


def stats(ratio):
    return LayerStats(*(np.asarray(x, np.float32) for x in (ratio, ratio, ratio)))


@functools.cache
def history():
    return [lars_optax.layer_stats(RECORDED[step], PARAMS) for step in STEPS]


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def styles(ax, *parts):
    """The parts of each line's style, such as its marker."""
    return [tuple(getattr(x, f"get_{part}")() for part in parts) for x in ax.lines]


def named(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def draw(ax):
    ax.figure.canvas.draw()  # warnings are errors here


QUANTITIES = {
    "trust_ratio": ("trust ratio", lambda x: x.trust_ratio),
    "param_norm": ("‖w‖", lambda x: x.param_norm),
    "grad_norm": ("‖g‖", lambda x: x.grad_norm),
    "norm_ratio": ("‖w‖ / ‖g‖", lambda x: x.param_norm / x.grad_norm),
}


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_lines_are_the_numbers_of_layer_stats(quantity, ax):
    label, value = QUANTITIES[quantity]
    shown = lines(plot_layer_stats(history(), STEPS, quantity=quantity, ax=ax))
    for name in ("conv", "head"):
        expected = [value(record[name]) for record in history()]
        assert shown[name].get_xdata().tolist() == STEPS
        np.testing.assert_allclose(shown[name].get_ydata(), expected, rtol=1e-6)
    assert (ax.get_yscale(), ax.get_ylabel(), ax.get_xlabel()) == ("log", label, "step")
    assert named(ax) == list(shown)


def test_what_a_log_axis_has_no_place_for_is_a_gap(ax):
    values = [1.0, 0.0, 2.0, np.nan, np.inf, 3.0, 4.0, None] + [5.0] * 30
    records = [{"w": None if x is None else stats(x), "dead": stats(0)} for x in values]
    plot_layer_stats(records, ax=ax)
    dead, w = ax.lines
    drawn = [x if x is not None and 0 < x < np.inf else np.nan for x in values]
    np.testing.assert_array_equal(w.get_ydata(), drawn)
    assert {0, 2} <= set(w.get_markevery())  # between gaps there is no line
    assert np.isnan(dead.get_ydata()).all()
    assert named(ax) == ["dead (0 or not finite)", "w"]
    draw(ax)


def test_a_layer_that_never_has_a_gradient_has_no_line(ax):
    records = [{"frozen": None, "masked": optax.MaskedNode(), "w": stats(1)}] * 2
    assert list(lines(plot_layer_stats(records, ax=ax))) == ["w"]


def test_stacked_layers_have_a_line_each(ax):
    records = [{"kernel": stats([1, 2, 3])}, {"kernel": stats([4, 5, 6])}]
    shown = lines(plot_layer_stats(records, ax=ax))
    assert {name: list(line.get_ydata()) for name, line in shown.items()} == {
        "kernel[0]": [1, 4], "kernel[1]": [2, 5], "kernel[2]": [3, 6],
    }  # fmt: skip


def test_layers_whose_paths_print_alike_have_a_line_each(ax):
    records = [
        {"a/b": stats(1), "a": {"b": stats(2)}},
        {"a/b": stats(3), "a": {"b": stats(4)}},
    ]
    plot_layer_stats(records, ax=ax)
    assert named(ax) == ["a/b", "a/b"]
    assert [list(line.get_ydata()) for line in ax.lines] == [[2, 4], [1, 3]]


def test_equal_layers_share_a_line_and_keep_a_layer_s_style(ax):
    biases = {"a": stats(1), "b": stats(1), "c": stats(1)}
    plot_layer_stats([{**biases, "w": stats(2)}], ax=ax)
    assert named(ax) == ["a and 2 more", "w"]
    style = line_style(3)  # that of the fourth leaf, whatever shares lines
    found = styles(ax, "marker", "linestyle")
    assert found[1] == (style["marker"], style["linestyle"])


def test_few_lines_differ_without_colour(ax):
    plot_layer_stats([{f"w{i}": stats(1 + i) for i in range(24)}] * 2, ax=ax)
    assert len(set(styles(ax, "linestyle", "marker"))) == len(named(ax)) == 24
    # Markers are few and far between.
    assert len(set(styles(ax, "linestyle", "color"))) == 24


def test_of_many_lines_some_are_named_and_shades_go_with_the_depth(ax):
    records = [{f"block_{i}": {"w": stats(1 + i)} for i in range(60)}] * 2
    plot_layer_stats(records, ax=ax)
    assert [line.get_ydata()[0] for line in ax.lines] == list(range(1, 61))
    assert named(ax)[::11] == ["block_0/w", "block_59/w"]  # not 9, the last by name
    assert ax.get_legend().get_title().get_text() == "12 of 60 lines"
    grey = [np.dot(to_rgb(x), (0.3, 0.59, 0.11)) for (x,) in styles(ax, "color")]
    assert (np.diff(grey) > 0).all()
    assert sum(width > 1 for (width,) in styles(ax, "linewidth")) == 12
    draw(ax)


@pytest.mark.parametrize("layers", [1, 40])
def test_one_record_is_drawn_as_points(layers):
    axes = plot_layer_stats([{f"w{i}": stats(1 + i) for i in range(layers)}])
    assert len(axes.lines) == layers
    for line in axes.lines:
        assert line.get_marker() not in ("", "None")
        assert list(line.get_markevery()) == [0]
    draw(axes)


def test_states_that_keep_layer_stats_bring_their_count(ax):
    record = lars_optax.scale_by_lars(keep_layer_stats=True)
    tx = optax.chain(optax.clip(1.0), record, optax.sgd(0.1, 0.9))
    state, whole = tx.init(PARAMS), []
    for grads in RECORDED[:2]:
        _, state = tx.update(grads, state, PARAMS)
        whole.append(state)
    plot_layer_stats(whole, ax=ax)
    assert lines(ax)["conv"].get_xdata().tolist() == [1, 2]
    assert ax.get_xlabel() == "updates"
    expected = [lines(ax)["conv"].get_ydata().tolist()]
    for records in ([s[1] for s in whole], [s[1].layer_stats for s in whole]):
        shown = lines(plot_layer_stats(records, ax=Figure().subplots()))
        expected.append(shown["conv"].get_ydata().tolist())
    assert expected[0] == expected[1] == expected[2]


def test_pyplot_knows_of_the_figure_only_where_no_axes_are_given(ax):
    assert plot_layer_stats(history(), ax=ax) is ax
    assert pyplot.get_fignums() == []
    axes = plot_layer_stats(history())
    assert [pyplot.figure(n) for n in pyplot.get_fignums()] == [axes.figure]
    draw(axes)


OTHER = [{"a": stats(1), "b": stats(1)}, {"a": stats(1), "c": stats(1)}]


@pytest.mark.parametrize(("records", "options", "said"), [
    ([], {}, r"history is empty. Append"),
    ({"w": stats(1)}, {}, r"history must be a list.* dict.*\[record\]"),
    (stats(1), {}, r"history must be a list of records, got LayerStats"),
    ([{"w": np.ones(2)}], {}, r"history\[0\] has ndarray at 'w'.*layer_stats"),
    ([{"w": None}], {}, r"history holds no statistics"),
    (OTHER, {}, r"history\[1\] and history\[0\].*only one.*'b', 'c'"),
    ([{"w": stats([1, 2])}, {"w": stats([1, 2, 3])}], {},
     r"stacked at 'w'.*\(2,\) in history\[0\], \(3,\) in history\[1\]"),
    ([{"w": stats(1)}], {"steps": [1, 2]}, r"steps has 2 numbers.*1 records"),
    ([{"w": stats(1)}], {"steps": ["one"]}, r"steps must be a list of numbers"),
    ([{"w": stats(1)}], {"steps": 5}, r"steps must be a list of numbers, got 5"),
    ([{"w": stats(1)}], {"quantity": "lr"}, r"quantity must be.*'lr'"),
    ([{"w": stats(1)}], {"ax": np.zeros(2)}, r"ax must be one matplotlib Axes"),
])  # fmt: skip
def test_wrong_arguments_are_refused(records, options, said):
    assert_refused(said, plot_layer_stats, records, **options)
    assert pyplot.get_fignums() == []


def test_states_that_are_several_and_tracers_are_refused(ax):
    tx = lars_optax.scale_by_lars(keep_layer_stats=True)
    state = tx.init(PARAMS)
    plot = functools.partial(plot_layer_stats, ax=ax)
    message = r"history\[1\] holds the layer_stats of 2 optimizers"
    assert_refused(message, plot, [state, (state, state)])
    several = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    assert_refused(r"its count has shape \(2,\)", plot, [several])
    assert_refused(r"history\[0\] holds tracers", jax.jit(plot), [{"w": stats(1)}])


def test_the_package_imports_and_explains_itself_without_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lars_optax"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if not installed
    alone = import_module("lars_optax")
    records = [alone.layer_stats({"w": jnp.ones((2, 2))}, {"w": jnp.ones((2, 2))})]
    with pytest.raises(ImportError, match="pip install matplotlib"):
        alone.plot_layer_stats(records)


def test_the_example_of_the_docstring_runs():
    example = dedent(plot_layer_stats.__doc__.partition("Example::")[2])
    names = {}
    exec(example, names)
    conv = lines(names["ax"])["conv"]
    np.testing.assert_allclose(conv.get_ydata(), [0.001, 0.011, 0.021], rtol=1e-6)
