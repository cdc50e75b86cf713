"""Chooses the learning rates of examples/barlow_twins.py, and compares its features.

    python -m benchmarks.study.barlow_twins [--fashion-mnist DIR]

The accuracy is that of the example's linear probe. On MNIST's digits, LARS and SGD try
six learning rates each, with seed 3. The best validation accuracy chooses, and of equal
ones the lowest rate. The encoder is then trained with the chosen rates and the seeds 0,
1 and 2. The raw pixels and the untrained encoder are the baselines. On Fashion-MNIST
every rate of `FASHION_RATES` is tried with the seed 0.

Each run adds a line to benchmarks/results/barlow_twins.jsonl. A command that was
stopped continues when it is started again. `make report` puts the results into the
tables of docs/guides/self_supervised.md.
"""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.results import Record, Table, append, markdown, read
from benchmarks.study.train import FASHION
from examples import barlow_twins as example
from examples.imagenet.data.dataset import Dataset, Share
from examples.imagenet.data.sources import load
from examples.imagenet.provenance import provenance

FILE, PAGE = "barlow_twins.jsonl", Path("docs/guides/self_supervised.md")
# Learning rates at a batch size of 256.
RATES = {
    "LARS": (0.2, 0.6, 2.0, 6.0, 20.0, 60.0),
    "SGD": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
}
FASHION_RATES = {"LARS": (2.0, 20.0)}
EPOCHS = {"digits": 100, "fashion-mnist": 6}  # 312 and 322 updates
TRIAL_SEED, SEEDS, FASHION_SEED = 3, (0, 1, 2), 0
BASELINES = ("raw pixels", "untrained encoder")


class Job(NamedTuple):
    """One linear probe, of pixels or of an encoder, and the training before it.

    `features` is one of `BASELINES` or the optimizer that trains the encoder. The
    learning rate of a baseline is 0.
    """

    data: str
    features: str
    learning_rate: float
    seed: int

    def of(self, records: Iterable[Record]) -> list[Record]:
        """Returns the records of this run, or an empty list if it has no results."""
        return [r for r in records if self._asdict().items() <= r.items()]


def trials(features: str) -> list[Job]:
    """Returns the runs that choose the learning rate of LARS or SGD."""
    return [Job("digits", features, rate, TRIAL_SEED) for rate in RATES[features]]


def chosen(features: str, records: list[Record]) -> float | None:
    """Returns the learning rate of the best trial, or None if a trial has not run."""
    found = [job.of(records)[:1] for job in trials(features)]
    if not all(found):
        return None
    best = max((record for (record,) in found), key=lambda r: r["validation"])
    return float(best["learning_rate"])


def finals(features: str, records: list[Record]) -> list[Job]:
    """Returns a row's runs on digits, or none while its learning rate is not known."""
    rate = chosen(features, records) if features in RATES else 0.0
    seeds = SEEDS[:1] if features == "raw pixels" else SEEDS
    some = [] if rate is None else [rate]
    return [Job("digits", features, rate, seed) for rate in some for seed in seeds]


def fashion() -> list[Job]:
    """Returns the runs on Fashion-MNIST."""
    rates = dict.fromkeys(BASELINES, (0.0,)) | FASHION_RATES
    return [
        Job("fashion-mnist", features, rate, FASHION_SEED)
        for features, some in rates.items()
        for rate in some
    ]


def missing(records: list[Record]) -> list[Job]:
    """Returns the runs that have no results and can start now, in their order."""
    names = (*BASELINES, *RATES)
    wanted = [job for name in RATES for job in trials(name)]
    wanted += [job for name in names for job in finals(name, records)] + fashion()
    return [job for job in wanted if not job.of(records)]


class Task(NamedTuple):
    """A data set with the example's configuration."""

    config: example.Config
    data: Dataset
    images: tuple[np.ndarray, ...]  # for training, for validation and for the test
    labels: tuple[np.ndarray, ...]


def read_task(config: example.Config) -> Task:
    """Returns the images and the labels that the example reads."""
    data = load(config.data, config.validation_images)
    splits = [example.read(x) for x in (data.train, data.validation, data.test)]
    images, labels = zip(*splits, strict=True)
    return Task(config, data, images, labels)


def run(job: Job, task: Task) -> Record:
    """Trains and probes as the example does, and returns what the run reached."""
    config, data, images, labels = task
    about: Record = {"epochs": config.epochs, "test_images": len(labels[2])}
    if job.features == "raw pixels":
        inputs = [x.reshape(len(x), -1) / np.float32(255) for x in images]
    else:
        network = example.Network()
        init_key, view_key = jax.random.split(jax.random.key(job.seed))
        blank = jnp.zeros((1, *data.image_shape))
        variables = network.init(init_key, blank, train=False)
        if job.features in RATES:
            variables, more = train(job, task, network, variables, view_key)
            about |= more
        inputs = [np.asarray(example.features(network, variables, x)) for x in images]
    validation, test = example.probe(inputs, labels)
    return job._asdict() | {"validation": validation, "test": test} | about


