"""Writes the tables of Markdown pages and the pictures of the study from results.

    make report

The results are the files under benchmarks/results. A table stands in its page between
the comments `<!-- name -->` and `<!-- end of name -->`. If its file of results is
missing, the page says "Not run." there. A test compares the pages with the results.
"""

import re
from pathlib import Path
from typing import Any

import tyro

from benchmarks.correctness import regimes
from benchmarks.results import NOT_RUN, RESULTS, STUDY, STUDY_ROWS, Table, read
from benchmarks.speed import (
    gpu_program,
    input_pipeline,
    optimizer_step,
    train_step,
)
from benchmarks.speed import noise_scale as noise_scale_cost
from benchmarks.study import (
    ablations,
    barlow_twins,
    default_ratio,
    layers,
    noise_scale,
    page,
    scaling,
    starting_rate,
)
from benchmarks.study.runs import ABLATIONS_FILE, STUDY_FILE
from examples.imagenet import demo

MODULES: Any = (regimes, optimizer_step, train_step, gpu_program, input_pipeline,
                noise_scale_cost, page, default_ratio, layers, ablations, scaling,
                barlow_twins, noise_scale, starting_rate)  # fmt: skip
TABLES = [
    Table(
        STUDY_ROWS, "demo", "demo.json", lambda record: demo.markdown(record["rows"])
    ),
    *(table for module in MODULES for table in module.TABLES),
]


def pages() -> dict[Path, str]:
    """Returns the path and the new text of each page that has tables of results."""
    texts = {table.page: table.page.read_text() for table in TABLES}
    for path, name, file, make in TABLES:
        found = make(read(file)) if (RESULTS / file).is_file() else NOT_RUN
        texts[path] = replace_table(texts[path], name, found)
    return texts


def replace_table(text: str, name: str, table: str) -> str:
    """Returns a page's text with `table` between the two comments that mark `name`.

    Raises ValueError unless the text has these comments exactly once.
    """
    marks = rf"(?s)(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)"
    new, count = re.subn(marks, lambda _: table, text)
    if count != 1:
        raise ValueError(
            f"found {count} tables between <!-- {name} --> and <!-- end of {name} -->;"
            " write these two comments into the page exactly once"
        )
    return new


def main() -> None:
    for path, text in pages().items():
        path.write_text(text)
        print(f"written: {path}")
    page.draw(read(STUDY_FILE), STUDY.parent)
    starting_rate.draw(read(STUDY_FILE), STUDY.parent)
    if (RESULTS / noise_scale.FILE).is_file():
        noise_scale.draw(read(noise_scale.FILE), STUDY.parent)
    ablations.draw(read(ABLATIONS_FILE), STUDY.parent)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
