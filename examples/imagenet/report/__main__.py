"""Runs side by side, from their logs alone: `python -m examples.imagenet.report`.

Prints and leaves in `--out` the curves, each layer's norms (the paper's Table 4) and
the speeds (its Tables 8 to 11): report.md, report.json and pictures. What the logs do
not hold is said so. A log that cannot be read ends with a message that names it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from ..flags import check_number
from .figures import curve, plot_layers, plot_logs
from .page import ABSENT, Part, Table, duration, markdown, show
from .runs import Run, labels, read_runs
from .speed import Cell, cells, ratios, tables

_RUNS = ("run", "status", "updates", "epoch", "accuracy", "top-5", "split", "time")


@dataclass(frozen=True)
class Arguments:
    #: Folders of runs, or their .jsonl files.
    runs: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN…")]
    ]
    #: Folder for report.md, report.json and the pictures.
    out: str = "runs/report"
    #: Of the projected time; where not given, each run's own [epochs].
    epochs: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None:
            check_number("--epochs", self.epochs, above=0)


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        asked = tyro.cli(
            Arguments,
            prog="python -m examples.imagenet.report",
            description="Report on runs of the trainer, from their logs.",
            args=arguments,
        )
        runs, out = read_runs(asked.runs), Path(asked.out)
        if not runs:
            raise ValueError("RUN: none given; give a run's folder or its .jsonl file")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out: {asked.out!r}: {error.strerror}") from None
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    told, speeds = labels(runs), cells(runs, asked.epochs)
    parts: list[Part] = [
        _overview(runs),
        "\n".join(map(_notes, runs, told)),
        *_curves(runs, told, out),
        *(
            part
            for pair in zip(runs, told, strict=True)
            for part in _layers(*pair, out)
        ),
        *tables(speeds),
    ]
    (out / "report.md").write_text(markdown(parts))
    numbers = _numbers(runs, told, speeds)
    (out / "report.json").write_text(json.dumps(numbers, indent=1) + "\n")
    show(parts, Console())
    print(f"report: {out / 'report.md'}, {out / 'report.json'}")


def _overview(runs: Sequence[Run]) -> Table:
    rows = [(run.name, run.status, f"{run.updates:,}", *_scores(run)) for run in runs]
    note = "Scores and time of training are those of the last evaluation."
    return Table("Runs", _RUNS, rows, note)


def _scores(run: Run) -> tuple[str, ...]:
    evaluations = run.of("epoch")
    if not evaluations:
        return (ABSENT,) * 5
    last = evaluations[-1]
    return (
        f"{last['epoch']:g}",
        f"{last['accuracy']:.2%}",
        f"{last['top5_accuracy']:.2%}" if "top5_accuracy" in last else ABSENT,
        last["split"],
        duration(last["seconds"]),
    )


def _notes(run: Run, label: str) -> str:
    """What a reader of its numbers should know."""
    notes = [f"- {run.name}: {label}; read from {run.path}"]
    if lost := run.of("not_finite"):
        notes.append(f"diverged at step {lost[0]['step']}: {lost[0]['where']}")
    for record in run.of("resume"):
        notes += [f"went on after update {record['step']}", *record.get("changes", ())]
    if run.unreadable:
        notes.append(f"images that could not be read: {len(run.unreadable):,}")
    if len(run.splits) > 1:
        notes.append(f"evaluated on {' and '.join(run.splits)} images, in one curve")
    for kind, what in (
        ("epoch", "evaluation"),
        ("layers", "norms"),
        ("speed", "speed"),
    ):
        if not run.of(kind):
            notes.append(f"{what} not in the log")
    return "; ".join(notes)


def _curves(runs: Sequence[Run], told: Sequence[str], out: Path) -> list[Part]:
    groups = defaultdict(list)
    for run, label in zip(runs, told, strict=True):
        if run.of("epoch"):
            groups[label].append(run.log)
    if not groups:
        return []
    several = {k: f"{k}, {len(logs)} runs" for k, logs in groups.items() if logs[1:]}
    named = {several.get(label, label): logs for label, logs in groups.items()}
    plot_logs(named, out / "curves.png")
    text = (
        "Mean and range of the runs of one label. Accuracies below 1% are drawn there,"
        " and losses above 100."
    )
    return [text, out / "curves.png"]


def _layers(run: Run, label: str, out: Path) -> list[Part]:
    found = run.norms()
    if found is None:
        return []
    step, leaves = found
    rows = [
        (name, _short(row["param_norm"]), _short(row["grad_norm"]), _short(_ratio(row)))
        for name, row in leaves.items()
    ]
    batch = f"{run.settings['batch_size']:,}"
    title = f"{run.name}: norms at step {step}, batch {batch}"
    table = Table(title, ("leaf", "‖w‖", "‖∇L‖", "‖w‖/‖∇L‖"), rows)
    if len(run.of("layers")) == 1:
        return [table, f"{run.name}: no other norms in the log, so no picture of them."]
    picture = out / f"layers-{run.name}.png"
    plot_layers(run.log, f"{run.name}: {label}", picture)
    return [table, picture]


def _ratio(row: dict[str, float | None]) -> float | None:
    w, g = row["param_norm"], row["grad_norm"]
    return w / g if w is not None and g else None


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _numbers(
    runs: Sequence[Run], told: Sequence[str], found: Sequence[Cell]
) -> dict[str, Any]:
    """All of the report, for a program to read; null is what no log holds."""
    rows = []
    for run, label in zip(runs, told, strict=True):
        norms = run.norms()
        lines = {k: list(map(_finite, v.tolist())) for k, v in curve(run.log).items()}
        rows.append(
            {
                "run": run.name,
                "log": str(run.path),
                "settings": label,
                "status": run.status,
                "updates": run.updates,
                "images": run.images,
                "unreadable": len(run.unreadable),
                "versions": run.log[0].get("versions"),
                "splits": run.splits,
                "curve": lines,
                "norms": norms and {"step": norms[0], "leaves": norms[1]},
            }
        )
    speeds = [cell._asdict() for cell in found]
    return {
        "runs": rows,
        "speed": speeds,
        "speedup": [row._asdict() for row in ratios(found)],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    main()
