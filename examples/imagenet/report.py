"""What a run shows: a progress bar or plain lines, and curves as PNG.

Reads nothing but the records of `log`. Curves differ by dash and marker, so
they can be told apart without colour.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from .log import Record, read_log

_QUIET = 60.0  # seconds after which a run without a terminal says where it is
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
        yield _lines(label, steps, console, lines)
        return
    names = ("loss", "accuracy", "speed")
    texts = [TextColumn(f"{{task.fields[{name}]}}") for name in names]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *texts,
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=steps, loss="compiling", accuracy="", speed="")

        def show(record: Record) -> None:
            match record["kind"]:
                case "resume":
                    bar.reset(task, completed=record["step"])
                case "step":
                    loss = f"loss {record['loss']:.3f}"
                    bar.update(task, completed=record["step"] + 1, loss=loss)
                case "epoch":
                    bar.update(task, accuracy=f"accuracy {record['accuracy']:.2%}")
                case "speed":
                    bar.update(task, speed=_speed(record))

        yield show


def _lines(
    label: str, steps: int, console: Console, lines: int
) -> Callable[[Record], None]:
    """Prints after about every `lines`-th part of the steps, and once a minute."""
    printed, speed = 0, ""
    first: tuple[int, float] | None = None  # step and time of the first speed
    said = time.monotonic()

    def say(text: str) -> None:
        nonlocal said
        console.print(f"{label}: {text}", highlight=False, soft_wrap=True)
        said = time.monotonic()

    def line(record: Record) -> None:
        nonlocal printed, speed, first
        now, step = time.monotonic(), record.get("step", 0)
        match record["kind"]:
            case "resume":
                say(f"going on after update {step}")
            case "speed":
                speed = _speed(record)
                first = first or (step, now)
                if now - said > _QUIET and step > first[0]:
                    left = (steps - step) * (now - first[1]) / (step - first[0])
                    say(f"step {step}, {speed}, {left / 60:.0f} min left")
            case "epoch" if step * lines // steps > printed:
                printed = step * lines // steps
                say(f"{_epoch_line(record)}, {speed}")

    return line


def _speed(record: Record) -> str:
    return (
        f"{record['images_per_second_per_device']:,.0f} img/s/device,"
        f" {record['data_wait']:.0%} data"
    )


def _epoch_line(record: Record) -> str:
    return (
        f"epoch {record['epoch']:g}, step {record['step']}, {record['split']}"
        f" loss {record['loss']:.3f}, accuracy {record['accuracy']:.2%},"
        f" {record['seconds']:.1f} s"
    )


def curve(log: Sequence[Record]) -> dict[str, np.ndarray]:
    """By epoch: its number, the evaluation's accuracy, the mean training loss."""
    epochs = [record for record in log if record["kind"] == "epoch"]
    steps = [record for record in log if record["kind"] == "step"]
    ends = [0, *(e["step"] for e in epochs)]
    losses = [
        np.mean([_number(s["loss"]) for s in steps if low <= s["step"] < high])
        for low, high in itertools.pairwise(ends)
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
        split = next((r["split"] for r in logs[0] if r["kind"] == "epoch"), split)
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
