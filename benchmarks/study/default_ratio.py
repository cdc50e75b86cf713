"""Chooses the default of `fallback_ratio`, an argument of `lars_optax.lars`, by a rule.

It is the trust ratio of parameters that are not adapted and of layers whose norm is 0.
Some results existed when the rule was written down. They were those of 1, 0.02 and
0.001 on MNIST's digits, and in the final, which is described below, the runs of seed 0
with 0.02 and with LARS of all leaves. All other runs were made after it.

The candidates are 1, 0.1, 0.02, 0.005 and 0.001. LARS of all leaves and `optax.lars`
with its own defaults are trained for comparison and are not candidates.

The screening trains four networks at the learning rates 10, 20, 40 and 80. Two are
those of `benchmarks.study.ablations`, on MNIST's digits with three seeds. The others
are the dense networks of `benchmarks.study.dense`, without and with LayerNorm, on
scikit-learn's digits with eight seeds. A setting is one network at one learning rate.
The shortfall of a candidate in a setting is the best candidate's mean accuracy on
held-out images minus its own. A candidate is judged by its largest shortfall over all
settings. 0.02 and the best two other candidates go on to the final.

The final trains on Fashion-MNIST at batch size 8,192, for 30 epochs with seeds 0 and 1.
Its networks are without and with BatchNorm, and its learning rates are 20 and 40. The
accuracy is that on the study's validation images. The candidate whose largest shortfall
is smallest becomes the default. If that of 0.02 is at most one standard error greater,
0.02 becomes the default instead. The standard error is that of a difference of two
means of n seeds: √(2/n) times the standard deviation between seeds, pooled over all
settings and candidates of the final.

    python -m benchmarks.study.ablations --only excluded  the screening of two networks
    python -m benchmarks.study.dense                      the screening of two others
    python -m benchmarks.study.default_ratio [--hours 2]  the final, then both tables
"""

import math
from collections.abc import Iterable
from itertools import product
from statistics import mean, variance
from typing import Literal, get_args

import tyro

from benchmarks.results import STUDY, STUDY_ROWS, Record, Table, markdown, read
from benchmarks.study import dense
from benchmarks.study.ablations import ABLATIONS, RATIO_TITLE, select
from benchmarks.study.page import percent
from benchmarks.study.protocol import DATA, NETWORKS, TUNED, Cell, Stage
from benchmarks.study.runs import ABLATIONS_FILE, STUDY_FILE, Job, Runs
from benchmarks.study.train import FASHION, Place, run_missing

Network = Literal["alexnet_small", "alexnet_bn_small"]
RATIOS = ("1", "0.1", "0.02", "0.005", "0.001")
COMPARED = ("all leaves", "optax.lars")  # not candidates
_NOT_SCREENED = "The runs of the screening are not complete.\n"
FINAL = Stage(30, (0, 1), "validation")
FINAL_RATES = (20.0, 40.0)
METHOD_OF = {name: f"lars-{name}" for name in RATIOS}
METHOD_OF |= {"1": "lars-mlperf", "0.02": "lars", "all leaves": "lars-all"}
# The accuracies of all seeds, by setting and then by optimizer.
Scores = dict[str, dict[str, list[float]]]


def collect(rows: Iterable[tuple[str, str, Record]]) -> Scores:
    """Returns the accuracies of runs by setting, and then by optimizer.

    Each of `rows` has a network, an optimizer and the record of a run. A setting is a
    network at a learning rate.
    """
    scores: Scores = {}
    for network, optimizer, record in rows:
        rate = record["learning_rate"]
        setting = scores.setdefault(f"{network}, γ = {rate:g}", {})
        setting.setdefault(optimizer, []).append(record["accuracy"])
    return scores


def screening() -> Scores:
    """Returns the accuracies of the first round, the screening, from its results."""
    kept = read(ABLATIONS_FILE)
    digits = [
        (f"digits, {title}", variant.title.removeprefix(RATIO_TITLE), r)
        for variant in ABLATIONS["excluded"]
        for network, title in NETWORKS.items()
        for r in select(kept, variant, network)
    ]
    records = read(dense.FILE)
    small = [(dense.NETWORKS[r["network"]], r["optimizer"], r) for r in records]
    rows = digits + small
    return collect(row for row in rows if row[2]["learning_rate"] in dense.RATES)


def shortfalls(scores: Scores, candidates: Iterable[str] = RATIOS) -> dict[str, float]:
    """Returns each candidate's largest shortfall over all settings.

    A candidate is a value of `fallback_ratio`, and a setting is a network at a learning
    rate. The shortfall is the best candidate's mean accuracy minus the candidate's own.
    """
    worst = dict.fromkeys(candidates, 0.0)
    for found in scores.values():
        means = {name: mean(found[name]) for name in worst}
        for name in worst:
            worst[name] = max(worst[name], max(means.values()) - means[name])
    return worst


def complete(scores: Scores, candidates: Iterable[str]) -> bool:
    """Returns whether there are settings, and every candidate has run in each."""
    wanted = set(candidates)
    return bool(scores) and all(wanted <= found.keys() for found in scores.values())


def points(accuracies: dict[str, float], digits: int) -> dict[str, str]:
    """Returns differences of accuracies as texts, in points."""
    return {name: f"{100 * x:.{digits}f}" for name, x in accuracies.items()}


