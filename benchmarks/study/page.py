"""The tables of docs/study.md and its pictures, of the runs that are runs.

What is not there yet says so; nothing is left out of the tables. The picture of the
batches lacks rows of one seed, that of the rates scores below FLOOR.
"""

from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks.study import protocol
from benchmarks.study.protocol import METHODS, TUNED, TUNED_LONG, Cell, cells
from benchmarks.study.runs import Runs
from examples.imagenet.report.figures import line_style
from examples.imagenet.report.page import markdown_table

PAGE = Path("docs/study.md")
DATA = "fashion-mnist"
NETWORKS = {"alexnet_small": "without BatchNorm", "alexnet_bn_small": "with BatchNorm"}
FLOOR = 78  # %, below which a picture says the number alone
STYLES = {name: line_style(i) for i, name in enumerate(METHODS)}
STYLES |= {  # hollow, otherwise as with short trials
    name: STYLES[name.removesuffix("-long")] | {"markerfacecolor": "white"}
    for name in TUNED_LONG
}


def percent(accuracies: list[float]) -> str:
    spread = f" ± {100 * stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * mean(accuracies):.1f}{spread} %"


def lost(records: list[dict[str, Any]]) -> str:
    n = sum(record["diverged"] for record in records)
    return f", {n} diverged" if n else ""


def score(cell: Cell, final: list[dict[str, Any]]) -> str:
    if not final:
        return "not run"
    wanted = len(cell.final.seeds)
    some = "" if len(final) == wanted else f", {len(final)} of {wanted} seeds"
    return percent([r["accuracy"] for r in final]) + some + lost(final)


def ladder(runs: Runs, some: list[Cell]) -> str:
    """Test accuracies of the chosen rates."""
    if not any(runs.tried(cell) or runs.final(cell) for cell in some):
        return "Not run.\n"
    head = ["batch", "optimizer", "rates tried", "chosen", "updates", "test accuracy"]
    lines = []
    for cell in some:
        rates, best = runs.trials(cell)
        final = runs.final(cell)
        lines.append(
            [
                f"{cell.batch:,}",
                METHODS[cell.method].title,
                f"{rates[0]:g} … {rates[-1]:g}" if rates else "",
                "" if best is None else f"{best:g}",
                f"{final[0]['updates']:,}" if final else "",
                score(cell, final),
            ]
        )
    return markdown_table([head, *lines])


def sweep(runs: Runs, some: list[Cell]) -> str:
    """Every trial: its validation accuracy."""
    lines = []
    for cell in some:
        found = runs.tried(cell)
        trials = ", ".join(
            f"{r['learning_rate']:g}: {100 * r['accuracy']:.1f}"
            + " (diverged)" * r["diverged"]
            for r in found
        )
        if trials:
            lines.append([f"{cell.batch:,}", METHODS[cell.method].title, trials])
    head = ["batch", "optimizer", "rate: validation accuracy, %"]
    return markdown_table([head, *lines]) if lines else "Not run.\n"


def part(name: str) -> list[Cell]:
    """The rows of one network, or of other data."""
    small = [cell for cell in cells() if cell.data == name]
    return small or [
        cell for cell in cells() if (cell.data, cell.network) == (DATA, name)
    ]


def rules(_: Any) -> str:
    """The protocol without its title."""
    return (protocol.__doc__ or "").partition("\n\n")[2]


def drawn(runs: Runs) -> bool:
    """Whether there is anything to draw for each network."""
    return all(any(map(runs.final, part(name))) for name in NETWORKS)


def picture(name: str, text: str, record: Any) -> str:
    if drawn(Runs(record["rows"])):
        return f"![{text}](study_{name}.png)\n"
    return "Drawn once there are runs of both networks.\n"


def draw(runs: Runs) -> None:
    """Both pictures."""
    if drawn(runs):
        draw_sweep(runs, PAGE.with_name("study_rate.png"))
        draw_ladder(runs, PAGE.with_name("study_batch.png"))


TABLES = [("protocol", "study.jsonl", rules)] + [
    (
        mark + name,
        "study.jsonl",
        partial(lambda make, some, x: make(Runs(x["rows"]), some), make, part(name)),
    )
    for name in (*NETWORKS, "digits", "cifar10")
    for mark, make in (("", ladder), ("trials ", sweep))
]
TABLES += [
    (name, "study.jsonl", partial(picture, name, text))
    for name, text in (
        ("batch", "Test accuracy over the batch, for every optimizer"),
        ("rate", "Validation accuracy over the learning rate at the large batch"),
    )
]


def panels() -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    return figure, figure.subplots(1, len(NETWORKS), sharey=True)


def draw_sweep(runs: Runs, path: Path) -> None:
    figure, axes = panels()
    for axis, (network, title) in zip(axes, NETWORKS.items(), strict=True):
        for name, method in METHODS.items():
            cell = Cell(DATA, network, TUNED[DATA], name)
            found = runs.tried(cell)
            if found:
                rates = [r["learning_rate"] for r in found]
                scores = [100 * r["accuracy"] for r in found]
                axis.plot(rates, scores, label=method.title, **STYLES[name])
        axis.set(xscale="log", xlabel="learning rate", title=title)
        axis.set_ylim(bottom=FLOOR)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation accuracy, %")
    finish(figure, axes, path)


def draw_ladder(runs: Runs, path: Path) -> None:
    figure, axes = panels()
    methods = [name for name in METHODS if name in {x.method for x in part(DATA)}]
    for axis, (network, title) in zip(axes, NETWORKS.items(), strict=True):
        for i, name in enumerate(methods):
            method = METHODS[name]
            beside = 1.04 ** (i - len(methods) / 2)  # so that none hides another
            points = []
            for cell in cells():
                final = runs.final(cell)
                if (cell.data, cell.network, cell.method) == (DATA, network, name):
                    scores = [100 * r["accuracy"] for r in final]
                    if len(scores) > 1:
                        at = cell.batch * beside
                        points.append((at, mean(scores), stdev(scores)))
            if points:
                x, y, error = zip(*sorted(points), strict=True)
                drawn = [max(FLOOR, value) for value in y]
                below = [min(e, d - FLOOR) for e, d in zip(error, drawn, strict=True)]
                above = [e * (d > FLOOR) for e, d in zip(error, drawn, strict=True)]
                style = STYLES[name] | {"capsize": 3, "clip_on": False}
                axis.errorbar(x, drawn, [below, above], label=method.title, **style)
                for at, value in zip(x, y, strict=True):
                    if value < FLOOR:
                        axis.annotate(
                            f"{value:.0f} %",
                            (at, FLOOR),
                            **{"xytext": (-8, 4), "textcoords": "offset points"},
                            **{"ha": "right", "color": STYLES[name]["color"]},
                        )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set(xlabel="batch, its rows side by side", title=title)
        axis.set_ylim(bottom=FLOOR)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    finish(figure, axes, path)


def finish(figure: Figure, axes: Any, path: Path) -> None:
    found: dict[str, Any] = {}
    for axis in axes:
        found |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if found:
        lines, titles = list(found.values()), list(found)
        figure.legend(
            lines, titles, loc="outside lower center", ncols=3, fontsize="small"
        )
    figure.savefig(path, dpi=120, metadata={"Software": None})