def train(
    job: Job, task: Task, network: example.Network, variables: Any, key: jax.Array
) -> tuple[Any, Record]:
    """Returns the trained variables, the last loss, and the updates and seconds.

    The seconds include the compilation.
    """
    config, size = task.config, task.data.train.size
    recipe = example.make_recipe(job.features.lower(), job.learning_rate, config)
    (_, steps), tx = recipe.step_counts(size), recipe.optimizer(size)
    update = example.make_update(network, tx, jax.devices())
    share = Share(config.batch_size)
    batches = task.data.train.training(job.seed, range(steps), share)
    start, state = time.perf_counter(), tx.init(variables["params"])
    variables, loss = example.pretrain(update, variables, state, batches, key)
    seconds = round(time.perf_counter() - start, 1)
    return variables, {"loss": loss, "updates": steps, "seconds": seconds}


def percent(x: float, digits: int = 1) -> str:
    return "–" if math.isnan(x) else f"{100 * x:.{digits}f}"


def accuracies(records: list[Record]) -> dict[str, list[Record]]:
    """Returns the records of each row on digits, so far as its runs are complete."""
    rows = {}
    for name in (*BASELINES, *RATES):
        jobs = finals(name, records)
        found = [record for job in jobs for record in job.of(records)[:1]]
        if jobs and len(found) == len(jobs):
            rows[name] = found
    return rows


def errors_of(rows: list[Record]) -> tuple[float, float]:
    """Returns the two standard errors of the mean test accuracy of a row."""
    tests = [r["test"] for r in rows]
    return example.standard_errors(tests, rows[0]["test_images"])


def accuracy_table(records: list[Record]) -> str:
    """Returns a Markdown table of the accuracies on digits, and the runs' seconds."""
    lines = []
    for name, rows in accuracies(records).items():
        seeds, sample = errors_of(rows)
        lines.append({
            "features": name,
            "validation": percent(mean(r["validation"] for r in rows)),
            "test": percent(mean(r["test"] for r in rows)),
            "s.e. of the seeds": percent(seeds, 2),
            "s.e. of the images": percent(sample, 2),
        })  # fmt: skip
    seconds = [r["seconds"] for r in records if "seconds" in r]
    if not seconds:
        return markdown(lines)
    some = f"{min(seconds):.0f} to {max(seconds):.0f}"
    return markdown(lines) + f"\nOne training run took {some} seconds.\n"


def difference_table(records: list[Record]) -> str:
    """Returns a Markdown table of how far LARS is above each other row on digits."""
    rows = accuracies(records)
    if "LARS" not in rows:
        return markdown([])
    lines = []
    for name in (other for other in rows if other != "LARS"):
        both = rows["LARS"], rows[name]
        means = [mean(r["test"] for r in some) for some in both]
        error = np.sqrt(np.nansum(np.square([errors_of(some) for some in both])))
        lines.append({
            "LARS is above": name,
            "by": percent(means[0] - means[1]),
            "s.e. of the difference": percent(error),
        })  # fmt: skip
    return markdown(lines)


def trial_table(records: list[Record]) -> str:
    """Returns a Markdown table of the trials. The chosen ones are bold."""
    best = {name: chosen(name, records) for name in RATES}
    lines: list[dict[str, str]] = []
    for jobs in zip(*map(trials, RATES), strict=True):
        lines.append({})
        for job in jobs:
            name, rate = job.features, job.learning_rate
            found = [percent(r["validation"]) for r in job.of(records)[:1]]
            text = found[0] if found else "not run"
            lines[-1][f"rate of {name}"] = f"{rate:g}"
            lines[-1][f"validation of {name}"] = (
                f"**{text}**" if rate == best[name] else text
            )
    return markdown(lines)


def fashion_table(records: list[Record]) -> str:
    """Returns a Markdown table of the test accuracies on Fashion-MNIST."""
    lines = []
    for job in fashion():
        rate = f" at the rate {job.learning_rate:g}" if job.learning_rate else ""
        line = {"features": job.features + rate, "test": "not run"}
        for record in job.of(records)[:1]:
            _, sample = errors_of([record])
            line |= {"test": percent(record["test"]), "s.e.": percent(sample, 2)}
        lines.append(line)
    return markdown(lines)


TABLES = (
    Table(PAGE, "accuracies", FILE, accuracy_table),
    Table(PAGE, "differences", FILE, difference_table),
    Table(PAGE, "trials", FILE, trial_table),
    Table(PAGE, "fashion", FILE, fashion_table),
)


def main(fashion_mnist: str = FASHION) -> None:
    """Trains and probes the missing runs, and prints what each reached.

    Args:
      fashion_mnist: the folder of Fashion-MNIST's IDX files.
    """
    about, tasks = provenance(), {}
    folders = {"digits": "mnist", "fashion-mnist": fashion_mnist}
    while jobs := missing(read(FILE)):
        job = jobs[0]
        if job.data not in tasks:
            source, epochs = folders[job.data], EPOCHS[job.data]
            tasks[job.data] = read_task(example.Config(data=source, epochs=epochs))
        record = run(job, tasks[job.data])
        append(FILE, record | about)
        reached = f"{record['validation']:.1%}, test {record['test']:.1%}"
        print(f"{job}: validation {reached}, {record.get('seconds', 0)} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
