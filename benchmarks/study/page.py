"""Makes the tables and pictures of the study of large batches.

A row that has not been trained stands in its table as "not run". The picture of
batch sizes leaves out rows with one seed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks.results import README, STUDY, STUDY_ROWS, Record, Table, markdown
from benchmarks.study import protocol
from benchmarks.study.protocol import (
    DATA,
    FINAL,
    METHODS,
    NETWORKS,
    SMALL,
    SUGGESTED,
    TUNED,
    TUNED_LONG,
    WHOLE_FINAL,
    Cell,
    cells,
)
from benchmarks.study.runs import STUDY_FILE, Runs
from examples.imagenet.report.figures import line_style

# For each optimizer, its rows of the study at several batch sizes. Where two have the
# same batch size, the later counts, whose trials were longer.
LADDER = {
    "SGD": ("sgd", "sgd-long"),
    "Nesterov SGD": ("nesterov", "nesterov-long"),
    "LARS of weights": ("lars", "lars-long"),
}
ALL_LEAVES = {
    "LARS of all leaves": ("lars-all", "lars-all-long"),
    "optax.lars": ("optax-lars", "optax-lars-long"),
}
# The rows of the README's table: what it calls them, the batch size and the method.
SETTINGS = {
    "`lars(schedule, 5e-4)`, the defaults": (TUNED[DATA], "lars-long"),
    "the same on all leaves: `weight_decay_mask=True, trust_ratio_mask=True`": (
        TUNED[DATA],
        "lars-all-long",
    ),
    "`optax.lars(schedule, 5e-4)`": (TUNED[DATA], "optax-lars-long"),
    "SGD with momentum": (TUNED[DATA], "sgd-long"),
    "SGD with momentum and a batch size of 128": (SMALL[DATA], "sgd"),
}
FLOOR = 78  # %; the picture of batch sizes writes a lower accuracy as a number
STYLES = {name: line_style(i) for i, name in enumerate(METHODS)}
STYLES |= {  # hollow, otherwise as with short trials
    name: STYLES[name.removesuffix("-long")] | {"markerfacecolor": "white"}
    for name in TUNED_LONG
}


def percent(accuracies: list[float]) -> str:
    """Returns a mean accuracy and its standard deviation, in percent.

    Its spaces are no-break spaces, so that no line of a table ends within it.
    """
    spread = f" ± {100 * stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * mean(accuracies):.1f}{spread} %".replace(" ", "\N{NO-BREAK SPACE}")


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


def chosen(runs: Runs, cell: Cell) -> str:
    """Returns a table cell: the chosen learning rate, and its test accuracy."""
    best = runs.best(cell)
    return "not run" if best is None else f"{best:g}: {score(cell, runs.final(cell))}"


def rows(name: str, epochs: int = FINAL.epochs) -> list[Cell]:
    """Returns the rows of the study for `name`, a network or a data set.

    For a network they are the rows on Fashion-MNIST. Their final runs have `epochs`
    epochs. Leaves out `SUGGESTED`, which another table has.
    """
    of_name = [x for x in cells() if x.data == name or x[:2] == (DATA, name)]
    some = [x for x in of_name if x.method not in SUGGESTED]
    return [x for x in some if x.final.epochs == epochs]


def first_cells(cell: Cell) -> dict[str, str]:
    """Returns the batch size and the optimizer, with which each table row begins."""
    return {"batch": f"{cell.batch:,}", "optimizer": METHODS[cell.method].title}


def accuracies(group: Sequence[Cell], records: list[Record]) -> str:
    """Returns a Markdown table of test accuracies at the chosen learning rates."""
    runs, lines = Runs(records), []
    for cell in group:
        rates, best = runs.trials(cell)
        final = runs.final(cell)
        tried = f"{rates[0]:.3g} … {rates[-1]:.3g}" if rates else ""
        results = {
            "learning rates tried": tried,
            "learning rate": "" if best is None else f"{best:.3g}",
            "updates": f"{final[0]['updates']:,}" if final else "",
            "test accuracy": score(cell, final),
        }
        lines.append(first_cells(cell) | results)
    some = any(runs.tried(cell) or runs.final(cell) for cell in group)
    return markdown(lines if some else [])


def by_batch(runs: Runs, network: str, methods: Sequence[str]) -> dict[int, Cell]:
    """Returns the row of the study that counts at each batch size.

    `methods` are the rows of one optimizer. Where two have the same batch size, the
    later counts, if it has results.
    """
    found: dict[int, Cell] = {}
    for method in methods:
        for cell in cells():
            mine = cell[:2] == (DATA, network) and cell.method == method
            if mine and (cell.batch not in found or runs.final(cell)):
                found[cell.batch] = cell
    return found


def means(runs: Runs, network: str, methods: Sequence[str]) -> dict[int, float]:
    """Returns the mean test accuracies of these rows that have results."""
    return {
        batch: mean(r["accuracy"] for r in final)
        for batch, cell in by_batch(runs, network, methods).items()
        if (final := runs.final(cell))
    }


def settings(records: list[Record]) -> str:
    """Returns the README's table of test accuracies at the large batch size."""
    runs, lines = Runs(records), []
    for title, (batch, method) in SETTINGS.items():
        line = {"optimizer": title}
        for network in reversed(NETWORKS):
            cell = Cell(DATA, network, batch, method)
            line[NETWORKS[network]] = score(cell, runs.final(cell))
        lines.append(line)
    return markdown(lines)


