"""Chooses the default of `fallback_ratio` by a rule.

When the rule was written down these results existed: those of 1, 0.02 and 0.001 on
MNIST's digits, and of the final the runs of seed 0 with 0.02 and with all leaves. All
other runs came after it.

Candidates are 1, 0.1, 0.02, 0.005 and 0.001. LARS of all leaves and `optax.lars` with
its own defaults stand beside them and are not candidates.

Screening, on four networks of scikit-learn's and MNIST's digits at the learning rates
10, 20, 40 and 80: the two networks of `benchmarks.study.ablations`, three seeds each,
and the two dense networks of `benchmarks.study.dense`, without and with LayerNorm,
eight seeds each. A setting is one network at one learning rate. The shortfall of a
candidate in a setting is the best candidate's mean accuracy on held-out images minus
its own. A candidate is judged by its largest shortfall over all settings. The best two
other than 0.02 go on with 0.02.

Final: Fashion-MNIST at batch 8,192, networks without and with BatchNorm, learning rates
20 and 40, 30 epochs, seeds 0 and 1, accuracy on the study's validation images. The
candidate with the smallest largest shortfall becomes the default. If that of 0.02 is at
most one standard error greater, 0.02 becomes the default instead. The standard error is
that of a difference of two means of n seeds: √(2/n) times the standard deviation
between seeds, pooled over all settings and candidates of the final.

    python -m benchmarks.study.ablations --only excluded  the screening of two networks
    python -m benchmarks.study.dense                      the screening of two others
    python -m benchmarks.study.default_ratio [--hours 2]  the final, then both tables
"""

import argparse
import math
import time
from collections.abc import Iterable
from statistics import mean, variance

from benchmarks.study import __main__ as study
from benchmarks.study import ablations, dense
from benchmarks.study import runs as study_runs
from benchmarks.study.page import DATA, NETWORKS, percent
from benchmarks.study.protocol import TUNED, Cell, Stage
from benchmarks.study.runs import Job, Record, Runs
from examples.imagenet.provenance import provenance
from examples.imagenet.report.page import markdown_table

RATIOS = ("1", "0.1", "0.02", "0.005", "0.001")
BESIDE = ("all leaves", "optax.lars")  # no candidates
FINAL = Stage(30, (0, 1), "validation")
FINAL_RATES = (20.0, 40.0)
METHOD_OF = {name: f"lars-{name}" for name in RATIOS}
METHOD_OF |= {"1": "lars-mlperf", "0.02": "lars", "all leaves": "lars-all"}
# Of each setting, a network at a learning rate: an optimizer's accuracies by seed.
Scores = dict[str, dict[str, list[float]]]


def collect(rows: Iterable[tuple[str, float, str, float]]) -> Scores:
    """Scores from rows of network, learning rate, optimizer and accuracy."""
    scores: Scores = {}
    for network, rate, optimizer, accuracy in rows:
        setting = scores.setdefault(f"{network}, γ = {rate:g}", {})
        setting.setdefault(optimizer, []).append(accuracy)
    return scores


def screening(digits: list[Record], small: list[Record]) -> Scores:
    """Of the records of `benchmarks.study.ablations` and `benchmarks.study.dense`."""
    found = []
    for variant in ablations.ABLATIONS["excluded"]:
        for network, title in NETWORKS.items():
            wanted = ablations.name("excluded", variant) | {"network": network}
            optimizer = variant.title.removeprefix("weights, others at ")
            found += [
                (f"digits, {title}", r["learning_rate"], optimizer, r["accuracy"])
                for r in digits
                if wanted.items() <= r.items()
            ]
    for r in small:
        title = dense.NETWORKS[r["network"]]
        found.append((title, r["learning_rate"], r["optimizer"], r["accuracy"]))
    return collect(row for row in found if row[1] in dense.RATES)


def shortfalls(scores: Scores, candidates: Iterable[str] = RATIOS) -> dict[str, float]:
    """The largest distance of each candidate's mean below the best candidate's."""
    worst = dict.fromkeys(candidates, 0.0)
    for found in scores.values():
        means = {name: mean(found[name]) for name in worst}
        for name in worst:
            worst[name] = max(worst[name], max(means.values()) - means[name])
    return worst


