"""The files under benchmarks/results: how they are written, read and made into tables.

Every file holds the commit, machine and versions that its figures were made with.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from examples.imagenet.log import strict_json
from examples.imagenet.provenance import provenance
from examples.imagenet.report.page import markdown_table

RESULTS = Path("benchmarks/results")
README, BENCHMARKS = Path("README.md"), Path("benchmarks/README.md")
STUDY = Path("docs/study.md")
Record = dict[str, Any]
# From a column's title to its field, a factor and a format.
Columns = Mapping[str, tuple[str, float, str]]


class Table(NamedTuple):
    """A table of a page: the page, the name of its marks, a file, and how to make it.

    `make` takes what `read` returns for the file and returns Markdown.
    """

    page: Path
    name: str
    file: str
    make: Callable[[Any], str]


def read(file: str) -> Any:
    """Returns the record of a .json file, or the list of records of a .jsonl file.

    Returns an empty list if there is no such .jsonl file.
    """
    path = RESULTS / file
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return (
        [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    )


def save(
    file: str, record: Record, packages: Iterable[str] = (), indent: int | None = 1
) -> None:
    """Writes a .json file, with provenance and with the versions of more packages."""
    about = provenance()
    about["versions"] |= {name: version(name) for name in packages}
    text = json.dumps(about | record, indent=indent, ensure_ascii=False)
    (RESULTS / file).write_text(text + "\n")
    print(f"written: {RESULTS / file}", flush=True)


def append(file: str, record: Record) -> None:
    """Adds a line to a .jsonl file."""
    with (RESULTS / file).open("a") as lines:
        lines.write(strict_json(record) + "\n")


def table(records: Mapping[str, Record], columns: Columns) -> str:
    """Returns a row for each record, under its name; leaves empty columns out."""

    def cells(record: Record) -> list[str]:
        values = [(record.get(field), by, form) for field, by, form in columns.values()]
        return ["" if x is None else form.format(x * by) for x, by, form in values]

    rows = {name: cells(record) for name, record in records.items()}
    used = [any(column) for column in zip(*rows.values(), strict=True)]
    rows = {"": list(columns)} | rows
    return markdown_table([name, *compress(row, used)] for name, row in rows.items())
