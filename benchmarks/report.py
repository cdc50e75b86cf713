"""Puts the kept results into the tables of the pages, and draws the study's pictures.

    make report

A table stands between the marks `<!-- name -->` and `<!-- end of name -->`. The page
says "Not run." where there is no file of results. A test compares the pages with the
results.
"""

import re
from pathlib import Path

from benchmarks.correctness import regimes
from benchmarks.results import README, RESULTS, STUDY, Table, read
from benchmarks.speed import input_pipeline, optimizer_step, train_step
from benchmarks.study import ablations_page, default_ratio, layers_page, page, scaling
from benchmarks.study.runs import ABLATIONS_FILE, STUDY_FILE
from examples.imagenet import demo

TABLES = (
    Table(README, "demo", "demo.json", lambda record: demo.markdown(record["rows"])),
    *regimes.TABLES,
    *optimizer_step.TABLES,
    *train_step.TABLES,
    *input_pipeline.TABLES,
    *page.TABLES,
    *default_ratio.TABLES,
    *layers_page.TABLES,
    *ablations_page.TABLES,
    *scaling.TABLES,
)


def pages() -> dict[Path, str]:
    """Returns the text of every page, with the tables that the results give."""
    texts = {table.page: table.page.read_text() for table in TABLES}
    for path, name, file, make in TABLES:
        found = make(read(file)) if (RESULTS / file).is_file() else "Not run.\n"
        texts[path] = replace_table(texts[path], name, found)
    return texts


def replace_table(text: str, name: str, table: str) -> str:
    """Returns the text with another table between its marks."""
    marks = rf"(?s)(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)"
    new, count = re.subn(marks, lambda _: table, text)
    if count != 1:
        raise ValueError(f"found the marks <!-- {name} --> {count} times, not once")
    return new


def main() -> None:
    for path, text in pages().items():
        path.write_text(text)
        print(f"written: {path}")
    page.draw(read(STUDY_FILE), STUDY.parent)
    ablations_page.draw(read(ABLATIONS_FILE), STUDY.parent)


if __name__ == "__main__":
    main()