def batches(records: list[Record]) -> str:
    """Returns a Markdown table of test accuracies by batch size, for each network.

    A cell is empty if the study has no such row.
    """
    runs, lines = Runs(records), []
    for network, title in NETWORKS.items():
        found = {
            name: by_batch(runs, network, methods)
            for name, methods in (LADDER | ALL_LEAVES).items()
        }
        for batch in (SMALL[DATA], 2048, TUNED[DATA], 16_384):
            line = {"": title, "batch": f"{batch:,}"}
            for name, each in found.items():
                cell = each.get(batch)
                line[name] = score(cell, runs.final(cell)) if cell else ""
            lines.append(line)
    return markdown(lines)


def trial_lengths(records: list[Record]) -> str:
    """Returns a Markdown table of accuracies by the length of the trials.

    A cell has the learning rate that the trials chose and its test accuracy.
    """
    runs, lines = Runs(records), []
    for long in TUNED_LONG:
        short = long.removesuffix("-long")
        line = {"optimizer": METHODS[short].title}
        for network, title in NETWORKS.items():
            for method in (short, long):
                cell = Cell(DATA, network, TUNED[DATA], method)
                line[f"{title}, {cell.tuning.epochs} epochs"] = chosen(runs, cell)
        lines.append(line)
    return markdown(lines)


def proportions(records: list[Record]) -> str:
    """Returns a Markdown table of the runs of 90 epochs, for both networks."""
    runs, lines = Runs(records), []
    for cell in rows(next(iter(NETWORKS)), WHOLE_FINAL.epochs):
        line = first_cells(cell)
        for network, title in NETWORKS.items():
            same = cell._replace(network=network)
            line[title] = score(same, runs.final(same))
        lines.append(line)
    return markdown(lines)


def trials(group: Sequence[Cell], records: list[Record]) -> str:
    """Returns a Markdown table of the validation accuracy at each learning rate tried.

    Rows without trials are left out.
    """
    runs, lines = Runs(records), []
    for cell in group:
        found = [
            f"{r['learning_rate']:.3g}: {100 * r['accuracy']:.1f}"
            + " (diverged)" * r["diverged"]
            for r in runs.tried(cell)
        ]
        tried = {"learning rate: validation accuracy, %": ", ".join(found)}
        if found:
            lines.append(first_cells(cell) | tried)
    return markdown(lines)


def describe_protocol(_: object) -> str:
    """Returns the docstring of benchmarks/study/protocol.py without its first line."""
    return (protocol.__doc__ or "").partition("\n\n")[2]


TABLES = (
    Table(README, "settings", STUDY_FILE, settings),
    Table(STUDY, "batches", STUDY_FILE, batches),
    Table(STUDY, "trial lengths", STUDY_FILE, trial_lengths),
    Table(STUDY, "proportions", STUDY_FILE, proportions),
    Table(STUDY_ROWS, "protocol", STUDY_FILE, describe_protocol),
    *(
        Table(
            STUDY_ROWS,
            first + mark + name,
            STUDY_FILE,
            partial(make, rows(name, epochs)),
        )
        for first, epochs, names in (
            ("", FINAL.epochs, (*NETWORKS, "digits", "cifar10")),
            ("90 epochs ", WHOLE_FINAL.epochs, NETWORKS),
        )
        for name in names
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
    draw_panels(folder / "large_batch.png", *labels, partial(draw_ladder, runs), 4)


def draw_panels(
    path: Path,
    xlabel: str,
    ylabel: str,
    draw: Callable[[Any, str], None],
    columns: int = 3,
) -> None:
    """Writes a picture to `path`, with a panel for each network and one legend.

    `draw(axis, network)` draws a panel. The legend has `columns` columns.
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
        where: Any = {"loc": "outside lower center", "ncols": columns}
        figure.legend(list(legend.values()), list(legend), fontsize="small", **where)
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


def _write_below_floor(
    axis: Any, sizes: Sequence[float], accuracies: Sequence[float], color: str
) -> None:
    """Writes each accuracy below `FLOOR` as a number, at the floor."""
    text = {"textcoords": "offset points", "ha": "right", "color": color}
    for size, accuracy in zip(sizes, accuracies, strict=True):
        if accuracy < FLOOR:
            axis.annotate(f"{accuracy:.0f} %", (size, FLOOR), (-8, 4), **text)


def draw_ladder(runs: Runs, axis: Any, network: str) -> None:
    """Draws the test accuracy of few optimizers over the batch size."""
    rule = {"LARS of weights, suggested learning rate": ("lars-suggested",)}
    for i, (title, methods) in enumerate((LADDER | rule).items()):
        found = means(runs, network, methods)
        if sizes := sorted(found):
            scores = [100 * found[size] for size in sizes]
            style = line_style(i)
            axis.plot(sizes, np.maximum(scores, FLOOR), label=title, **style)
            _write_below_floor(axis, sizes, scores, style["color"])
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


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
        _write_below_floor(axis, x, y, style["color"])
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_ylim(bottom=FLOOR)
