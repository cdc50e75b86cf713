"""Shows how a run progresses: a bar on a terminal, otherwise a few plain lines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from ..log import Record, Show
from ..terminal import Terminal

_QUIET = 60.0  # without a terminal, at least one line in this time [s]


@contextmanager
def progress(
    label: str, steps: int, console: Terminal, lines: int = 10
) -> Iterator[Show]:
    """Yields a function that shows progress, to be called with each logged record.

    It moves a progress bar on a terminal, and otherwise prints about `lines` lines.
    """
    if not console.is_terminal:
        yield _lines(label, steps, console, lines)
        return
    # The text gets the width that the other columns leave, and its end is cut. If they
    # leave none, the bar gets shorter.
    whole, cut = Column(no_wrap=True), Column(no_wrap=True, ratio=1)
    columns = (
        "{task.description}",
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        TextColumn("{task.fields[text]}", table_column=cut),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(label, total=steps, text="compiling")
        texts: dict[str, str] = {}

        def show(record: Record) -> None:
            match record["kind"]:
                case "resume":
                    bar.reset(task, completed=record["step"])
                    for line in record["damaged"]:
                        console.print(line)
                case "step":
                    texts["loss"] = f"loss {record['loss']:.3f}"
                    bar.update(task, completed=record["step"] + 1)
                case "epoch":
                    texts["accuracy"] = f"accuracy {record['accuracy']:.2%}"
                case "speed":
                    texts["speed"] = _speed(record)
            shown = [texts[x] for x in ("loss", "accuracy", "speed") if x in texts]
            bar.update(task, text=", ".join(shown) or "compiling")

        yield show


def _lines(label: str, steps: int, console: Terminal, lines: int) -> Show:
    """Returns a function of a log record that prints progress as plain lines.

    It prints about `lines` lines at evaluations, and one a minute in between.
    """
    printed, speed = 0, ""
    first: tuple[int, float] | None = None  # step and time of the first speed
    said = time.monotonic()

    def say(text: str) -> None:
        nonlocal said
        console.print(f"{label}: {text}")
        said = time.monotonic()

    def line(record: Record) -> None:
        nonlocal printed, speed, first
        now, step = time.monotonic(), record.get("step", 0)
        match record["kind"]:
            case "resume":
                for text in (*record["damaged"], f"resumed after update {step}"):
                    say(text)
            case "speed":
                speed = _speed(record)
                first = first or (step, now)
                if now - said > _QUIET and step > first[0]:
                    left = (steps - step) * (now - first[1]) / (step - first[0])
                    say(f"step {step}, {speed}, {left / 60:.0f} min left")
            case "epoch" if step * lines // steps > printed:
                printed = step * lines // steps
                say(
                    f"epoch {record['epoch']:g}, step {step}, {record['split']} loss"
                    f" {record['loss']:.3f}, accuracy {record['accuracy']:.2%},"
                    f" {record['seconds']:.1f} s, {speed}"
                )

    return line


def _speed(record: Record) -> str:
    return (
        f"{record['images_per_second_per_device']:,.0f} img/s/device,"
        f" {record['data_wait']:.0%} waiting for data"
    )
