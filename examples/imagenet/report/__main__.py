"""Reports on training runs from their logs: `python -m examples.imagenet.report RUN…`.

Prints tables of the scores, of each layer's norms (Table 4 of the LARS paper) and of
the speeds (its Tables 8 to 11), and draws the curves. Writes the same to report.md,
report.json and pictures in the folder `--out`. A value that a log lacks is marked as
such, and a file that is not a log ends the command with a message that names it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import tyro

from ..flags import check, check_number, read_flags
from ..terminal import Terminal, printable
from .figures import curve, plot_layers, plot_logs, plot_noise_scale
from .page import ABSENT, Part, Table, duration, markdown, show
from .runs import Run, labels, read_runs
from .speed import cells, ratios, tables

_RUNS = ("run", "status", "updates", "epoch", "accuracy", "top-5", "split", "time")
# What a report shows of a run, by the kind of the log's records that it needs.
_SHOWN = {"epoch": "evaluation", "layers": "norms", "speed": "speed"}


@dataclass(frozen=True)
class Arguments:
    #: Training runs to report on: for each the folder that the trainer wrote with its
    #: option --out, or the log file in it (.jsonl).
    runs: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN…")]
    ]
    #: Folder to write report.md, report.json and the pictures to.
    out: str = "runs/report"
    #: Number of epochs for which the training time is projected from the measured speed
    #: [epochs]. If not given, the largest --epochs of the runs that are compared.
    epochs: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None:
            check_number("--epochs", self.epochs, above=0, high=100_000)
        check(self.out != "", "out", self.out, "give a folder, such as runs/report")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints and writes a report on the runs in `arguments`, by default sys.argv."""
    try:
        asked: Arguments = read_flags(
            Arguments,
            "examples.imagenet.report",
            arguments,
            description="Report on training runs, from their logs alone.",
        )
        runs = read_runs(asked.runs)
        if not runs:
            raise ValueError(
                "RUN: got none; give the folder of a run or its .jsonl file"
            )
        parts = _write(runs, Path(asked.out), asked.epochs)
    except OSError as error:
        what = f"{error.filename or asked.out!r} cannot be written"
        why = f"--out: {what} ({error.strerror or error}); give another folder"
        raise SystemExit(printable(f"error: {why}")) from None
    except ValueError as error:
        raise SystemExit(printable(f"error: {error}")) from None
    terminal = Terminal()
    show(parts, terminal)
    terminal.print(f"report: {asked.out}/report.md, {asked.out}/report.json")


def _write(runs: Sequence[Run], out: Path, epochs: float | None) -> list[Part]:
    """Writes the pictures, report.md and report.json; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    labelled = list(zip(runs, labels(runs), strict=True))
    speeds = cells(runs, epochs)
    parts = [_overview(runs), *(_notes(*pair) for pair in labelled)]
    parts += _curves(labelled, out)
    for run, label in labelled:
        parts += _layers(run, label, out) + _noise_scale(run, label, out)
    parts += tables(speeds)
    (out / "report.md").write_text(markdown(parts), "utf-8")
    numbers = {
        "runs": [_numbers(run, label) for run, label in labelled],
        "speed": [cell._asdict() for cell in speeds],
        "speedup": [row._asdict() for row in ratios(speeds)],
    }
    (out / "report.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return parts


def _overview(runs: Sequence[Run]) -> Part:
    rows = [(run.name, run.status, f"{run.updates:,}", *_scores(run)) for run in runs]
    note = "Accuracies and time of training are those at the last evaluation."
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
    """Returns remarks on a run in one line: where it diverged, what its log lacks."""
    notes = [f"- {run.name}: {label}; read from {run.path}"]
    if diverged := run.of("not_finite"):
        notes.append(f"diverged at step {diverged[0]['step']}: {diverged[0]['where']}")
    for record in run.of("resume"):
        notes += [f"resumed after update {record['step']}", *record.get("changes", ())]
    if run.unreadable:
        notes.append(f"images that could not be read: {len(run.unreadable):,}")
    if len(run.splits) > 1:
        notes.append(f"evaluated on {' and '.join(run.splits)} images, in one curve")
    notes += [
        f"{what} not in the log" for kind, what in _SHOWN.items() if not run.of(kind)
    ]
    return "; ".join(notes)


def _curves(labelled: Iterable[tuple[Run, str]], out: Path) -> list[Part]:
    """Draws the accuracy and loss of the runs over epochs, and returns the picture."""
    groups = defaultdict(list)
    for run, label in labelled:
        if run.of("epoch"):
            groups[label].append(run.log)
    if not groups:
        return []
    several = {k: f"{k}, {len(logs)} runs" for k, logs in groups.items() if logs[1:]}
    named = {several.get(label, label): logs for label, logs in groups.items()}
    plot_logs(named, out / "curves.png")
    text = (
        "Mean and range of the runs that share a label. Accuracies below 1% are drawn"
        " at 1%, and losses above 100 at 100."
    )
    return [text, out / "curves.png"]


def _layers(run: Run, label: str, out: Path) -> list[Part]:
    """Tabulates the norms of all layers at the first step that has them in the log.

    Returns the table and, if later steps have them too, a picture of how they change.
    """
    found = run.norms()
    if found is None:
        return []
    step, leaves = found
    rows = []
    for name, row in leaves.items():
        w, g = row["param_norm"], row["grad_norm"]
        ratio = w / g if w is not None and g else None
        rows.append((name, *("–" if x is None else f"{x:.3g}" for x in (w, g, ratio))))
    batch = f"{run.settings['batch_size']:,}"
    title = f"{run.name}: norms at step {step}, batch {batch}"
    note = "‖w‖ is the norm of the parameters, ‖∇L‖ that of the gradient of the loss."
    table = Table(title, ("leaf", "‖w‖", "‖∇L‖", "‖w‖/‖∇L‖"), rows, note)
    if len(run.of("layers")) == 1:
        return [table, f"{run.name}: no other norms in the log, so no picture of them."]
    picture = out / f"layers-{run.name}.png"
    plot_layers(run.log, f"{run.name}: {label}", picture)
    return [table, picture]


def _noise_scale(run: Run, label: str, out: Path) -> list[Part]:
    """Says what the noise scale means for the batch size, and draws it over the run."""
    found = run.noise_scales()
    positive = [(epoch, scale) for epoch, scale in found if scale > 0]
    if not positive:
        none = f"{run.name}: no estimate of the gradient noise scale is positive."
        return [none] if run.settings.get("noise_scale") else []
    epochs, scales = zip(*positive, strict=True)
    text = (
        f"{run.name}: the median of the gradient noise scale is {median(scales):,.0f}"
        " images. With this batch size, SGD takes about twice as many images to reach a"
        " loss as with small batches. Far above it a larger batch hardly saves updates."
    )
    if hidden := len(found) - len(positive):
        text += (
            f" At {hidden:,} of {len(found):,} updates the estimate is not positive."
            " They are left out, so the median is too low."
        )
    picture = out / f"noise-scale-{run.name}.png"
    batch_size = run.settings["batch_size"]
    plot_noise_scale(epochs, scales, batch_size, f"{run.name}: {label}", picture)
    return [text, picture]


def _numbers(run: Run, label: str) -> dict[str, Any]:
    """Returns the entry of a run in report.json; values that the log lacks are None."""
    norms = run.norms()
    scales = [scale for _, scale in run.noise_scales() if scale > 0]
    lines = {
        key: [x if math.isfinite(x) else None for x in values.tolist()]
        for key, values in curve(run.log).items()
    }
    return {
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
        "noise_scale": median(scales) if scales else None,
    }


if __name__ == "__main__":
    main()
