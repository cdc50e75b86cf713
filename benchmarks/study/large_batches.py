"""Trains the missing runs of the study of large batches, or repeats one of its rows.

    python -m benchmarks.study [--hours 2] [--only PART …]   trains the missing runs
    python -m benchmarks.study --again NAME                  repeats the row NAME

A row of the study's tables is an optimizer at one batch size, on one data set and
network. --again prints the new accuracy beside the recorded one and records nothing.
benchmarks/study/protocol.py says what is compared. Each new run adds a line to
benchmarks/results/study.jsonl. Ctrl-C stops the command at any time, and the same
command continues. It prints how many runs are to come and how long they should take,
which it estimates from the runs that have results.
"""

from statistics import mean, stdev
from typing import Annotated

import tyro

from benchmarks.results import read
from benchmarks.study.protocol import Cell, cells
from benchmarks.study.runs import STUDY_FILE, Job, Runs, missing, remaining
from benchmarks.study.train import OUT, Place, dataset, run_missing, train
from examples.imagenet.run.loop import Stopped


def again(name: str, seeds: int, place: Place) -> tuple[list[float], list[float]]:
    """Trains a row of the study's tables again, with `seeds` of its seeds.

    Returns the new test accuracies and those of the study. Raises ValueError if the
    study has no results of the row, or the row has fewer seeds.
    """
    runs = Runs(read(STUDY_FILE))
    have = {cell.name: cell for cell in cells() if runs.final(cell)}
    if name not in have:
        raise ValueError(
            f"--again: there are no results of a row {name!r} to compare with;"
            f" give one of {', '.join(have)}"
        )
    final = have[name].final
    if not 1 <= seeds <= len(final.seeds):
        raise ValueError(f"--seeds: got {seeds}; give 1 to {len(final.seeds)}")
    old = runs.final(have[name])
    accuracies, rate = [r["accuracy"] for r in old], old[0]["learning_rate"]
    new = []
    for seed in final.seeds[:seeds]:
        result = train(Job(have[name], rate, final, seed), place, OUT / "again")
        new.append(result.accuracy)
        print(f"{name}, rate {rate:g}, seed {seed}: {new[-1]:.2%}", flush=True)
    spread = f" ± {stdev(accuracies):.2%}" if len(old) > 1 else ""
    kept = f"kept {mean(accuracies):.2%}{spread} of {len(old)} seeds"
    print(f"now {mean(new):.2%}; {kept}")
    return new, accuracies


def study(wanted: list[Cell], hours: float, place: Place) -> None:
    """Trains the missing runs of the rows `wanted` of the study's tables.

    Begins no run that would end after `hours`. Raises ValueError before the first run
    if the folder of a data set is missing.
    """
    runs = Runs(read(STUDY_FILE))
    for name in {cell.data for cell in wanted if missing(runs, cell)}:
        dataset(name, place)
    run_missing(
        lambda runs: [job for cell in wanted for job in missing(runs, cell)],
        place,
        hours=hours,
        remaining=lambda runs: remaining(runs, wanted),
    )
    runs = Runs(read(STUDY_FILE))
    for cell in wanted:
        if not runs.final(cell):
            print(f"{cell.name} has no final run; run the study again without --only")


def main(
    place: tyro.conf.OmitArgPrefixes[Place],
    hours: float = 2.0,
    only: tuple[str, ...] = ("",),
    show: Annotated[bool, tyro.conf.arg(name="list")] = False,
    row: Annotated[str, tyro.conf.arg(name="again", metavar="NAME")] = "",
    seeds: int = 3,
) -> None:
    """Trains the missing runs of the study, or one row of its tables again.

    Args:
      hours: begin no run that would end later than this many hours from now.
      only: train only rows whose name contains one of these texts.
      show: train nothing; print each row's name and its number of missing runs.
      row: train the row of this name again, and print both accuracies.
      seeds: how many of its seeds --again trains.
    """
    wanted = [cell for cell in cells() if any(part in cell.name for part in only)]
    if not place.cifar10:
        wanted = [cell for cell in wanted if cell.data != "cifar10"] or wanted
    try:
        for part in only:
            if not any(part in cell.name for cell in cells()):
                raise ValueError(
                    f"--only: no row's name contains {part!r}; --list prints the names"
                )
        if row:
            again(row, seeds, place)
        elif show:
            runs = Runs(read(STUDY_FILE))
            for cell in wanted:
                print(f"{cell.name:50} {len(remaining(runs, [cell]))} runs to come")
        else:
            study(wanted, hours, place)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except (Stopped, KeyboardInterrupt):
        raise SystemExit("stopped; run the same command again to continue") from None
