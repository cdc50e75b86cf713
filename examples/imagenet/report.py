"""What a run shows: a progress bar or plain lines, curves as PNG, where it was run.

Reads nothing but the JSON lines `loop` writes. Curves differ by dash and marker, so
they can be told apart without colour.
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

Record = dict[str, Any]
_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "v"))
_COLOURS = ("#08306b", "#d94801", "#238b45", "#756bb1")


@contextmanager
def progress(
    label: str, steps: int, console: Console, lines: int = 10
) -> Iterator[Callable[[Record], None]]:
    """A function to call with each logged record.

    A bar that moves with the steps on a terminal, else about `lines` plain lines.
    """
    if not console.is_terminal:
        printed = 0

        def line(record: Record) -> None:
            nonlocal printed
            if record["kind"] == "epoch" and record["step"] * lines // steps > printed:
                printed = record["step"] * lines // steps
                text = f"{label}: {_epoch_line(record)}"
                console.print(text, highlight=False, soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[accuracy]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=steps, loss="compiling", accuracy="")

        def show(record: Record) -> None:
            if record["kind"] == "step":
                loss = f"loss {record['loss']:.3f}"
                bar.update(task, completed=record["step"] + 1, loss=loss)
            elif record["kind"] == "epoch":
                bar.update(task, accuracy=f"accuracy {record['accuracy']:.2%}")

        yield show


def _epoch_line(record: Record) -> str:
    return (
        f"epoch {record['epoch']}, step {record['step']}, {record['split']}"
        f" loss {record['loss']:.3f}, accuracy {record['accuracy']:.2%},"
        f" {record['seconds']:.1f} s"
    )


def read_log(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(log: Sequence[Record]) -> dict[str, np.ndarray]:
    """By epoch: its number, the evaluation's accuracy, the mean training loss."""
    epochs = [record for record in log if record["kind"] == "epoch"]
    steps = [record for record in log if record["kind"] == "step"]
    losses = [
        np.mean(
            [_number(s["loss"]) for s in steps if int(s["epoch"]) + 1 == e["epoch"]]
        )
        for e in epochs
    ]
    return {
        "epoch": np.array([e["epoch"] for e in epochs]),
        "accuracy": np.array([e["accuracy"] for e in epochs]),
        "loss": np.array(losses),
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def plot_runs(runs: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Accuracy and training loss over epochs: mean and range of each label's logs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    split, finite = "evaluation", False
    for i, (label, paths) in enumerate(runs.items()):
        logs = [read_log(path) for path in paths]
        split = next(r["split"] for r in logs[0] if r["kind"] == "epoch")
        curves = [curve(log) for log in logs]
        finite |= any(np.isfinite(c["loss"]).any() for c in curves)
        _band(left, curves, "accuracy", i, label)
        _band(right, curves, "loss", i, label)
    left.set(xlabel="epoch", ylabel=f"{split} accuracy", yscale="logit")
    ticks = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    left.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    left.set_yticks([], minor=True)
    right.set(xlabel="epoch", ylabel="training loss, mean of the epoch")
    if finite:  # a log axis of nothing but NaN cannot be drawn
        right.set_yscale("log")
    for axes in (left, right):
        axes.grid(color="0.85")
    left.legend(loc="lower right")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def _band(
    axes: Any, curves: Sequence[dict[str, np.ndarray]], key: str, i: int, label: str
) -> None:
    """Mean line and shaded range; a run that stopped early ends the mean there."""
    n = min(len(c["epoch"]) for c in curves)
    values = np.stack([c[key][:n] for c in curves])
    if key == "accuracy":
        values = values.clip(0.01, 0.999)  # the logit axis has neither 0 nor 1
    epochs = curves[0]["epoch"][:n]
    dash, marker = _STYLES[i % len(_STYLES)]
    colour = _COLOURS[i % len(_COLOURS)]
    axes.plot(
        epochs,
        values.mean(0),
        dash,
        color=colour,
        marker=marker,
        markevery=max(1, n // 6),
        label=label,
    )
    axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2)


def provenance() -> dict[str, Any]:
    """Commit, machine and versions, to stand beside every number that is kept."""
    packages = ("jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "commit": _commit(),
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        run = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        head = git("rev-parse", "--verify", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except OSError:  # no git here
        return "uncommitted"
    return (head or "uncommitted") + (" + changes" if head and changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
