"""`make train`: small-batch SGD, large-batch SGD and large-batch LARS on real digits.

All methods have the same images, network and number of epochs. Each learning rate is
the one that had the best validation accuracy in the sweep under benchmarks/results. The
printed accuracy is on test images, which were not used to choose anything.
"""

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .config import Batching, Config, Data, Model, Optimizer, Run, Split
from .data.sources import load
from .log import LOG
from .provenance import provenance
from .report.figures import plot_runs
from .report.page import Table, markdown_table, show
from .run.experiment import Experiment
from .run.loop import Result, fit
from .run.progress import progress
from .step.devices import start_devices
from .terminal import Terminal, printable

EPOCHS = 40
WIDTH = 0.5
SEEDS = (0, 1, 2)
SWEEP = Path("benchmarks/results/demo_sweep.json")
OUT = Path("runs/demo")
RUN = Run(log_every=100, layers_every=0)

_SGD = Optimizer(algorithm="sgd", warmup_epochs=8, weight_decay=1e-3)
_LARS = replace(_SGD, algorithm="lars", layers="all")
# For each method, the optimizer without its learning rate, and the batch size.
METHODS = {
    "SGD, small batch": (_SGD, 32),
    "SGD, large batch": (_SGD, 1_600),
    "Nesterov SGD, large batch": (replace(_SGD, nesterov=True), 1_600),
    "LARS, large batch": (_LARS, 1_600),
}


def configure(method: str, learning_rate: float, evaluate_on: Split) -> Config:
    """Returns all settings of a run of one of the `METHODS`."""
    optimizer, batch = METHODS[method]
    return Config(
        data=Data(evaluate_on=evaluate_on),
        model=Model(width=WIDTH),
        optimizer=replace(optimizer, learning_rate=learning_rate),
        batching=Batching(batch_size=batch, epochs=EPOCHS),
        run=RUN,
    )


def protocol(method: str) -> dict[str, Any]:
    """Returns the settings that all runs of a method share, as plain JSON data.

    The learning rate and the output folder are left out.
    """
    config = asdict(configure(method, 0.0, "validation"))
    del config["optimizer"]["learning_rate"], config["run"]["out"]
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def read_rates(path: Path) -> dict[str, float]:
    """Reads the best learning rate of each method from the results of a sweep.

    Raises ValueError if the file is missing, or if the sweep trained with other
    settings than the demonstration does.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; run the command in the root of the repository"
        )
    methods = json.loads(path.read_text())["methods"]
    for name in METHODS:
        swept = methods.get(name)
        if not swept or not _agrees(swept["protocol"], protocol(name)):
            raise ValueError(
                f"{path} has no learning rates of {name!r} with its present settings;"
                " run python -m benchmarks.study.demo_sweep"
            )
    return {name: methods[name]["best"] for name in METHODS}


def _agrees(recorded: Any, present: Any) -> bool:
    """Returns True if each recorded setting has the same value in `present`.

    `present` may have further settings.
    """
    if not isinstance(recorded, dict):
        return bool(recorded == present)
    return all(k in present and _agrees(v, present[k]) for k, v in recorded.items())


def row(method: str, rate: float, results: list[Result]) -> dict[str, Any]:
    """Returns the numbers of one method for the table, from its runs with all seeds.

    Accuracies are fractions.
    """
    accuracies = [result.accuracy for result in results]
    p = mean(accuracies)
    return {
        "method": method,
        "batch": METHODS[method][1],
        "updates": results[0].updates,
        "learning_rate": rate,
        "accuracies": accuracies,
        "mean": p,
        "seed_sd": stdev(accuracies),
        "standard_error": math.sqrt(p * (1 - p) / results[0].count),
        "diverged": sum(result.diverged for result in results),
        "seconds": mean(result.seconds for result in results),
    }


_HEAD = ("method", "batch", "updates", "rate", "test acc.", "s.e.", "time")


def cells(r: dict[str, Any]) -> tuple[str, ...]:
    """Formats the numbers that `row` returns as the texts of a table row."""
    return (
        r["method"],
        f"{r['batch']:,}",
        f"{r['updates']:,}",
        f"{r['learning_rate']:g}",
        f"{100 * r['mean']:.1f} ± {100 * r['seed_sd']:.1f} %"
        + (f", {r['diverged']} diverged" if r["diverged"] else ""),
        f"{100 * r['standard_error']:.1f} %",
        f"{r['seconds']:.1f} s",
    )


def caption(devices: int) -> str:
    """Returns the text below the table, which explains its columns."""
    return (
        f"{EPOCHS} epochs of 3,200 images on {devices} devices. Test accuracy: mean ±"
        f" standard deviation over {len(SEEDS)} seeds, on 1,000 images. s.e.: binomial"
        " standard error of that mean. Rate: the learning rate with the best validation"
        " accuracy, among equally many for each method. Time: training of one run."
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the results of all methods as a table in Markdown."""
    return markdown_table([_HEAD, *map(cells, rows)])


def run_method(
    method: str, experiment: Experiment, console: Terminal
) -> tuple[list[Result], list[Path]]:
    """Trains by a method once for each seed; returns the results and the log files."""
    folder = OUT / method.lower().replace(",", "").replace(" ", "-")
    results, logs, updates = [], [], experiment.schedule.updates
    for seed in SEEDS:
        run = replace(RUN, seed=seed, out=str(folder / f"seed{seed}"))
        with progress(f"{method}, seed {seed}", updates, console, lines=1) as on_record:
            results.append(fit(experiment, run, on_record))
        logs.append(Path(run.out) / LOG)
    return results, logs


def main() -> None:
    start, console = time.perf_counter(), Terminal()
    try:
        rates = read_rates(SWEEP)
        devices, data = start_devices(None), load("mnist")
        experiments = {
            method: Experiment(configure(method, rate, "test"), data, devices)
            for method, rate in rates.items()
        }
    except ValueError as error:
        raise SystemExit(printable(f"error: {error}")) from None
    rows, logs = [], {}
    for method, experiment in experiments.items():
        results, files = run_method(method, experiment, console)
        logs[f"{method} ({METHODS[method][1]:,})"] = files
        rows.append(row(method, rates[method], results))
    note = caption(len(devices))
    plot_runs(logs, OUT / "curves.png")
    (OUT / "table.md").write_text(f"{markdown(rows)}\n{note}\n")
    record = provenance() | {"protocol": note, "seeds": SEEDS, "rows": rows}
    record["seconds"] = time.perf_counter() - start
    (OUT / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    show([Table("", _HEAD, list(map(cells, rows)), note)], console)
    console.print(
        f"{record['seconds']:.0f} s in all, on {devices[0].platform}",
        f"table: {OUT / 'table.md'}, {OUT / 'table.json'}",
        f"picture: {OUT / 'curves.png'}",
        sep="\n",
    )


if __name__ == "__main__":
    main()
