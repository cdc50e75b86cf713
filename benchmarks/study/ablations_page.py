"""The tables and pictures of the ablations in docs/study.md."""

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.study.ablations import ABLATIONS, RATES, Variant, name
from benchmarks.study.page import NETWORKS, finish, panels, percent
from examples.imagenet.report.figures import line_style, spread_accuracies
from examples.imagenet.report.page import markdown_table

Record = dict[str, Any]
CLOSE = 0.01  # below the best


def scores(
    rows: list[Record], ablation: str, variant: Variant, network: str
) -> dict[float, list[float]]:
    """Accuracies of all seeds by rate."""
    wanted = (name(ablation, variant) | {"network": network}).items()
    found: dict[float, list[float]] = {}
    for row in rows:
        if wanted <= row.items():
            found.setdefault(row["learning_rate"], []).append(row["accuracy"])
    return dict(sorted(found.items()))


def part(ablation: str, record: Record) -> str:
    """The best rate's score, which rates come near, of each variant; the picture."""
    head = [ablation]
    for network in NETWORKS:
        head += [f"{NETWORKS[network]}: best", "at γ", "within 1 point"]
    lines = []
    for variant in ABLATIONS[ablation]:
        line = [variant.title]
        for network in NETWORKS:
            found = scores(record["rows"], ablation, variant, network)
            if not found:
                line += ["not run", "", ""]
                continue
            means = {rate: mean(each) for rate, each in found.items()}
            best = max(means, key=means.__getitem__)
            near = [rate for rate in means if means[rate] >= means[best] - CLOSE]
            whole = len(found) == len(RATES)
            line += [
                percent(found[best]),
                f"{best:g}" if whole else f"{best:g}, so far",
            ]
            line += [", ".join(f"{rate:g}" for rate in near)]
        lines.append(line)
    picture = f"\n![Accuracy over the rate](ablation-{ablation}.png)\n"
    return markdown_table([head, *lines]) + picture


def every(record: Record) -> str:
    """All means."""
    lines = []
    for ablation, variants in ABLATIONS.items():
        for variant in variants:
            for network in NETWORKS:
                found = scores(record["rows"], ablation, variant, network)
                each = (f"{rate:g}: {percent(x)}" for rate, x in found.items())
                title = f"{ablation}: {variant.title}"
                lines.append([title, NETWORKS[network], ", ".join(each) or "not run"])
    return markdown_table([["variant", "network", "γ: validation accuracy"], *lines])


def draw(rows: list[Record], folder: Path) -> None:
    """A picture for each choice: accuracy over the rate, of both networks."""
    for ablation, variants in ABLATIONS.items() if rows else ():
        figure, axes = panels()
        for axis, network in zip(axes, NETWORKS, strict=True):
            for i, variant in enumerate(variants):
                found = scores(rows, ablation, variant, network)
                if not found:
                    continue
                each = np.array(list(found.values()))
                y = each.mean(1)
                # Of equal scores the mean can be off by a rounding.
                error = np.maximum([y - each.min(1), each.max(1) - y], 0)
                style = line_style(i) | {"capsize": 3}
                axis.errorbar(list(found), y, error, label=variant.title, **style)
            axis.set_xscale("log", base=2)
            axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
            axis.set(xlabel="learning rate γ", title=NETWORKS[network])
            axis.grid(alpha=0.3)
            spread_accuracies(axis)
        axes[0].set_ylabel("validation accuracy: mean and range")
        finish(figure, axes, folder / f"ablation-{ablation}.png")