def finalists(scores: Scores) -> tuple[str, ...]:
    """0.02 and the best two others, in the order of RATIOS."""
    worst = shortfalls(scores)
    others = sorted((name for name in RATIOS if name != "0.02"), key=worst.__getitem__)
    return tuple(name for name in RATIOS if name in ("0.02", *others[:2]))


def standard_error(scores: Scores, candidates: Iterable[str]) -> float:
    """Of a difference of two means, the seeds' variance pooled over all of them."""
    groups = [found[name] for found in scores.values() for name in candidates]
    return math.sqrt(2 * mean(map(variance, groups)) / len(groups[0]))


def choose(scores: Scores, candidates: tuple[str, ...]) -> str:
    """The default that follows by the rule."""
    worst = shortfalls(scores, candidates)
    best = min(worst, key=worst.__getitem__)
    within = worst["0.02"] - worst[best] <= standard_error(scores, candidates)
    return "0.02" if within else best


def jobs(optimizers: Iterable[str]) -> list[Job]:
    """The runs of the final, those of the first seed first."""
    return [
        Job(Cell(DATA, network, TUNED[DATA], METHOD_OF[name]), rate, FINAL, seed)
        for seed in FINAL.seeds
        for network in NETWORKS
        for rate in FINAL_RATES
        for name in optimizers
    ]


def final(runs: Runs, optimizers: Iterable[str]) -> Scores:
    """Of the runs of the final that are there."""
    found = []
    for name in optimizers:
        for job in jobs([name]):
            title = NETWORKS[job.cell.network]
            score = [r["accuracy"] for r in runs.of(job)]
            found += [(f"Fashion-MNIST, {title}", job.rate, name, x) for x in score[:1]]
    return collect(found)


def table(scores: Scores, candidates: Iterable[str], beside: Iterable[str]) -> str:
    """Accuracies in each setting, then each candidate's largest shortfall."""
    candidates = tuple(candidates)
    columns = [*candidates, *beside]
    lines = [
        [setting, *(percent(found[name]) if name in found else "" for name in columns)]
        for setting, found in scores.items()
    ]
    if all(name in found for found in scores.values() for name in candidates):
        worst = shortfalls(scores, candidates)
        points = [f"{100 * worst[name]:.2f}" for name in candidates]
        blank = [""] * (len(columns) - len(candidates))
        lines.append(["largest shortfall, points", *points, *blank])
    return markdown_table([["setting", *columns], *lines])


def kept_screening() -> Scores:
    """Of the results that are kept."""
    return screening(
        study_runs.read(ablations.RESULTS).records,
        study_runs.read(dense.RESULTS).records,
    )


def screening_table() -> str:
    """Of the results that are kept."""
    return table(kept_screening(), RATIOS, BESIDE)


def final_table(runs: Runs) -> str:
    """The final's accuracies and what follows from them."""
    candidates, beside = finalists(kept_screening()), BESIDE[:1]
    scores = final(runs, [*candidates, *beside])
    if not all(map(runs.of, jobs(candidates))):
        return table(scores, candidates, beside) + "\nNot all of it has been run.\n"
    error = 100 * standard_error(scores, candidates)
    follows = f"The default is {choose(scores, candidates)}."
    text = f"\nThe standard error is {error:.2f} points. {follows}\n"
    return table(scores, candidates, beside) + text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--hours", type=float, default=2.0, help="begin no run that would end later"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NETWORKS,
        default=[*NETWORKS],
        help="train these networks alone",
    )
    parser.add_argument("--fashion-mnist", metavar="DIR", default=study.FASHION)
    parser.add_argument("--devices", type=int, help="devices to split a CPU into")
    given = parser.parse_args()
    place = study.Place(given.fashion_mnist, devices=given.devices)
    end, about = time.monotonic() + 3600 * given.hours, provenance()
    print(screening_table(), flush=True)
    for job in jobs([*finalists(kept_screening()), *BESIDE[:1]]):
        runs = study_runs.read()  # another process may have added some
        if runs.of(job) or job.cell.network not in given.only:
            continue
        if time.monotonic() + runs.seconds(job) > end:
            print(f"{given.hours:g} h are over; run the same command again to continue")
            break
        score = study.run(job, place, about)["accuracy"]
        name = f"{job.cell.name}, rate {job.rate:g}, seed {job.seed}"
        print(f"{name}: {score:.2%}", flush=True)
    print(final_table(study_runs.read()))


if __name__ == "__main__":
    main()
