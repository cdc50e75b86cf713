"""Which runs of the study there are, and which are to come."""

import json
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.study.protocol import METHODS, RULES, Cell, Stage

RESULTS = Path("benchmarks/results/study.jsonl")
COMPILING = 15  # seconds, about
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


class Runs:
    """The runs there are."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def tried(self, cell: Cell) -> list[Record]:
        """Its trials, by rate; none where the rate is that of another row."""
        found = [] if cell.method in RULES else self._like(cell, cell.tuning)
        return sorted(found, key=lambda r: r["learning_rate"])

    def final(self, cell: Cell) -> list[Record]:
        """The runs at the best rate, by seed."""
        best = self.trials(cell)[1]
        found = self._like(cell, cell.final)
        some = [r for r in found if r["learning_rate"] == best]
        return sorted(some, key=lambda r: r["seed"])

    def of(self, job: Job) -> list[Record]:
        """That run, if it is among them."""
        one = {"learning_rate": job.rate, "seed": job.seed}.items()
        return [r for r in self._like(job.cell, job.stage) if one <= r.items()]

    def _like(self, cell: Cell, stage: Stage) -> list[Record]:
        """Also those of rows that differ in how the rate is chosen alone."""
        trains = METHODS[cell.method].trains
        alike = {name for name, method in METHODS.items() if method.trains == trains}
        rest = cell._asdict() | {"epochs": stage.epochs, "split": stage.split}
        del rest["method"]
        some = [r for r in self.records if rest.items() <= r.items()]
        return [r for r in some if r["method"] in alike and r["seed"] in stage.seeds]

    def trials(self, cell: Cell) -> tuple[list[float], float | None]:
        """The rates that are to be tried by now, and the best once that is all."""
        rates = list(cell.rates(lambda other: self.trials(other)[1]))
        if len(rates) < 2:
            return [], rates[0] if rates else None
        scores: dict[float, float] = {}
        for r in self.tried(cell):
            scores[r["learning_rate"]] = -1 if r["diverged"] else r["accuracy"]
        while all(rate in scores for rate in rates):
            best = max(rates, key=scores.__getitem__)
            if best == rates[-1]:
                rates.append(2 * best)
            elif best == rates[0]:
                rates.insert(0, best / 2)
            else:
                return rates, best
        return rates, None

    def seconds(self, job: Job) -> float:
        """How long it should take by runs like it; 0 if there are none."""
        same = ("data", "network")
        like = [r for r in self.records if all(r[k] == job.key[k] for k in same)]
        near = [r for r in like if r["batch"] == job.cell.batch] or like
        if not near:
            return 0
        each: float = median(r["seconds"] / r["epochs"] for r in near)
        return COMPILING + 1.1 * each * job.stage.epochs  # evaluation is not in it


def read(path: Path = RESULTS) -> Runs:
    """Those that are kept."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return Runs([json.loads(line) for line in lines])


def missing(runs: Runs, cell: Cell) -> list[Job]:
    """What of a cell can be run now; the final runs once the others are done."""
    rates, best = runs.trials(cell)
    jobs = [
        Job(cell, rate, cell.tuning, s) for rate in rates for s in cell.tuning.seeds
    ]
    if best is not None:
        jobs += [Job(cell, best, cell.final, seed) for seed in cell.final.seeds]
    return [job for job in jobs if not runs.of(job)]


def remaining(runs: Runs, wanted: list[Cell]) -> tuple[int, float]:
    """How many runs are to come, and their seconds; ranges may still be extended."""
    jobs = []
    for cell in wanted:
        jobs += missing(runs, cell)
        rates, best = runs.trials(cell)
        if best is None:  # not known yet
            later = () if rates else cell.rates(lambda _: 1.0)
            few = later if len(later) > 1 else ()
            stage = cell.tuning
            jobs += [Job(cell, rate, stage, s) for rate in few for s in stage.seeds]
            jobs += [Job(cell, 1.0, cell.final, seed) for seed in cell.final.seeds]
    return len(jobs), sum(map(runs.seconds, jobs))
