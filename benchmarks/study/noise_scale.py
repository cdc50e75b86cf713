"""Measures the gradient noise scale along the training of the study's baseline.

    python -m benchmarks.study.noise_scale [--fashion-mnist DIR]

The baseline is SGD with a batch size of 128 at the study's learning rate, seed 1, 30
epochs, on Fashion-MNIST. Each batch is processed as two slots of 64 images, and the
noise scale compares their gradients with their mean. BatchNorm takes the moments of a
slot. Writes benchmarks/results/noise_scale.json, with the mean noise and signal of each
epoch. docs/study_noise_scale.png shows their ratio beside the batch sizes at which each
optimizer begins to lose accuracy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from benchmarks.results import STUDY, Record, Table, markdown, read, save
from benchmarks.study.page import STYLES, rows
from benchmarks.study.protocol import DATA, METHODS, NETWORKS, RUN, SMALL, Cell
from benchmarks.study.runs import STUDY_FILE, Runs
from benchmarks.study.train import OUT, Place, dataset
from examples.imagenet.log import LOG, read_log
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit
from examples.imagenet.step.devices import start_devices

FILE, SLOTS, SEED = "noise_scale.json", 2, 1
POINTS = 0.3  # of accuracy: an optimizer that is this far below has begun to lose
# The optimizers that the study trains at more than one batch size.
LADDER = ("sgd", "nesterov", "lars", "lars-sqrt")


def baseline(network: str) -> Cell:
    return Cell(DATA, network, SMALL[DATA], "sgd")


def measure(network: str, runs: Runs, place: Place) -> list[Record]:
    """Trains the baseline of a network, and returns the estimates of each epoch."""
    cell = baseline(network)
    rate = runs.best(cell)
    assert rate is not None, "the study has the baseline's learning rate"
    source, data = dataset(DATA, place)
    settings = cell.config(source, rate, cell.final, devices=1)
    batching = replace(settings.batching, accumulate=SLOTS, noise_scale=True)
    settings = replace(settings, batching=batching)
    experiment = Experiment(settings, data, start_devices(1))
    out = OUT / f"noise_scale/{network}"
    fit(experiment, replace(RUN, seed=SEED, out=str(out), log_every=100))
    return by_epoch(read_log(out / LOG))


def by_epoch(log: Sequence[Record]) -> list[Record]:
    """Returns the number of each epoch, and the means of noise and signal in it."""
    updates = [record for record in log if record["kind"] == "step"]
    return [
        {"epoch": epoch + 1}
        | {name: mean(r[name] for r in found) for name in ("noise", "signal")}
        for epoch, group in groupby(updates, lambda record: int(record["epoch"]))
        for found in [list(group)]
    ]


def scale(epoch: Record) -> float:
    """Returns the noise scale of an epoch, which is infinite if the signal is ≤ 0.

    The estimate of a signal that is much smaller than the noise may be negative.
    """
    signal: float = epoch["signal"]
    return epoch["noise"] / signal if signal > 0 else math.inf


def accuracies(runs: Runs, network: str, method: str) -> dict[int, float]:
    """Returns the mean test accuracy of a method at each batch size of the study.

    Where its learning rate was also tuned at full length, that row counts.
    """
    found = {}
    for name in (method, f"{method}-long"):
        for cell in rows(network):
            if cell.method == name and (final := runs.final(cell)):
                found[cell.batch] = mean(r["accuracy"] for r in final)
    return found


def begins_to_lose(scores: Mapping[int, float], target: float) -> tuple[int, float]:
    """Returns two neighbouring batch sizes; the accuracy falls below `target` between.

    `scores` has the accuracy at each batch size. The first size is 0 if the accuracy is
    below the target at the smallest size. The second is infinite if it is below the
    target at no size.
    """
    sizes = sorted(scores)
    pairs = [(0, sizes[0]), *pairwise(sizes)]
    found = (pair for pair in pairs if scores[pair[1]] < target)
    return next(found, (sizes[-1], math.inf))


def losses(runs: Runs, network: str) -> dict[str, tuple[int, float]]:
    """Returns, for each method, between which batch sizes it loses `POINTS` points."""
    target = mean(r["accuracy"] for r in runs.final(baseline(network))) - POINTS / 100
    return {
        name: begins_to_lose(accuracies(runs, network, name), target) for name in LADDER
    }


def table(record: Record) -> str:
    """Returns a Markdown table of noise scales, and of where accuracy is lost."""
    runs, lines = Runs(read(STUDY_FILE)), []
    for network, title in NETWORKS.items():
        scales = list(map(scale, record["epochs"][network]))
        some = {"first epoch": scales[0], "median": median(scales)}
        some |= {"last epoch": scales[-1]}
        line = {"": title} | {
            name: f"{x:,.0f}" if x < math.inf else "signal ≤ 0"
            for name, x in some.items()
        }
        for name, (low, high) in losses(runs, network).items():
            between = f"{low:,} to {high:,}" if high < math.inf else f"above {low:,}"
            line[METHODS[name].title] = between if low else f"at {high:,} already"
        lines.append(line)
    return markdown(lines)


TABLES = (Table(STUDY, "noise scale", FILE, table),)


def draw(record: Record, folder: Path) -> None:
    """Draws the noise scale over epochs, and where each optimizer begins to lose."""
    runs = Runs(read(STUDY_FILE))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, len(NETWORKS), sharey=True)
    for axis, (network, title) in zip(axes, NETWORKS.items(), strict=True):
        epochs = [r["epoch"] for r in record["epochs"][network]]
        scales = np.array([scale(r) for r in record["epochs"][network]])
        scales[np.isinf(scales)] = np.nan  # not drawn
        axis.plot(epochs, scales, color="black", label="noise scale of the baseline")
        for i, (name, (low, high)) in enumerate(losses(runs, network).items()):
            style = {k: STYLES[name][k] for k in ("color", "marker")}
            where = [epochs[-1] + 2 * (i + 1)] * 2
            label = f"{METHODS[name].title}, loses {POINTS} points between"
            ends = [low or high, low if math.isinf(high) else high]
            axis.plot(where, ends, label=label, **style)
        axis.set(xlabel="epoch", title=title, yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("images")
    axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    handles, labels = axes[0].get_legend_handles_labels()
    where_below: Any = {"loc": "outside lower center", "ncols": 2, "fontsize": "small"}
    figure.legend(handles, labels, **where_below)
    path = folder / "study_noise_scale.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main(fashion_mnist: str = Place().fashion_mnist) -> None:
    """Trains both baselines and writes the estimates.

    Args:
      fashion_mnist: folder of Fashion-MNIST's IDX files.
    """
    runs, place = Runs(read(STUDY_FILE)), Place(fashion_mnist)
    epochs = {network: measure(network, runs, place) for network in NETWORKS}
    save(FILE, {"slots": SLOTS, "seed": SEED, "epochs": epochs}, indent=None)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
