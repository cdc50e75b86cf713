"""Makes the tables and pictures of the study of large batches in docs/study.md.

A row that has not been trained stands in its table as "not run". The picture of
batch sizes leaves out rows with one seed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks.results import STUDY, Record, Table, markdown
from benchmarks.study import protocol
from benchmarks.study.protocol import (
    DATA,
    METHODS,
    NETWORKS,
    PROPORTIONS,
    SUGGESTED,
    TUNED,
    Cell,
    cells,
)
from benchmarks.study.runs import STUDY_FILE, Runs
from examples.imagenet.report.figures import line_style

FLOOR = 78  # %; the picture of batch sizes writes a lower accuracy as a number
STYLES = {name: line_style(i) for i, name in enumerate(METHODS)}
STYLES |= {  # hollow, otherwise as with short trials
    name: STYLES[name.removesuffix("-long")] | {"markerfacecolor": "white"}
    for name in protocol.TUNED_LONG
}


def percent(accuracies: list[float]) -> str:
    spread = f" ± {100 * stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * mean(accuracies):.1f}{spread} %"


def score(cell: Cell, final: list[Record]) -> str:
    """Returns a table cell: test accuracy, and how many seeds are missing or diverged.

    `final` has the records of the runs at its chosen learning rate.
    """
    if not final:
        return "not run"
    wanted, n = len(cell.final.seeds), sum(r["diverged"] for r in final)
    some = "" if len(final) == wanted else f", {len(final)} of {wanted} seeds"
    diverged = f", {n} diverged" if n else ""
    return percent([r["accuracy"] for r in final]) + some + diverged


def rows(name: str, whole: bool = False) -> list[Cell]:
    """Returns the rows of the study for `name`, a network or a data set.

    For a network they are the rows on Fashion-MNIST. They are the rows of 90 epochs if
    `whole` is true, and otherwise the others without those of suggested rates.
    """
    of_name = [x for x in cells() if x.data == name or x[:2] == (DATA, name)]
    some = [x for x in of_name if x.method not in SUGGESTED]
    return [x for x in some if (x.method in PROPORTIONS) == whole]


def first_cells(cell: Cell) -> dict[str, str]:
    """Returns the batch size and the optimizer, with which each table row begins."""
    return {"batch": f"{cell.batch:,}", "optimizer": METHODS[cell.method].title}


def accuracies(name: str, records: list[Record], whole: bool = False) -> str:
    """Returns a Markdown table of test accuracies at the chosen learning rates.

    Its rows are `rows(name, whole)`.
    """
    runs, lines = Runs(records), []
    for cell in rows(name, whole):
        rates, best = runs.trials(cell)
        final = runs.final(cell)
        results = {
            "rates tried": f"{rates[0]:g} … {rates[-1]:g}" if rates else "",
            "chosen": "" if best is None else f"{best:g}",
            "updates": f"{final[0]['updates']:,}" if final else "",
            "test accuracy": score(cell, final),
        }
        lines.append(first_cells(cell) | results)
    some = any(runs.tried(cell) or runs.final(cell) for cell in rows(name, whole))
    return markdown(lines if some else [])


def trials(name: str, records: list[Record], whole: bool = False) -> str:
    """Returns a Markdown table of the validation accuracy at each learning rate tried.

    Its rows are `rows(name, whole)`.
    """
    runs, lines = Runs(records), []
    for cell in rows(name, whole):
        found = [
            f"{r['learning_rate']:g}: {100 * r['accuracy']:.1f}"
            + " (diverged)" * r["diverged"]
            for r in runs.tried(cell)
        ]
        tried = {"rate: validation accuracy, %": ", ".join(found)}
        if found:
            lines.append(first_cells(cell) | tried)
    return markdown(lines)


def describe_protocol(_: object) -> str:
    """Returns the docstring of benchmarks/study/protocol.py without its first line."""
    return (protocol.__doc__ or "").partition("\n\n")[2]


TABLES = (
    Table(STUDY, "protocol", STUDY_FILE, describe_protocol),
    *(
        Table(STUDY, mark + name, STUDY_FILE, partial(make, name))
        for name in (*NETWORKS, "digits", "cifar10")
        for mark, make in (("", accuracies), ("trials ", trials))
    ),
    *(
        Table(
            STUDY,
            f"90 epochs {mark}{name}",
            STUDY_FILE,
            partial(make, name, whole=True),
        )
        for name in NETWORKS
        for mark, make in (("", accuracies), ("trials ", trials))
    ),
)


def draw(records: list[Record], folder: Path) -> None:
    """Draws pictures of accuracy over learning rate and over batch size in `folder`."""
    runs = Runs(records)
    labels = ("learning rate", "validation accuracy, %")
    draw_panels(folder / "study_rate.png", *labels, partial(draw_rates, runs))
    labels = ("batch size", "test accuracy, %")
    draw_panels(folder / "study_batch.png", *labels, partial(draw_batches, runs))


def draw_panels(
    path: Path, xlabel: str, ylabel: str, draw: Callable[[Any, str], None]
) -> None:
    """Writes a picture to `path`, with a panel for each network and one legend.

    `draw(axis, network)` draws a panel.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, len(NETWORKS), sharey=True)
    legend: dict[str, Any] = {}
    for axis, (network, title) in zip(axes, NETWORKS.items(), strict=True):
        draw(axis, network)
        axis.set(xlabel=xlabel, title=title)
        axis.grid(alpha=0.3)
        legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axes[0].set_ylabel(ylabel)
    if legend:
        where: Any = {"loc": "outside lower center", "ncols": 3, "fontsize": "small"}
        figure.legend(list(legend.values()), list(legend), **where)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_rates(runs: Runs, axis: Any, network: str) -> None:
    here = {x.method for x in rows(network) if x.batch == TUNED[DATA]}
    for name, method in METHODS.items():
        found = runs.tried(Cell(DATA, network, TUNED[DATA], name))
        if found and name in here:
            rates = [r["learning_rate"] for r in found]
            scores = [100 * r["accuracy"] for r in found]
            axis.plot(rates, scores, label=method.title, **STYLES[name])
    axis.set(xscale="log")
    axis.set_ylim(bottom=FLOOR)
    axis.xaxis.set_minor_formatter(NullFormatter())


def draw_batches(runs: Runs, axis: Any, network: str) -> None:
    methods = [name for name in METHODS if name in {x.method for x in rows(DATA)}]
    for i, name in enumerate(methods):
        beside = 1.04 ** (i - len(methods) / 2)  # so that no point hides another
        points = []
        for cell in rows(network):
            scores = [100 * r["accuracy"] for r in runs.final(cell)]
            if cell.method == name and len(scores) > 1:
                points.append((cell.batch * beside, mean(scores), stdev(scores)))
        if not points:
            continue
        x, y, error = np.array(sorted(points)).T
        shown = np.maximum(y, FLOOR)
        bars = np.minimum(error, shown - FLOOR), error * (shown > FLOOR)
        style = STYLES[name] | {"capsize": 3, "clip_on": False}
        axis.errorbar(x, shown, bars, label=METHODS[name].title, **style)
        text = {"textcoords": "offset points", "ha": "right", "color": style["color"]}
        for at in np.flatnonzero(y < FLOOR):
            axis.annotate(f"{y[at]:.0f} %", (x[at], FLOOR), (-8, 4), **text)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_ylim(bottom=FLOOR)
