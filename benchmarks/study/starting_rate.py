"""Compares published and tuned learning rates of LARS with a rule for them.

Here γ is the learning rate, η the trust coefficient and μ the momentum. A step of LARS
changes the weights of a layer by at most about q = γη/(1 − μ) of their norm, so rows
are compared by q. The published rows are those of the paper and of MLPerf that have a
learning rate, with the corrected rates of the paper's Table 7. The rows of the study
are the best rates of LARS of weights that its trials at batch sizes of 128, 2,048 and
8,192 had found before the rule was chosen. Trials of ten epochs at 16,384 were left
out. A row has T updates of B images. log q is fitted by least squares. `make report`
puts the tables into the study.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from benchmarks.results import STUDY, STUDY_ROWS, Record, Table, markdown
from benchmarks.study.page import chosen, percent, score
from benchmarks.study.protocol import DATA, NETWORKS, TRAINED, Cell
from benchmarks.study.runs import STUDY_FILE, Job, Runs
from lars_optax import epochs_to_steps, recipes, suggested_learning_rate

IMAGENET = 1_281_167
PLAIN = 0.001 / (1 - 0.9)  # q / γ at the default η and μ, which the study has
# As printed, these three rows of Table 7 are probably misprints (docs/guides/rates.md).
_MISPRINTS = {f"paper-t7-resnet50-lars-{n}" for n in (8192, 16384, 32768)}
# The rows of the study from which the rule was chosen: batch size and method.
_TUNED = ((128, "lars"), (2048, "lars"), (8192, "lars-long"))


class Row(NamedTuple):
    """A learning rate of LARS: T updates of B images, and q = γη/(1 − μ)."""

    name: str
    batch_size: int
    updates: int
    relative_change: float


@cache
def published() -> list[Row]:
    """Returns the published rows on ImageNet whose learning rate is known."""
    found = []
    for name in (*recipes.names("paper"), *recipes.names("mlperf")):
        recipe = recipes.get(name)
        if recipe.algorithm != "lars" or not recipe.learning_rate or name in _MISPRINTS:
            continue
        momentum = 0.9 if recipe.momentum is None else recipe.momentum
        relative_change = (
            recipe.learning_rate * recipe.trust_coefficient / (1 - momentum)
        )
        updates = recipe.step_counts(IMAGENET)[1]
        found.append(Row(name, recipe.batch_size, updates, relative_change))
    return found


def tuned(records: list[Record]) -> list[Row]:
    """Returns the best learning rates of the study that the rule was chosen from."""
    runs, found = Runs(records), []
    for network in NETWORKS:
        for batch, method in _TUNED:
            cell = Cell(DATA, network, batch, method)
            if rate := runs.best(cell):
                updates = epochs_to_steps(cell.tuning.epochs, TRAINED, batch)
                found.append(Row(cell.name, batch, updates, rate * PLAIN))
    return found


def fit(rows: Sequence[Row], *columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """Fits log q by a constant and `columns`, functions of a row, by least squares.

    Returns the coefficients, and for each row its q divided by that of the fit.
    """
    matrix = np.array([[1.0, *(column(row) for column in columns)] for row in rows])
    logs = np.log([row.relative_change for row in rows])
    found = np.linalg.lstsq(matrix, logs, rcond=None)[0]
    return found, np.exp(logs - matrix @ found)


def log_batch(row: Row) -> float:
    return math.log(row.batch_size)


def log_updates(row: Row) -> float:
    return math.log(row.updates)


def log_ratio(row: Row) -> float:
    return math.log(row.batch_size / row.updates)


FITS = {
    "B": (log_batch,),
    "T": (log_updates,),
    "B and T": (log_batch, log_updates),
    "B/T": (log_ratio,),
}


def fits(records: list[Record]) -> str:
    """Returns a Markdown table of the fits, with published rows alone and with all."""
    lines = []
    for title, rows in (
        ("published", published()),
        ("published and study", published() + tuned(records)),
    ):
        for name, columns in FITS.items():
            found, ratios = fit(rows, *columns)
            powers = ", ".join(f"{power:.2f}" for power in found[1:])
            spread = f"{ratios.min():.2f} to {ratios.max():.2f}"
            line = {"rows": f"{title}, {len(rows)}", "q as a power of": name}
            lines.append(line | {"powers": powers, "q / fit": spread})
    return markdown(lines)


def results(records: list[Record]) -> str:
    """Returns a Markdown table of test accuracies at the suggested and other rates."""
    runs, lines = Runs(records), []
    for network, title in NETWORKS.items():
        for batch, method, around in (
            *((n, "lars-suggested", "lars-around") for n in (512, 2048, 8192, 16_384)),
            (2048, "lars-suggested-90", "lars-90"),
        ):
            cell = Cell(DATA, network, batch, method)
            lines.append(
                {"": title} | _result(runs, cell, cell._replace(method=around))
            )
    return markdown(lines)


def _result(runs: Runs, cell: Cell, around: Cell) -> dict[str, str]:
    """Returns the cells of a line of `results`."""
    updates = epochs_to_steps(cell.final.epochs, TRAINED, cell.batch)
    line = {"batch": f"{cell.batch:,}", "updates": f"{updates:,}"}
    line["suggested"] = chosen(runs, cell)
    for name, factor in (("half", 0.5), ("twice", 2)):
        trial = Job(around, cell.suggested_rate * factor, around.tuning, 1)
        final = runs.of(trial._replace(stage=around.final))
        # A trial that diverged is not evaluated on the test images.
        diverged = any(r["diverged"] for r in runs.of(trial))
        found = percent([r["accuracy"] for r in final]) if final else "not run"
        line[name] = "diverged" if diverged else found
    line["tuned"] = chosen(runs, around)
    root = cell._replace(method="lars-sqrt")
    same = cell.final.epochs == root.final.epochs
    line["√ scaling"] = score(root, runs.final(root)) if same else ""
    ours, theirs = ([r["accuracy"] for r in runs.final(x)] for x in (cell, around))
    both = len(ours) == len(theirs) == len(cell.final.seeds)
    line["tuned − suggested"] = (
        f"{100 * (mean(theirs) - mean(ours)):z.1f}" if both else ""
    )
    return line


TABLES = (
    Table(STUDY_ROWS, "fits", STUDY_FILE, fits),
    Table(STUDY, "suggested rates", STUDY_FILE, results),
)


def draw(records: list[Record], folder: Path) -> None:
    """Draws q of all rows over B/T, and the suggested rate, into `folder`."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for rows, label, marker in (
        ([r for r in published() if "alexnet" in r.name], "paper, AlexNet-BN", "o"),
        (
            [r for r in published() if "resnet" in r.name],
            "paper and MLPerf, ResNet-50",
            "s",
        ),
        (tuned(records), "this study, trials", "^"),
    ):
        ratios = [row.batch_size / row.updates for row in rows]
        rates = [row.relative_change / PLAIN for row in rows]
        axes.plot(ratios, rates, marker, label=label, alpha=0.7)
    steps, line = 10**6, np.logspace(-3, 2.5, 200)
    rates = [suggested_learning_rate(round(ratio * steps), steps) for ratio in line]
    axes.plot(line, rates, "-", color="black", label="suggested rate")
    axes.set(xscale="log", yscale="log", xlabel="batch size B / number of updates T")
    axes.set_ylabel("learning rate γ at η = 0.001 and μ = 0.9")
    axes.yaxis.set_major_locator(FixedLocator([3, 5, 10, 20, 40]))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.legend()
    path = folder / "study_starting_rate.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
