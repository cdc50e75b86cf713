"""Measures the gradient noise scale along the training of the study's baseline.

    python -m benchmarks.study.noise_scale [--fashion-mnist DIR]

The baseline is SGD with a batch size of 128 and the study's learning rate. It trains on
Fashion-MNIST for 30 epochs, from seed 1. Each batch is processed as two slots of 64
images, and the noise scale compares their gradients with their mean. BatchNorm takes
the moments of a slot. The command writes the mean noise and signal of each epoch to
benchmarks/results/noise_scale.json. docs/study_noise_scale.png shows their ratio beside
the batch sizes at which each optimizer begins to lose accuracy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import tyro
from matplotlib.ticker import StrMethodFormatter

from benchmarks.results import STUDY, Record, Table, markdown, read, save
from benchmarks.study import page
from benchmarks.study.protocol import DATA, NETWORKS, RUN, SMALL, Cell
from benchmarks.study.runs import STUDY_FILE, Runs
from benchmarks.study.train import OUT, Place, dataset
from examples.imagenet.log import LOG, read_log
from examples.imagenet.report.figures import line_style
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit
from examples.imagenet.step.devices import start_devices

FILE, SLOTS, SEED = "noise_scale.json", 2, 1
POINTS = 0.3  # of accuracy: an optimizer that is this far below has begun to lose
# The last rows of LARS are at more batch sizes, and their trials have full length.
LADDER = page.LADDER | {
    "LARS of weights": (*page.LADDER["LARS of weights"], "lars-around")
}
SHOWN = (1, 10, 20)  # the epochs in the table


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


def begins_to_lose(scores: Mapping[int, float], target: float) -> tuple[int, float]:
    """Returns the two batch sizes between which the accuracy falls below `target`.

    `scores` has the accuracy at each batch size. The two are neighbours in it. The
    first is 0 if the accuracy is below the target at the smallest size. The second is
    infinite if it is below the target at no size.
    """
    sizes = sorted(scores)
    pairs = [(0, sizes[0]), *pairwise(sizes)]
    found = (pair for pair in pairs if scores[pair[1]] < target)
    return next(found, (sizes[-1], math.inf))


def where_accuracy_falls(runs: Runs, network: str) -> dict[str, tuple[int, float]]:
    """Returns, for each method, two batch sizes between which it loses `POINTS`."""
    target = mean(r["accuracy"] for r in runs.final(baseline(network))) - POINTS / 100
    return {
        title: begins_to_lose(page.means(runs, network, methods), target)
        for title, methods in LADDER.items()
    }


def scales(record: Record, network: str) -> dict[int, float]:
    """Returns the noise scale of each epoch whose estimate of the signal is above 0."""
    found = record["epochs"][network]
    return {r["epoch"]: r["noise"] / r["signal"] for r in found if r["signal"] > 0}


def table(record: Record) -> str:
    """Returns a Markdown table of noise scales, and of where accuracy is lost."""
    runs, lines = Runs(read(STUDY_FILE)), []
    for network, title in NETWORKS.items():
        found = scales(record, network)
        # In an epoch whose estimate of the signal is not above 0 there is no scale.
        shown = {k: f"{found[k]:,.0f}" if k in found else "–" for k in SHOWN}
        line = {"": title} | {f"epoch {k}": text for k, text in shown.items()}
        for name, (low, high) in where_accuracy_falls(runs, network).items():
            between = f"{low:,} to {high:,}" if high < math.inf else f"above {low:,}"
            line[f"{name} loses"] = between if low else f"at or below {high:,}"
        lines.append(line)
    return markdown(lines)


TABLES = (Table(STUDY, "noise scale", FILE, table),)


def draw(record: Record, folder: Path) -> None:
    """Draws the noise scale over epochs, and where each optimizer begins to lose."""
    panel = partial(draw_scales, record, Runs(read(STUDY_FILE)))
    page.draw_panels(folder / "study_noise_scale.png", "epoch", "images", panel, 2)


def draw_scales(record: Record, runs: Runs, axis: Any, network: str) -> None:
    found, last = scales(record, network), len(record["epochs"][network])
    line = {"color": "black", "label": "noise scale of the baseline"}
    axis.plot(list(found), list(found.values()), **line)
    axis.axvline(last + 1, color="0.6", linewidth=0.8)
    for i, (name, (low, high)) in enumerate(
        where_accuracy_falls(runs, network).items()
    ):
        style = {k: line_style(i)[k] for k in ("color", "marker")}
        label = f"{name}: between these batch sizes it loses {POINTS} points"
        ends = [low or high, low if math.isinf(high) else high]
        axis.plot([last + 3 * (i + 1)] * 2, ends, label=label, **style)
    axis.set(yscale="log", xticks=range(0, last + 1, 10))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


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
