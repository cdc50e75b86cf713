"""Puts the kept results into the tables of the pages, and draws the study's pictures.

    make report

A table stands between the marks `<!-- name -->` and `<!-- end of name -->`. If there is
no file of results, "Not run." stands there. A test compares the pages with the results.
"""

import re
from pathlib import Path
from typing import Any

from benchmarks.correctness import regimes
from benchmarks.results import NOT_RUN, README, RESULTS, STUDY, Table, read
from benchmarks.speed import input_pipeline, optimizer_step, train_step
from benchmarks.study import ablations, default_ratio, layers, page, scaling
from benchmarks.study.runs import ABLATIONS_FILE, STUDY_FILE
from examples.imagenet import demo

MODULES: Any = (regimes, optimizer_step, train_step, input_pipeline, page,
                default_ratio, layers, ablations, scaling)  # fmt: skip
TABLES = [
    Table(README, "demo", "demo.json", lambda record: demo.markdown(record["rows"])),
    *(table for module in MODULES for table in module.TABLES),
]


def pages() -> dict[Path, str]:
    """Returns the text of every page, with its tables made from the results."""
    texts = {table.page: table.page.read_text() for table in TABLES}
    for path, name, file, make in TABLES:
        found = make(read(file)) if (RESULTS / file).is_file() else NOT_RUN
        texts[path] = replace_table(texts[path], name, found)
    return texts


def replace_table(text: str, name: str, table: str) -> str:
    """Returns the text with `table` between the marks of that name."""
    marks = rf"(?s)(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)"
    new, count = re.subn(marks, lambda _: table, text)
    if count != 1:
        raise ValueError(f"the marks <!-- {name} --> stand {count} times, not once")
    return new


def main() -> None:
    for path, text in pages().items():
        path.write_text(text)
        print(f"written: {path}")
    page.draw(read(STUDY_FILE), STUDY.parent)
    ablations.draw(read(ABLATIONS_FILE), STUDY.parent)


if __name__ == "__main__":
    main()
