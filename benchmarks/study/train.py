"""Trains the runs of the study and of its ablations that have no results yet.

Each run adds a line to a file under benchmarks/results. A command that was stopped
continues with the same run when it is started again.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import Record, append, read
from benchmarks.study.protocol import METHODS, RUN, Cell, Stage
from benchmarks.study.runs import STUDY_FILE, Job, Runs, Variant
from examples.imagenet.data.dataset import Dataset
from examples.imagenet.data.sources import load
from examples.imagenet.provenance import provenance
from examples.imagenet.run.checkpoint import CHECKPOINTS, Checkpoints
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import Result, fit
from examples.imagenet.step.devices import start_devices

OUT = Path("runs/study")
FASHION = "/usr/share/datasets/fashion-mnist"  # Debian's dataset-fashion-mnist
VALIDATION = 5_000


class Place(NamedTuple):
    """Where the data are, and how many devices to split a CPU into."""

    fashion_mnist: str = FASHION  # folder of Fashion-MNIST's IDX files
    cifar10: str = ""  # folder of CIFAR-10's JPEG files; if empty, no CIFAR-10
    devices: int | None = None  # how many devices to split a CPU into


@cache
def dataset(name: str, place: Place) -> tuple[str, Dataset]:
    """Returns the trainer's --data for a data set of the study, and its images.

    Raises ValueError if the folder of the images does not exist.
    """
    if name == "digits":
        return "mnist", load("mnist")
    folder, what = {
        "fashion-mnist": (place.fashion_mnist, "its IDX files (Debian's package"
                          " dataset-fashion-mnist has them)"),
        "cifar10": (place.cifar10, "train/CLASS/* and test/CLASS/*"),
    }[name]  # fmt: skip
    if not folder or not Path(folder).is_dir():
        raise ValueError(f"--{name}: {folder!r} is no folder; give one with {what}")
    return folder, load(folder, VALIDATION, 32, "caffe")


@lru_cache(1)
def experiment(
    cell: Cell, rate: float, stage: Stage, place: Place, variant: Variant | None = None
) -> Experiment:
    """Returns the trainer's experiment for a row of the study at one learning rate.

    It is cached, so that runs with different seeds compile the step once. If `variant`
    is given, its settings of the optimizer replace those of the row.
    """
    source, data = dataset(cell.data, place)
    devices = start_devices(place.devices)
    config = cell.config(source, rate, stage, len(devices))
    if variant:
        optimizer = replace(variant.optimizer, learning_rate=rate)
        config = replace(config, optimizer=optimizer)
    some = devices[: config.batching.devices]
    return Experiment(config, data, some, METHODS[cell.method].make)


def train(job: Job, place: Place, out: Path, **options: Any) -> Result:
    """Trains one run of the study in the folder `out`, without a record of its result.

    `options` are fields of the trainer's `Run`.
    """
    run = replace(RUN, seed=job.seed, out=str(out), **options)
    return fit(experiment(job.cell, job.rate, job.stage, place), run)


def run(job: Job, place: Place, about: Record, file: str) -> Record:
    """Trains a run, from its last checkpoint if there is one.

    Adds its record to `file`, under benchmarks/results. If a final run differs from
    this trial only in what is evaluated, adds the record of that run too, unless the
    file has it or the trial diverged.
    """
    trained = experiment(job.cell, job.rate, job.stage, place, job.variant)
    out = OUT / job.name
    out.mkdir(parents=True, exist_ok=True)
    how = replace(RUN, seed=job.seed, out=str(out))
    saved = Checkpoints(trained.config(how), trained.identity(), trained.grouping())
    result = fit(trained, how, checkpoints=saved)
    record = job.key | asdict(result) | about
    append(file, record)
    final = job._replace(stage=job.cell.final)
    also = job.also_final and not Runs(read(file)).of(final)
    if also and not result.diverged:
        restored = saved.restore(trained.init(job.seed))
        assert restored is not None, "the last update is saved"
        scores = trained.evaluate(
            trained.place(restored[0]), split=trained.dataset.test
        )
        append(file, record | final.key | asdict(scores))
    shutil.rmtree(out / CHECKPOINTS)
    return record


def run_missing(
    missing: Callable[[Runs], Sequence[Job]],
    place: Place,
    *,
    file: str = STUDY_FILE,
    hours: float = math.inf,
    remaining: Callable[[Runs], Sequence[Job]] | None = None,
) -> None:
    """Trains the missing runs, and begins none that should end after `hours`.

    `missing` returns the runs that can start now, and `remaining` all that are to come
    if those are more. The file is read before each run, because another process may
    have added runs.
    """
    about, end = provenance(), time.monotonic() + 3600 * hours
    remaining = remaining or missing
    while jobs := missing(runs := Runs(read(file))):
        job, left = jobs[0], remaining(runs)
        seconds = sum(map(runs.seconds, left))
        long = f"about {seconds / 3600:.1f} h" if seconds else "no estimate yet"
        if time.monotonic() + runs.seconds(job) > end:
            print(f"stopped: the next run may end after {hours:g} h; run this again")
            return
        print(f"{len(left)} runs to come, {long}; now {job.name}", flush=True)
        record = run(job, place, about, file)
        diverged = ", diverged" if record["diverged"] else ""
        print(f"{job.stage.split} accuracy {record['accuracy']:.2%}{diverged}")
