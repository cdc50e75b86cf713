"""Pictures of runs: what is drawn of the logs, and how curves are told apart."""

import numpy as np
import pytest
from cases import cases
from logs import IMAGES, LEAVES, LOST, RESULT, config, epoch, layers, step, write
from matplotlib.figure import Figure

from examples.imagenet.report import __main__ as report
from examples.imagenet.report.figures import line_style, plot_layers, plot_logs
from lars_optax import _plots


@pytest.fixture
def figures(monkeypatch):
    """Those that would have been saved; drawing is what takes time."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: found.append(self))
    return found


WHOLE = [config(), step(0, loss=4.0), epoch(1, 0.25, 1), step(1), epoch(2, 0.6, 2)]


@cases(
    "end, last",
    in_an_epoch=([epoch(1, 0.75, 1), LOST, epoch(1.5, 0.1, 1)], [1.5, 0.1]),
    right_after_an_epoch=([epoch(1, 0.5, 1), LOST, epoch(1, 0.75, 1)], [1, 0.75]),
)
def test_a_mean_of_runs_ends_where_one_of_them_diverged(figures, tmp_path, end, last):
    lost = [config(), step(0, loss=2.0), *end]
    plot_logs({"both": [WHOLE, lost]}, tmp_path / "a.png")
    left, right = figures[0].axes
    found = [(line.get_label(), line.get_xydata().tolist()) for line in left.lines]
    assert found == [("both", [[1, 0.5]]), ("diverged", [last])]
    assert [line.get_xydata().tolist() for line in right.lines] == [[[1, 3]], [[1, 2]]]


def test_many_curves_differ_by_dash_or_marker_and_have_a_key_below(figures, tmp_path):
    log = [config(), step(0), epoch(1, 0.5, 1)]
    plot_logs({f"run {i}": [log] for i in range(28)}, tmp_path / "a.png")
    ((axes, *_), (legend,)) = figures[0].axes, figures[0].legends
    looks = {(line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(legend.get_texts()) == 28
    assert axes.get_legend() is None


def test_layers_pictures_are_of_all_leaves_or_of_many_layers_weights(figures, tmp_path):
    log = [config(), step(0), layers(0), step(5), layers(5)]
    plot_layers(log, "a", tmp_path / "a.png")
    row = LEAVES["conv1/kernel"]
    many = {f"{i}/{leaf}": row for i in range(50) for leaf in "ab"}
    many |= {f"{i}/kernel": row | {"param_norm": 1.0 + i} for i in range(50)}
    plot_layers([config(), step(0), layers(0, many)], "b", tmp_path / "b.png")
    norms, ratio, rate = figures[0].axes
    bias, kernel = norms.lines
    np.testing.assert_allclose(kernel.get_ydata(), 1.86 / 0.22)
    assert kernel.get_xdata() == pytest.approx([0, 5 * 512 / IMAGES])
    assert np.isnan(bias.get_ydata()).all()
    assert kernel.get_linestyle() != bias.get_linestyle()
    assert (ratio.get_yscale(), rate.get_yscale()) == ("log", "linear")  # γ is 0
    assert len(figures[1].axes[0].lines) == 50
    assert len(figures[1].legends[0].get_texts()) < 20


def test_seeds_are_one_curve_and_splits_that_differ_are_told(figures, tmp_path, capsys):
    other = epoch(2, 0.5, 2) | {"split": "validation"}
    log = [step(0), epoch(1, 0.5, 1), step(1), other, RESULT]
    runs = [write(tmp_path / f"{seed}", config(seed=seed), *log) for seed in range(3)]
    report.main([*runs, "--out", str(tmp_path / "out")])
    (line,) = figures[0].axes[0].lines
    assert line.get_label() == "alexnet_bn, LARS, batch 512, 3 runs"
    assert figures[0].axes[0].get_ylabel() == "test or validation accuracy"
    said = capsys.readouterr().out
    assert said.count("evaluated on test and validation images, in one curve") == 3


def test_lines_look_like_those_of_the_layers():
    for i in range(100):
        assert line_style(i) == _plots.line_style(i)