def finalists(scores: Scores) -> tuple[str, ...]:
    """Returns the values of `fallback_ratio` in the second round, the final.

    They are 0.02 and the two others that are best in the screening.
    """
    worst = shortfalls(scores)
    others = sorted((name for name in RATIOS if name != "0.02"), key=worst.__getitem__)
    return tuple(name for name in RATIOS if name in ("0.02", *others[:2]))


def standard_error(scores: Scores, candidates: Iterable[str]) -> float:
    """Returns the standard error of the difference of two candidates' mean accuracies.

    The variances between seeds are pooled over all settings and candidates.
    """
    groups = [found[name] for found in scores.values() for name in candidates]
    return math.sqrt(2 * mean(map(variance, groups)) / len(groups[0]))


def choose(scores: Scores, candidates: tuple[str, ...]) -> str:
    """Returns the default of `fallback_ratio` that follows from the second round.

    It is the candidate whose largest shortfall is smallest, or 0.02 if that is at most
    one standard error worse.
    """
    worst = shortfalls(scores, candidates)
    best = min(worst, key=worst.__getitem__)
    within = worst["0.02"] - worst[best] <= standard_error(scores, candidates)
    return "0.02" if within else best


def jobs(optimizers: Iterable[str]) -> list[Job]:
    """Returns the training runs of the second round, the final, in order of seed."""
    methods = [METHOD_OF[name] for name in optimizers]
    runs = product(FINAL.seeds, NETWORKS, FINAL_RATES, methods)
    return [
        Job(Cell(DATA, network, TUNED[DATA], method), rate, FINAL, seed)
        for seed, network, rate, method in runs
    ]


def final(runs: Runs, optimizers: Iterable[str]) -> Scores:
    """Returns the accuracies of the second round, the final, so far as it has run."""
    return collect(
        (f"Fashion-MNIST, {NETWORKS[job.cell.network]}", name, record)
        for name in optimizers
        for job in jobs([name])
        for record in runs.of(job)[:1]
    )


def table(scores: Scores, candidates: Iterable[str], compared: Iterable[str]) -> str:
    """Returns a Markdown table of the accuracies of all optimizers in each setting.

    Once all candidates have run in all settings, a last row has their largest
    shortfall from the best candidate.
    """
    columns = [*candidates, *compared]
    cells = {
        setting: {name: percent(x) for name, x in found.items()}
        for setting, found in scores.items()
    }
    if complete(scores, candidates):
        worst = shortfalls(scores, candidates)
        cells["largest shortfall, points"] = points(worst, 2)
    return markdown(
        {"setting": setting} | {name: row.get(name, "") for name in columns}
        for setting, row in cells.items()
    )


def screening_table(_: object = None) -> str:
    return table(screening(), RATIOS, COMPARED)


def finished(runs: Runs, candidates: Iterable[str]) -> bool:
    """Returns whether all runs of the second round, the final, have results."""
    return all(map(runs.of, jobs(candidates)))


def final_table(records: list[Record]) -> str:
    """Returns a Markdown table of the second round, the final, and the default."""
    runs, first = Runs(records), screening()
    if not complete(first, RATIOS):
        return _NOT_SCREENED
    candidates, compared = finalists(first), COMPARED[:1]
    scores = final(runs, [*candidates, *compared])
    text = table(scores, candidates, compared)
    if not finished(runs, candidates):
        return f"{text}\nThe default follows when all runs have results.\n"
    error = 100 * standard_error(scores, candidates)
    follows = f"The default is {choose(scores, candidates)}."
    return f"{text}\nThe standard error is {error:.2f} points. {follows}\n"


def summary(records: list[Record]) -> str:
    """Returns a Markdown table of each candidate's largest shortfall, in points.

    The row of the final has figures once all its runs have results.
    """
    runs, first = Runs(records), screening()
    if not complete(first, RATIOS):
        return _NOT_SCREENED
    candidates = finalists(first)
    last = dict.fromkeys(candidates, "not run")
    if finished(runs, candidates):
        last = points(shortfalls(final(runs, candidates), candidates), 1)
    rounds = {
        "screening, digits": points(shortfalls(first), 1),
        "final, Fashion-MNIST": last,
    }
    return markdown(
        {"fallback ratio": title} | {name: row.get(name, "") for name in RATIOS}
        for title, row in rounds.items()
    )


TABLES = (
    Table(STUDY, "default ratio", STUDY_FILE, summary),
    Table(STUDY_ROWS, "default ratio, screening", dense.FILE, screening_table),
    Table(STUDY_ROWS, "default ratio, final", STUDY_FILE, final_table),
)


def main(
    hours: float = 2.0,
    only: tuple[Network, ...] = get_args(Network),
    fashion_mnist: str = FASHION,
    devices: int | None = None,
) -> None:
    """Trains the missing runs of the second round, the final, and prints both tables.

    Args:
      hours: begin no run that would end later than this many hours from now.
      only: the networks to train.
      fashion_mnist: the folder of Fashion-MNIST's IDX files.
      devices: how many devices to split a CPU into.
    """
    print(screening_table(), flush=True)
    wanted = jobs([*finalists(screening()), *COMPARED[:1]])
    wanted = [job for job in wanted if job.cell.network in only]
    run_missing(
        lambda runs: [job for job in wanted if not runs.of(job)],
        Place(fashion_mnist, devices=devices),
        hours=hours,
    )
    print(final_table(read(STUDY_FILE)))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
