"""Pages of paragraphs, tables and pictures, written as Markdown or on the terminal."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from ..terminal import Terminal, printable

ABSENT = "?"  # stands in a table for a value that is not in the log


class Table(NamedTuple):
    """A table of texts; `head` names its columns, and `note` explains them."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def caption(self) -> str:
        """The note, and what the mark `ABSENT` means if a cell of the table has it."""
        absent = any(ABSENT in row for row in self.rows)
        return f"{self.note} {ABSENT}: not in the log.".strip() if absent else self.note


Part = str | Table | Path  # a paragraph, a table, a picture


def markdown(parts: Iterable[Part]) -> str:
    """Returns a page as Markdown, which links to pictures in the folder of the page."""
    return "\n".join(map(_markdown, parts))


def _escaped(text: str) -> str:
    """Escapes HTML and the characters that mean something in Markdown."""
    shown = html.escape(printable(text), quote=False)
    # An underscore between two letters does not start emphasis.
    return re.sub(r"([\\`\[\]|$*~]|^#|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", shown)


def _markdown(part: Part) -> str:
    match part:
        case Path():
            return f"![{part.stem}]({part.name})\n"
        case str():
            return f"{_escaped(part)}\n"
    rows = [list(map(_escaped, row)) for row in (part.head, *part.rows)]
    table = markdown_table(rows, numbers="---:")
    caption = f"\n{_escaped(part.caption)}\n" if part.caption else ""
    return f"## {_escaped(part.title)}\n\n{table}{caption}"


def markdown_table(rows: Iterable[Sequence[str]], numbers: str = "---") -> str:
    """Returns a table in Markdown, whose first row is the head.

    `numbers` is the alignment of all columns but the first: "---:" to the right.
    """
    head, *rest = rows
    lines = [head, ["---"] + [numbers] * (len(head) - 1), *rest]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(parts: Iterable[Part], console: Terminal) -> None:
    """Prints a page on the terminal, with the path of each picture."""
    for part in parts:
        if not isinstance(part, Table):
            console.print(f"picture: {part}" if isinstance(part, Path) else part)
            continue
        table = RichTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        (first, *_), *others = zip(part.head, *part.rows, strict=True)
        table.add_column(first, overflow="fold", min_width=8)
        for head, *cells in others:
            width = max(map(cell_len, (head, *map(printable, cells))))
            table.add_column(head, justify="right", min_width=width, no_wrap=True)
        for row in part.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        # Without a width of its own a table loses columns on a narrow terminal.
        room = console.options.update(max_width=1000)
        if (least := Measurement.get(console, room, table).minimum) > console.width:
            table.width = least
        if part.title:
            console.print(Text(printable(part.title), style="italic"), soft_wrap=False)
        console.print(table, crop=False, soft_wrap=False)
        if part.caption:
            console.print(Text(printable(part.caption)), soft_wrap=False)


def duration(seconds: float) -> str:
    """Returns a time in words, such as 5.0s, 2m 05s or 1h 02m 05s."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m {rest:02}s" if hours else f"{minutes}m {rest:02}s"
