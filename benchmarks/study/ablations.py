"""Compares choices that the LARS paper leaves open, one by one, on MNIST's digits.

    python -m benchmarks.study.ablations [--only NAME …] [--devices N]

LARS trains on the digits of `make train` at a batch size of 1,600. Everything but the
choice is as in the study of large batches, see benchmarks/study/protocol.py. Every
variant is trained for 30 epochs with the same seeds at the same six learning rates. All
scores are published. They are those of the validation images, because nothing is chosen
by them. The digits are few and easy. A difference shows that a choice can matter, but
equality does not show that it never does. Each run adds a line to
benchmarks/results/ablations.jsonl. A run that has a line there is not repeated.
"""

from dataclasses import replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import mean
from typing import Any, Literal, get_args

import numpy as np
import tyro

from benchmarks.results import STUDY, STUDY_ROWS, Record, Table, markdown
from benchmarks.study.page import draw_panels, percent
from benchmarks.study.protocol import ABLATION, NETWORKS, STUDIED, TUNED, Cell
from benchmarks.study.runs import ABLATIONS_FILE, Job, Variant
from benchmarks.study.train import Place, run_missing
from examples.imagenet.report.figures import line_style, spread_accuracies
from examples.imagenet.report.page import markdown_table

Ablation = Literal[
    "denominator", "momentum", "coefficient", "excluded", "decay", "warm-up"
]
RATES = tuple(5.0 * 2**k for k in range(6))
RATIO_TITLE = "fallback ratio "
CHOICES: dict[str, str] = {
    "denominator": "denominator of the trust ratio",
    "momentum": "order of momentum and learning rate",
    "coefficient": "coefficient μ of the momentum",
    "excluded": "fallback ratio, or all leaves",
    "decay": "start of the decay",
    "warm-up": "length of the warm-up",
}
CLOSE = 0.01  # a score this far below the best one is near it


def _variant(ablation: Ablation, title: str, **changes: Any) -> Variant:
    return Variant(ablation, title, replace(STUDIED, **changes))


def _ratio(ratio: float) -> Variant:
    return _variant("excluded", f"{RATIO_TITLE}{ratio:g}", fallback_ratio=ratio)


def _warm_up(share: float, title: str) -> Variant:
    epochs = share * ABLATION.epochs
    return _variant("warm-up", title, warmup_epochs=epochs)


_VARIANTS = (
    _variant("denominator", "‖g‖ + β‖w‖"),
    _variant("denominator", "‖g + βw‖", denominator="joint"),
    _variant("momentum", "after the learning rate (scaled)"),
    _variant(
        "momentum", "before the learning rate (unscaled)", momentum_order="unscaled"
    ),
    # Here the momentum does not lengthen the steps of a layer with a trust ratio.
    _variant(
        "momentum",
        "before the trust ratio and the learning rate (post)",
        momentum_order="post",
    ),
    # If γη/(1 − μ) is what counts, the best γ is 80 at μ = 0.8 and 20 at μ = 0.95.
    *(
        _variant("coefficient", f"μ = {momentum:g}", momentum=momentum)
        for momentum in (0.9, 0.8, 0.95)
    ),
    *map(_ratio, (0.02, 1, 0.1, 0.005, 0.001)),
    _variant("excluded", "all leaves", layers="all"),
    _variant("decay", "from the end of the warm-up"),
    _variant("decay", "from step 0", decay_from_start=True),
    _warm_up(1 / 6, "a sixth of the epochs"),
    _warm_up(0, "no warm-up"),
    _warm_up(1 / 3, "a third of the epochs"),
    _warm_up(1 / 2, "half of the epochs"),
)
# The first of each is the study's own choice.
ABLATIONS = {
    name: [x for x in _VARIANTS if x.ablation == name] for name in get_args(Ablation)
}


def job(variant: Variant, network: str, rate: float, seed: int) -> Job:
    cell = Cell("digits", network, TUNED["digits"], "lars")
    return Job(cell, rate, ABLATION, seed, variant)


def select(records: list[Record], variant: Variant, network: str) -> list[Record]:
    """Returns the records of the runs of one variant of LARS on one network."""
    wanted = (variant.key | {"network": network}).items()
    return [record for record in records if wanted <= record.items()]


