"""Runs the study of large batches, or one row of it again.

    python -m benchmarks.study [--hours 2] [--only PART …]   what is still missing
    python -m benchmarks.study --again NAME                  a row, beside what is kept

benchmarks/protocol.py says what is compared, and the trainer trains. Each run adds a
line to benchmarks/results/study.jsonl; stop it with Ctrl-C at any time, and the same
command goes on from the last epoch. It says first how many runs are to come and how
long they should take, by the runs there are, and begins none that would end after
--hours.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from benchmarks.protocol import FINAL, METHODS, TUNING, Cell, Stage, cells
from examples.imagenet.checkpoint import Checkpoints
from examples.imagenet.data import Dataset
from examples.imagenet.engine import start_devices
from examples.imagenet.loop import Stopped, fit
from examples.imagenet.provenance import provenance
from examples.imagenet.sources import load
from examples.imagenet.trainer import Trainer

RESULTS = Path("benchmarks/results/study.jsonl")
OUT = Path("runs/study")
FASHION = "/usr/share/datasets/fashion-mnist"  # Debian's dataset-fashion-mnist
VALIDATION = 5_000
Record = dict[str, Any]


class Job(NamedTuple):
    """One run."""

    cell: Cell
    rate: float
    stage: Stage
    seed: int

    @property
    def key(self) -> Record:
        """What tells it from all others."""
        return self.cell._asdict() | {
            "learning_rate": self.rate,
            "epochs": self.stage.epochs,
            "seed": self.seed,
            "split": self.stage.split,
        }


class Kept:
    """The runs there are."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def of(self, cell: Cell, stage: Stage) -> list[Record]:
        """By rate and seed."""
        wanted = cell._asdict() | {"epochs": stage.epochs, "split": stage.split}
        found = [r for r in self.records if wanted.items() <= r.items()]
        return sorted(found, key=lambda r: (r["learning_rate"], r["seed"]))

    def has(self, job: Job) -> bool:
        """Whether that run is among them."""
        return any(job.key.items() <= record.items() for record in self.records)

    def best(self, cell: Cell) -> float | None:
        """Its rate of the best validation accuracy, once all have been tried."""
        rates = cell.rates(self.best)
        if len(rates) < 2:
            return rates[0] if rates else None
        tried = {r["learning_rate"]: r["accuracy"] for r in self.of(cell, TUNING)}
        if any(rate not in tried for rate in rates):
            return None
        return max(rates, key=tried.__getitem__)

    def seconds(self, job: Job) -> float | None:
        """How long it should take, by runs of its network."""
        same = ("data", "network")
        like = [r for r in self.records if all(r[k] == job.key[k] for k in same)]
        near = [r for r in like if r["batch"] == job.cell.batch] or like
        return (
            median(r["wall_seconds"] / r["epochs"] for r in near) * (job.stage.epochs)
            if near
            else None
        )


def read(path: Path = RESULTS) -> Kept:
    lines = path.read_text().splitlines() if path.is_file() else []
    return Kept([json.loads(line) for line in lines])


def missing(kept: Kept, cell: Cell) -> Iterator[Job]:
    """What of a cell can be run now; the final runs once the others are done."""
    rates = cell.rates(kept.best)
    tuning = [] if len(rates) < 2 else rates
    jobs = [Job(cell, rate, TUNING, seed) for rate in tuning for seed in TUNING.seeds]
    if (best := kept.best(cell)) is not None:
        jobs += [Job(cell, best, FINAL, seed) for seed in FINAL.seeds]
    return (job for job in jobs if not kept.has(job))


def still(kept: Kept, wanted: list[Cell]) -> tuple[int, float]:
    """How many runs are to come, and their seconds as far as there is a measure."""
    number, total = 0, 0.0
    for cell in wanted:
        few = len(cell.rates(lambda _: 1.0))
        tuning = few * len(TUNING.seeds) if few > 1 else 0
        for stage, n in ((TUNING, tuning), (FINAL, len(FINAL.seeds))):
            left = n - len(kept.of(cell, stage))
            each = kept.seconds(Job(cell, 0.0, stage, 0))
            number, total = number + left, total + left * (each or 0)
    return number, total


