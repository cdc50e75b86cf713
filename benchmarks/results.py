"""Writes and reads the files under benchmarks/results, and makes tables of them.

Every file holds the commit, machine and package versions that produced its figures.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from examples.imagenet.log import strict_json
from examples.imagenet.provenance import provenance
from examples.imagenet.report.page import markdown_table

RESULTS = Path("benchmarks/results")
README, BENCHMARKS = Path("README.md"), Path("benchmarks/README.md")
STUDY, COMPARED = Path("docs/study.md"), Path("docs/compared.md")
STUDY_ROWS = Path("docs/study_rows.md")  # the tables behind those of the study
NOT_RUN = "Not run.\n"
Record = dict[str, Any]
# The title of a column, and the field, factor and format of its cells.
Columns = Mapping[str, tuple[str, float, str]]


class Table(NamedTuple):
    """Says where a table of results stands in a Markdown page, and how it is made.

    It stands in `page` between the comments `<!-- name -->` and `<!-- end of name -->`.
    `make` returns its Markdown text from the records that `read(file)` returns.
    """

    page: Path
    name: str
    file: str
    make: Callable[[Any], str]


def read(file: str) -> Any:
    """Returns the content of a file under benchmarks/results.

    That is the record of a .json file or the list of records of a .jsonl file. Returns
    an empty list if there is no such .jsonl file.
    """
    path = RESULTS / file
    if path.suffix == ".json":
        return json.loads(path.read_text())
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def save(
    file: str, record: Record, packages: Iterable[str] = (), indent: int | None = 1
) -> None:
    """Writes a record as JSON to a file under benchmarks/results.

    Adds the commit, the machine and package versions, among them those of `packages`.
    """
    about = provenance()
    about["versions"] |= {name: version(name) for name in packages}
    text = json.dumps(about | record, indent=indent, ensure_ascii=False)
    (RESULTS / file).write_text(text + "\n")
    print(f"written: {RESULTS / file}", flush=True)


def append(file: str, record: Record) -> None:
    """Adds a record as a line of JSON to a .jsonl file under benchmarks/results."""
    with (RESULTS / file).open("a") as lines:
        lines.write(strict_json(record) + "\n")


def markdown(rows: Iterable[Mapping[str, str]]) -> str:
    """Returns a Markdown table of rows, each of which maps column titles to cell texts.

    The columns are those of the first row. Returns "Not run." if there are no rows.
    """
    rows = list(rows)
    if not rows:
        return NOT_RUN
    cells = ([row.get(title, "") for title in rows[0]] for row in rows)
    return markdown_table([list(rows[0]), *cells])


def table(records: Mapping[str, Record], columns: Columns) -> str:
    """Returns a Markdown table with a row for each record, which begins with its name.

    `columns` maps the title of each further column to the record's field, the factor
    and the format of its value. A column without any value is left out.
    """

    def cell(record: Record, field: str, factor: float, form: str) -> str:
        value = record.get(field)
        return "" if value is None else form.format(factor * value)

    rows = [
        {"": name} | {title: cell(record, *how) for title, how in columns.items()}
        for name, record in records.items()
    ]
    used = ["", *(title for title in columns if any(row[title] for row in rows))]
    return markdown({title: row[title] for title in used} for row in rows)
