"""The tables and pictures of the ablations in docs/study.md."""

from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.results import STUDY, Record, Table, markdown
from benchmarks.study.ablations import ABLATIONS, RATES, select
from benchmarks.study.page import draw_panels, percent
from benchmarks.study.protocol import NETWORKS
from benchmarks.study.runs import ABLATIONS_FILE, Variant
from examples.imagenet.report.figures import line_style, spread_accuracies
from examples.imagenet.report.page import markdown_table

CLOSE = 0.01  # a score this far below the best one is near it


def scores(
    records: list[Record], variant: Variant, network: str
) -> dict[float, list[float]]:
    """Returns the accuracies of all seeds by learning rate."""
    found: dict[float, list[float]] = {}
    for record in select(records, variant, network):
        found.setdefault(record["learning_rate"], []).append(record["accuracy"])
    return dict(sorted(found.items()))


def best_rates(ablation: str, records: list[Record]) -> str:
    """Returns each variant's best score, and the rates that come near it."""
    head = [ablation]
    for title in NETWORKS.values():
        head += [f"{title}: best", "at γ", "within 1 point"]
    lines = []
    for variant in ABLATIONS[ablation]:
        line = [variant.title]
        for network in NETWORKS:
            found = scores(records, variant, network)
            if not found:
                line += ["not run", "", ""]
                continue
            means = {rate: mean(each) for rate, each in found.items()}
            best = max(means, key=means.__getitem__)
            near = [rate for rate in means if means[rate] >= means[best] - CLOSE]
            so_far = "" if len(found) == len(RATES) else ", so far"
            line += [percent(found[best]), f"{best:g}{so_far}"]
            line += [", ".join(f"{rate:g}" for rate in near)]
        lines.append(line)
    return markdown_table([head, *lines])


def all_runs(records: list[Record]) -> str:
    """Returns the score of every variant at every learning rate."""
    rows = []
    for variant, network in product(chain(*ABLATIONS.values()), NETWORKS):
        found = scores(records, variant, network)
        each = [f"{rate:g}: {percent(x)}" for rate, x in found.items()]
        row = {"variant": f"{variant.ablation}: {variant.title}"}
        row["network"] = NETWORKS[network]
        rows.append(row | {"γ: validation accuracy": ", ".join(each) or "not run"})
    return markdown(rows)


TABLES = (
    *(
        Table(STUDY, f"ablation {name}", ABLATIONS_FILE, partial(best_rates, name))
        for name in ABLATIONS
    ),
    Table(STUDY, "ablation runs", ABLATIONS_FILE, all_runs),
)


def draw(records: list[Record], folder: Path) -> None:
    """Draws a picture for each ablation: the accuracy over the learning rate."""
    labels = ("learning rate γ", "validation accuracy: mean and range")
    for ablation, variants in ABLATIONS.items():
        draw_variants = partial(draw_rates, records, variants)
        draw_panels(folder / f"ablation-{ablation}.png", *labels, draw_variants)


def draw_rates(
    records: list[Record], variants: list[Variant], axis: Any, network: str
) -> None:
    for i, variant in enumerate(variants):
        if found := scores(records, variant, network):
            each = np.array(list(found.values()))
            y = each.mean(1)
            # The mean of equal scores can be off by a rounding.
            error = np.maximum([y - each.min(1), each.max(1) - y], 0)
            style = line_style(i) | {"capsize": 3}
            axis.errorbar(list(found), y, error, label=variant.title, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    spread_accuracies(axis)
