"""Runs of the study and of the ablations: which are kept, and which are missing."""

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from statistics import median
from typing import Any, NamedTuple

from benchmarks.results import Record
from benchmarks.study.protocol import METHODS, RULES, STUDIED, Cell, Stage
from examples.imagenet.config import Optimizer
from lars_optax.recipes import Recipe

STUDY_FILE, ABLATIONS_FILE = "study.jsonl", "ablations.jsonl"
COMPILING = 15  # seconds that a run takes to compile, about


class Variant(NamedTuple):
    """A choice of an ablation; `make` if the trainer has no flags for it."""

    ablation: str
    title: str
    optimizer: Optimizer
    make: Callable[[Recipe, int], Any] = Recipe.optimizer

    @property
    def key(self) -> dict[str, str]:
        """The fields that its runs are recorded under.

        They are the same for every variant that is the study's own choice.
        """
        if (self.optimizer, self.make) == (STUDIED, Recipe.optimizer):
            return {"ablation": "as in the study", "variant": "as in the study"}
        return {"ablation": self.ablation, "variant": self.title}


class Job(NamedTuple):
    """One run of the study, or of an ablation if it has a variant."""

    cell: Cell
    rate: float
    stage: Stage
    seed: int
    variant: Variant | None = None

    @property
    def key(self) -> Record:
        """The fields of its record that no other run has the same values of."""
        run: Record = {"learning_rate": self.rate, "seed": self.seed}
        if self.variant:
            return self.variant.key | {"network": self.cell.network} | run
        stage = {"epochs": self.stage.epochs, "split": self.stage.split}
        return self.cell._asdict() | stage | run

    @property
    def name(self) -> str:
        """The name of the run in messages and of its folder."""
        row = self.cell.name
        if self.variant:
            row = "/".join((*self.variant.key.values(), self.cell.network))
        stage = f"{self.stage.epochs}-epochs-{self.stage.split}"
        return f"{row}/rate-{self.rate:g}/{stage}/seed-{self.seed}"


class Runs:
    """The runs that are kept in a file."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def tried(self, cell: Cell) -> list[Record]:
        """Returns its trials by rate; none if its rate follows from another row's."""
        found = [] if cell.method in RULES else self._like(cell, cell.tuning)
        return sorted(found, key=lambda r: r["learning_rate"])

    def final(self, cell: Cell) -> list[Record]:
        """Returns the runs at the best rate, by seed."""
        best = self.best(cell)
        found = self._like(cell, cell.final)
        some = [r for r in found if r["learning_rate"] == best]
        return sorted(some, key=lambda r: r["seed"])

    def of(self, job: Job) -> list[Record]:
        """Returns the record of that run, if it is kept."""
        if job.variant:
            return [r for r in self.records if job.key.items() <= r.items()]
        one = {"learning_rate": job.rate, "seed": job.seed}.items()
        return [r for r in self._like(job.cell, job.stage) if one <= r.items()]

    def _like(self, cell: Cell, stage: Stage) -> list[Record]:
        """Returns its runs, and those of rows where only the choice of rate differs."""
        trains = METHODS[cell.method].trains
        alike = {name for name, method in METHODS.items() if method.trains == trains}
        rest = cell._asdict() | {"epochs": stage.epochs, "split": stage.split}
        del rest["method"]
        some = [r for r in self.records if rest.items() <= r.items()]
        return [r for r in some if r["method"] in alike and r["seed"] in stage.seeds]

    def trials(self, cell: Cell) -> tuple[list[float], float | None]:
        """Returns the rates to try so far, and the best one once all are tried."""
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
        """Returns the best rate of a row, or None if it is not known yet."""
        return self.trials(cell)[1]

    def seconds(self, job: Job) -> float:
        """Estimates the seconds of a run from runs like it; 0 if there are none."""
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
    """Returns the rate with the best score, or None while one has no score."""
    if all(rate in scores for rate in rates):
        return max(rates, key=scores.__getitem__)
    return None


def extend(rates: list[float], scores: Mapping[float, float]) -> list[float]:
    """Adds the next rate beyond an end while the best of the rates is at that end."""
    while (best := choose(rates, scores)) in (rates[0], rates[-1]):
        rates = [*rates, 2 * best] if best == rates[-1] else [best / 2, *rates]
    return rates


def jobs(cell: Cell, stage: Stage, rates: Iterable[float]) -> list[Job]:
    """Returns the runs of a stage at the rates, with all seeds."""
    return [Job(cell, rate, stage, seed) for rate, seed in product(rates, stage.seeds)]


def missing(runs: Runs, cell: Cell) -> list[Job]:
    """Returns the runs of a row that can start now, the final runs after its trials."""
    rates, best = runs.trials(cell)
    final = [] if best is None else jobs(cell, cell.final, [best])
    return [x for x in jobs(cell, cell.tuning, rates) + final if not runs.of(x)]


def later(runs: Runs, cell: Cell) -> list[Job]:
    """Returns the runs of a row that wait for a rate, with 1 in its place."""
    rates, best = runs.trials(cell)
    if best is not None:
        return []
    first = () if rates else cell.rates(lambda _: 1.0)
    trials = first if len(first) > 1 else ()
    return jobs(cell, cell.tuning, trials) + jobs(cell, cell.final, [1.0])


def remaining(runs: Runs, wanted: Iterable[Cell]) -> list[Job]:
    """Returns all runs that are to come, unless the range of rates is extended."""
    return [
        job for cell in wanted for find in (missing, later) for job in find(runs, cell)
    ]
