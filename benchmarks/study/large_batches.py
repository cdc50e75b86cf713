"""Runs the study of large batches, or one row of it again.

    python -m benchmarks.study [--hours 2] [--only PART …]   what is still missing
    python -m benchmarks.study --again NAME                  a row, beside what is kept

benchmarks/study/protocol.py says what is compared. Each run adds a line to
benchmarks/results/study.jsonl. Ctrl-C stops the command at any time, and the same
command continues. It prints how many runs are to come and how long they should take,
which it estimates from the runs that are kept.
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
    """Runs a row and returns its test accuracies, new ones and those that are kept."""
    runs = Runs(read(STUDY_FILE))
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
        result = train(Job(have[name], rate, final, seed), place, OUT / "again")
        new.append(result.accuracy)
        print(f"{name}, rate {rate:g}, seed {seed}: {new[-1]:.2%}", flush=True)
    spread = f" ± {stdev(accuracies):.2%}" if len(old) > 1 else ""
    kept = f"kept {mean(accuracies):.2%}{spread} of {len(old)} seeds"
    print(f"now {mean(new):.2%}; {kept}")
    return new, accuracies


def study(wanted: list[Cell], hours: float, place: Place) -> None:
    """Runs what is missing of these rows.

    Raises ValueError before the first run if data are missing.
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
            print(f"{cell.name} waits for the rate of another row")


def main(
    place: tyro.conf.OmitArgPrefixes[Place],
    hours: float = 2.0,
    only: tuple[str, ...] = ("",),
    show: Annotated[bool, tyro.conf.arg(name="list")] = False,
    row: Annotated[str, tyro.conf.arg(name="again", metavar="NAME")] = "",
    seeds: int = 3,
) -> None:
    """Runs what is missing of the study, or one row again.

    Args:
      hours: begin no run that would end later.
      only: parts of the names of rows.
      show: print the names of rows and how many of their runs are missing.
      row: run the row of this name from the start.
      seeds: how many seeds of that row to run.
    """
    wanted = [cell for cell in cells() if any(part in cell.name for part in only)]
    if not place.cifar10:
        wanted = [cell for cell in wanted if cell.data != "cifar10"] or wanted
    try:
        if not wanted:
            raise ValueError(f"--only: no row's name has {only}; --list has all")
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
        raise SystemExit("stopped; the same command continues") from None