@cache
def dataset(name: str, fashion: str) -> tuple[str, Dataset]:
    source = "mnist" if name == "digits" else fashion
    return source, load(source, VALIDATION)


@cache
def trainer(cell: Cell, rate: float, stage: Stage, fashion: str) -> Trainer:
    """Compiled once for all seeds."""
    source, data = dataset(cell.data, fashion)
    devices = start_devices(None)
    config = cell.config(source, rate, stage, len(devices))
    some = devices[: config.run.devices]
    return Trainer(config, data, some, METHODS[cell.method].make)


def run(job: Job, fashion: str, about: Record) -> Record:
    """Trains, from the last checkpoint if it was stopped."""
    start = time.perf_counter()
    bound = trainer(job.cell, job.rate, job.stage, fashion)
    out = OUT / f"{job.cell.name}/{job.rate:g}-{job.stage.split}-{job.seed}"
    out.mkdir(parents=True, exist_ok=True)
    config = replace(bound.config, run=replace(bound.config.run, seed=job.seed))
    saved = Checkpoints(out, config, bound.identity(), bound.grouping())
    result = fit(bound, job.seed, out / "log.jsonl", checkpoints=saved)
    shutil.rmtree(out / "checkpoints")
    seconds = {"wall_seconds": time.perf_counter() - start}
    return job.key | asdict(result) | seconds | about


def again(name: str, seeds: int, fashion: str) -> tuple[list[float], list[float]]:
    """Test accuracies of a row: run anew from nothing, and those that are kept."""
    kept = read()
    cell = next((cell for cell in cells() if cell.name == name), None)
    rate = kept.best(cell) if cell else None
    if cell is None or rate is None:
        have = [cell.name for cell in cells() if kept.of(cell, FINAL)]
        raise SystemExit(f"--again: no row {name!r} is kept; have {', '.join(have)}")
    old = [r["accuracy"] for r in kept.of(cell, FINAL)]
    new = []
    for seed in FINAL.seeds[:seeds]:
        bound = trainer(cell, rate, FINAL, fashion)
        log = OUT / "again.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        new.append(fit(bound, seed, log).accuracy)
        print(f"{name}, rate {rate:g}, seed {seed}: {new[-1]:.2%}", flush=True)
    spread = f" ± {stdev(old):.2%}" if len(old) > 1 else ""
    print(f"now {mean(new):.2%}; kept {mean(old):.2%}{spread} of {len(old)} seeds")
    return new, old


def study(wanted: list[Cell], hours: float, fashion: str) -> None:
    kept, about, end = read(), provenance(), time.monotonic() + 3600 * hours
    number, seconds = still(kept, wanted)
    print(f"{number} runs to come, {seconds / 3600:.1f} h by the runs there are")
    for cell in wanted:
        while job := next(missing(kept, cell), None):
            if time.monotonic() + (kept.seconds(job) or 0) > end:
                print(f"{hours:g} h are over; the same command goes on")
                return
            record = run(job, fashion, about)
            kept.records.append(record)
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            lost = ", diverged" if record["diverged"] else ""
            print(
                f"{cell.name}, rate {job.rate:g}, {job.stage.epochs} epochs,"
                f" seed {job.seed}: {job.stage.split} {record['accuracy']:.2%}{lost},"
                f" {record['wall_seconds']:.0f} s;"
                " {} runs left, {:.0f} s".format(*still(kept, wanted)),
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=2.0, help="begin none after")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of rows' names")
    parser.add_argument("--list", action="store_true", help="names and what is missing")
    parser.add_argument("--again", metavar="NAME", help="run that row from nothing")
    parser.add_argument(
        "--seeds", type=int, default=len(FINAL.seeds), help="of --again"
    )
    parser.add_argument("--fashion-mnist", metavar="DIR", default=FASHION)
    given = parser.parse_args()
    wanted = [cell for cell in cells() if any(part in cell.name for part in given.only)]
    try:
        if given.again:
            again(given.again, given.seeds, given.fashion_mnist)
        elif given.list:
            for cell in wanted:
                print(f"{cell.name:50} {still(read(), [cell])[0]} runs to come")
        else:
            study(wanted, given.hours, given.fashion_mnist)
    except (Stopped, ValueError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