def scores(
    records: list[Record], variant: Variant, network: str
) -> dict[float, list[float]]:
    """Returns the accuracies of one variant of LARS on one network.

    They are lists with one accuracy for each seed, by learning rate.
    """
    found: dict[float, list[float]] = {}
    for record in select(records, variant, network):
        found.setdefault(record["learning_rate"], []).append(record["accuracy"])
    return dict(sorted(found.items()))


def complete(found: dict[float, list[float]]) -> bool:
    """Returns whether a variant has run at every learning rate with every seed."""
    seeds = len(ABLATION.seeds)
    return len(found) == len(RATES) and all(len(x) >= seeds for x in found.values())


def best_rates(ablation: str, records: list[Record]) -> str:
    """Returns a Markdown table of one ablation, with a row for each variant.

    It has the variant's best validation accuracy, averaged over seeds, and the learning
    rates whose accuracy is at most one point lower.
    """
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
            so_far = "" if complete(found) else ", so far"
            line += [percent(found[best]), f"{best:g}{so_far}"]
            line += [", ".join(f"{rate:g}" for rate in near)]
        lines.append(line)
    return markdown_table([head, *lines])


def all_runs(records: list[Record]) -> str:
    """Returns a Markdown table of each variant's accuracy at each learning rate."""
    rows = []
    for variant, network in product(chain(*ABLATIONS.values()), NETWORKS):
        found = scores(records, variant, network)
        each = [f"{rate:g}: {percent(x)}" for rate, x in found.items()]
        row = {"variant": f"{variant.ablation}: {variant.title}"}
        row["network"] = NETWORKS[network]
        rows.append(row | {"γ: validation accuracy": ", ".join(each) or "not run"})
    return markdown(rows)


def summary(records: list[Record]) -> str:
    """Returns a Markdown table of the best accuracies among each ablation's variants.

    A variant counts with its best learning rate, once all its runs have results. A cell
    has the accuracy of the worst and of the best variant, and how many are missing.
    """
    lines = []
    for name, variants in ABLATIONS.items():
        line = {"choice": CHOICES[name], "variants": f"{len(variants)}"}
        for network, title in NETWORKS.items():
            found = [scores(records, variant, network) for variant in variants]
            best = [100 * max(map(mean, x.values())) for x in found if complete(x)]
            n = len(variants) - len(best)
            missing = f", {n} not run" if n else ""
            text = f"{min(best):.1f} to {max(best):.1f} %{missing}" if best else ""
            line[title] = text or "not run"
        lines.append(line)
    return markdown(lines)


TABLES = [
    Table(STUDY_ROWS, f"ablation {name}", ABLATIONS_FILE, partial(best_rates, name))
    for name in ABLATIONS
]
TABLES.append(Table(STUDY_ROWS, "ablation runs", ABLATIONS_FILE, all_runs))
TABLES.append(Table(STUDY, "ablations", ABLATIONS_FILE, summary))


def draw(records: list[Record], folder: Path) -> None:
    """Draws a picture of each ablation into `folder`: accuracy over learning rate."""
    labels = ("learning rate γ", "validation accuracy: mean and range")
    for ablation, variants in ABLATIONS.items():
        draw_variants = partial(draw_rates, records, variants)
        draw_panels(folder / f"ablation-{ablation}.png", *labels, draw_variants)


def draw_rates(
    records: list[Record], variants: list[Variant], axis: Any, network: str
) -> None:
    for i, variant in enumerate(variants):
        if found := scores(records, variant, network):
            each = found.values()  # with fewer seeds where runs are missing
            low, y, high = (np.array([*map(f, each)]) for f in (min, mean, max))
            style = line_style(i) | {"capsize": 3, "label": variant.title}
            axis.errorbar(list(found), y, [y - low, high - y], **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    spread_accuracies(axis)


def main(
    only: tuple[Ablation, ...] = get_args(Ablation), devices: int | None = None
) -> None:
    """Trains the runs of the ablations that have no results yet.

    Args:
      only: the ablations whose runs are trained.
      devices: how many devices to split a CPU into.
    """
    variants = chain(*(ABLATIONS[name] for name in only))
    jobs = [job(*each) for each in product(variants, NETWORKS, RATES, ABLATION.seeds)]
    run_missing(
        lambda runs: [each for each in jobs if not runs.of(each)],
        Place(devices=devices),
        file=ABLATIONS_FILE,
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
