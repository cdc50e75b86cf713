"""Runs the study of large batches, or one row of it again.

    python -m benchmarks.study [--hours 2] [--only PART …]   what is still missing
    python -m benchmarks.study --again NAME                  a row, beside what is kept

benchmarks/study/protocol.py says what is compared, and the trainer trains. Each run
adds a line to benchmarks/results/study.jsonl; stop it with Ctrl-C at any time, and the
same command goes on from there. It says first how many runs are to come and how long
they should take, by the runs there are, and begins none that would end after --hours.
"""

import argparse
import shutil
import time
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from benchmarks.study.protocol import METHODS, RUN, Cell, Stage, cells
from benchmarks.study.runs import RESULTS, Job, Record, missing, read, remaining
from examples.imagenet.data.dataset import Dataset
from examples.imagenet.data.sources import load
from examples.imagenet.log import strict_json
from examples.imagenet.provenance import provenance
from examples.imagenet.run.checkpoint import Checkpoints
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import Stopped, fit
from examples.imagenet.step.devices import start_devices

OUT = Path("runs/study")
FASHION = "/usr/share/datasets/fashion-mnist"  # Debian's dataset-fashion-mnist
VALIDATION = 5_000


class Place(NamedTuple):
    """Where the data are, and how many devices to split a CPU into."""

    fashion_mnist: str = FASHION
    cifar10: str = ""
    devices: int | None = None


@cache
def dataset(name: str, place: Place) -> tuple[str, Dataset]:
    """Its source as the trainer has it, and its images."""
    if name == "digits":
        return "mnist", load("mnist")
    folder, what = {
        "fashion-mnist": (place.fashion_mnist, "its IDX files (Debian's package"
                          " dataset-fashion-mnist has them)"),
        "cifar10": (place.cifar10, "train/CLASS/* and test/CLASS/*"),
    }[name]  # fmt: skip
    if not folder or not Path(folder).is_dir():
        raise ValueError(f"--{name}: {folder!r} is no folder; give the one of {what}")
    return folder, load(folder, VALIDATION, 32, "caffe")


@lru_cache(1)
def experiment(cell: Cell, rate: float, stage: Stage, place: Place) -> Experiment:
    """Compiled once for all seeds."""
    source, data = dataset(cell.data, place)
    devices = start_devices(place.devices)
    config = cell.config(source, rate, stage, len(devices))
    some = devices[: config.batching.devices]
    return Experiment.of(config, data, some, METHODS[cell.method].make)


def run(job: Job, place: Place, about: Record) -> Record:
    """Trains, from the last checkpoint if it was stopped, and keeps the result."""
    bound = experiment(job.cell, job.rate, job.stage, place)
    out = OUT / f"{job.cell.name}/{job.rate:g}-{job.stage.split}-{job.seed}"
    out.mkdir(parents=True, exist_ok=True)
    how = replace(RUN, seed=job.seed, out=str(out))
    saved = Checkpoints(bound.config(how), bound.identity(), bound.grouping())
    result = fit(bound, how, checkpoints=saved)
    record = job.key | asdict(result) | about
    with RESULTS.open("a") as file:
        file.write(strict_json(record) + "\n")
    shutil.rmtree(out / "checkpoints")
    return record


def again(name: str, seeds: int, place: Place) -> tuple[list[float], list[float]]:
    """Test accuracies of a row: run anew from nothing, and those that are kept."""
    runs = read()
    have = {cell.name: cell for cell in cells() if runs.final(cell)}
    if name not in have:
        raise ValueError(f"--again: no row {name!r} is kept; have {', '.join(have)}")
    final = have[name].final
    if not 1 <= seeds <= len(final.seeds):
        raise ValueError(f"--seeds: got {seeds}; give 1 to {len(final.seeds)}")
    old = runs.final(have[name])
    accuracies, rate = [r["accuracy"] for r in old], old[0]["learning_rate"]
    new = []
    for seed in final.seeds[:seeds]:
        bound = experiment(have[name], rate, final, place)
        how = replace(RUN, seed=seed, out=str(OUT / "again"))
        new.append(fit(bound, how).accuracy)
        print(f"{name}, rate {rate:g}, seed {seed}: {new[-1]:.2%}", flush=True)
    spread = f" ± {stdev(accuracies):.2%}" if len(old) > 1 else ""
    kept = f"kept {mean(accuracies):.2%}{spread} of {len(old)} seeds"
    print(f"now {mean(new):.2%}; {kept}")
    return new, accuracies


def study(wanted: list[Cell], hours: float, place: Place) -> None:
    """Runs what is missing, cell by cell."""
    runs, about, end = read(), provenance(), time.monotonic() + 3600 * hours
    for name in {cell.data for cell in wanted if missing(runs, cell)}:
        dataset(name, place)  # not there? Tell it now, not in hours
    number, seconds = remaining(runs, wanted)
    long = "nothing yet tells how long"
    if seconds or not number:
        long = f"{seconds / 3600:.1f} h by the runs there are"
    print(f"{number} runs to come, {long}")
    for cell in wanted:
        while jobs := missing(runs, cell):
            job = jobs[0]
            if time.monotonic() + runs.seconds(job) > end:
                print(f"{hours:g} h are over; the same command goes on")
                return
            record = run(job, place, about)
            runs.records.append(record)
            lost = ", diverged" if record["diverged"] else ""
            left, seconds = remaining(runs, wanted)
            print(
                f"{cell.name}, rate {job.rate:g}, {job.stage.epochs} epochs,"
                f" seed {job.seed}: {job.stage.split} {record['accuracy']:.2%}{lost};"
                f" {left} runs left, {seconds / 3600:.1f} h",
                flush=True,
            )
    for cell in wanted:
        if not runs.final(cell):
            print(f"{cell.name} waits for the rate of another row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=2.0, help="begin none after")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of rows' names")
    parser.add_argument("--list", action="store_true", help="names and what is missing")
    parser.add_argument("--again", metavar="NAME", help="run that row from nothing")
    parser.add_argument("--seeds", type=int, default=3, help="of --again")
    parser.add_argument("--fashion-mnist", metavar="DIR", default=FASHION)
    parser.add_argument("--cifar10", metavar="DIR", default="", help="on a GPU")
    parser.add_argument("--devices", type=int, help="to split a CPU into: its cores")
    given = parser.parse_args()
    place = Place(given.fashion_mnist, given.cifar10, given.devices)
    wanted = [cell for cell in cells() if any(part in cell.name for part in given.only)]
    if not given.cifar10:
        wanted = [cell for cell in wanted if cell.data != "cifar10"] or wanted
    try:
        if not wanted:
            raise ValueError(f"--only: no row's name has {given.only}; --list has all")
        if given.again:
            again(given.again, given.seeds, place)
        elif given.list:
            for cell in wanted:
                print(f"{cell.name:50} {remaining(read(), [cell])[0]} runs to come")
        else:
            study(wanted, given.hours, place)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except (Stopped, KeyboardInterrupt):
        raise SystemExit("stopped; the same command goes on") from None


if __name__ == "__main__":
    main()
