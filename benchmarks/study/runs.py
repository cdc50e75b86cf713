"""Finds which training runs of the study and the ablations have results."""

from collections.abc import Iterable, Mapping
from itertools import product
from statistics import median
from typing import NamedTuple

from benchmarks.results import Record
from benchmarks.study.protocol import METHODS, STUDIED, Cell, Stage
from examples.imagenet.config import Optimizer

STUDY_FILE, ABLATIONS_FILE = "study.jsonl", "ablations.jsonl"
COMPILING = 15  # seconds that a run takes to compile, about


class Variant(NamedTuple):
    """A variant of LARS that an ablation compares with others."""

    ablation: str
    title: str
    optimizer: Optimizer

    @property
    def key(self) -> dict[str, str]:
        """The fields that identify the records of this variant's runs.

        They are the same for all variants that train as the study does, so that these
        share their runs.
        """
        if self.optimizer == STUDIED:
            return {"ablation": "as in the study", "variant": "as in the study"}
        return {"ablation": self.ablation, "variant": self.title}


class Job(NamedTuple):
    """A training run of the study or, if it has a variant, of an ablation."""

    cell: Cell
    rate: float
    stage: Stage
    seed: int
    variant: Variant | None = None

    @property
    def also_final(self) -> bool:
        """Whether a final run differs from this trial only in what is evaluated."""
        final, trial = self.cell.final, self.stage
        same = self.variant is None and trial.epochs == final.epochs
        return same and trial.split != final.split and self.seed in final.seeds

    @property
    def key(self) -> Record:
        """The fields and values that tell this run's record from all others."""
        run: Record = {"learning_rate": self.rate, "seed": self.seed}
        if self.variant:
            return self.variant.key | {"network": self.cell.network} | run
        stage = {"epochs": self.stage.epochs, "split": self.stage.split}
        return self.cell._asdict() | stage | run

    @property
    def name(self) -> str:
        """The run's name in messages, which is also the path of its folder."""
        row = self.cell.name
        if self.variant:
            row = "/".join((*self.variant.key.values(), self.cell.network))
        stage = f"{self.stage.epochs}-epochs-{self.stage.split}"
        return f"{row}/rate-{self.rate:g}/{stage}/seed-{self.seed}"


class Runs:
    """The results of runs, as the records in a file under benchmarks/results."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def tried(self, cell: Cell) -> list[Record]:
        """Returns the records of the learning-rate trials for one row of the study.

        They are in order of learning rate. There are none if a rule gives the row's
        only learning rate.
        """
        tuned = METHODS[cell.method].rates > 1
        found = self._like(cell, cell.tuning) if tuned else []
        return sorted(found, key=lambda r: r["learning_rate"])

    def final(self, cell: Cell) -> list[Record]:
        """Returns the records of a study row's runs at its best learning rate.

        They are in order of seed.
        """
        best = self.best(cell)
        found = self._like(cell, cell.final)
        some = [r for r in found if r["learning_rate"] == best]
        return sorted(some, key=lambda r: r["seed"])

    def of(self, job: Job) -> list[Record]:
        """Returns the records of a run, or an empty list if it has no results."""
        if job.variant:
            return [r for r in self.records if job.key.items() <= r.items()]
        one = {"learning_rate": job.rate, "seed": job.seed}.items()
        return [r for r in self._like(job.cell, job.stage) if one <= r.items()]

    def _like(self, cell: Cell, stage: Stage) -> list[Record]:
        """Returns the records of a study row's runs with the stage's epochs and seeds.

        Includes runs of other rows that differ only in how the learning rate is chosen.
        Of several records of one run, which processes may add at the same time, the
        first counts.
        """
        trains = METHODS[cell.method].trains
        alike = {name for name, method in METHODS.items() if method.trains == trains}
        rest = cell._asdict() | {"epochs": stage.epochs, "split": stage.split}
        del rest["method"]
        some = [r for r in self.records if rest.items() <= r.items()]
        found: dict[tuple[float, int], Record] = {}
        for r in some:
            if r["method"] in alike and r["seed"] in stage.seeds:
                found.setdefault((r["learning_rate"], r["seed"]), r)
        return list(found.values())

    def trials(self, cell: Cell) -> tuple[list[float], float | None]:
        """Returns the learning rates that a study row tries, as far as known.

        Also returns the best of them, or None while some have not been tried.
        """
        first = cell.rates(self.best)
        if len(first) < 2:
            return [], first[0] if first else None
        scores = {
            r["learning_rate"]: -1.0 if r["diverged"] else r["accuracy"]
            for r in self.tried(cell)
        }
        rates = extend(list(first), scores)
        return rates, choose(rates, scores)

    def best(self, cell: Cell) -> float | None:
        """Returns a study row's best learning rate, or None if not known yet."""
        return self.trials(cell)[1]

    def seconds(self, job: Job) -> float:
        """Returns a run's seconds, estimated from similar runs, or 0 without any."""
        cell, epochs = job.cell, job.stage.epochs
        # The records of ablations lack what is the same in all of them.
        same = {"data": cell.data, "batch": cell.batch, "epochs": epochs}
        whole: list[Record] = [same | r for r in self.records]
        wanted = {"data": cell.data, "network": cell.network}.items()
        like = [r for r in whole if wanted <= r.items()]
        near = [r for r in like if r["batch"] == cell.batch] or like
        if not near:
            return 0
        each: float = median(r["seconds"] / r["epochs"] for r in near)
        return COMPILING + 1.1 * each * epochs  # evaluation is not in the seconds


def choose(rates: list[float], scores: Mapping[float, float]) -> float | None:
    """Returns the learning rate with the best score, or None if any has none yet."""
    if all(rate in scores for rate in rates):
        return max(rates, key=scores.__getitem__)
    return None


def extend(rates: list[float], scores: Mapping[float, float]) -> list[float]:
    """Returns `rates`, extended until the best one is neither lowest nor highest.

    Half the lowest or twice the highest is added until then, or until a rate has no
    score yet.
    """
    while (best := choose(rates, scores)) in (rates[0], rates[-1]):
        rates = [*rates, 2 * best] if best == rates[-1] else [best / 2, *rates]
    return rates


def jobs(cell: Cell, stage: Stage, rates: Iterable[float]) -> list[Job]:
    """Returns a study row's runs at each learning rate, with each seed of `stage`."""
    return [Job(cell, rate, stage, seed) for rate, seed in product(rates, stage.seeds)]


def missing(runs: Runs, cell: Cell) -> list[Job]:
    """Returns a study row's runs that have no results and can start now.

    Its final runs are among them once its trials have found the best learning rate.
    """
    rates, best = runs.trials(cell)
    final = [] if best is None else jobs(cell, cell.final, [best])
    return [x for x in jobs(cell, cell.tuning, rates) + final if not runs.of(x)]


def later(runs: Runs, cell: Cell) -> list[Job]:
    """Returns a study row's runs that cannot start until a learning rate is known.

    Their learning rate is 1, in place of the unknown one.
    """
    rates, best = runs.trials(cell)
    if best is not None:
        return []
    first = () if rates else cell.rates(lambda _: 1.0)
    trials = first if len(first) > 1 else ()
    return jobs(cell, cell.tuning, trials) + jobs(cell, cell.final, [1.0])


def remaining(runs: Runs, wanted: Iterable[Cell]) -> list[Job]:
    """Returns all runs that the study's rows `wanted` still lack.

    More follow if a row has to try further learning rates.
    """
    return [
        job for cell in wanted for find in (missing, later) for job in find(runs, cell)
    ]
