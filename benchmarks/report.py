"""Makes the tables of the README and of the benchmarks' pages from the kept results.

    make report

A table stands between marks, `<!-- name -->` and `<!-- end of name -->`; what was not
run says so. A test compares the pages with the results.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.correctness import regimes
from benchmarks.speed.optimizer_step import BASE
from benchmarks.study import (
    ablations,
    ablations_page,
    default_ratio,
    layers_page,
    scaling,
)
from benchmarks.study import page as study_page
from benchmarks.study import runs as study_runs
from examples.imagenet import demo
from examples.imagenet.report.page import markdown_table

README, BENCHMARKS = Path("README.md"), Path("benchmarks/README.md")
RESULTS = Path("benchmarks/results")
NAMES = {
    "resnet50": "ResNet-50",
    "alexnet": "AlexNet",
    "alexnet_bn": "AlexNet-BN",
    "vit_b": "ViT-B/16",
}
SHORT = (
    BASE,
    "lars_optax.lars",
    "optax.lars",
    "optax.lamb",
    "timm Lars",
    "timm Lars, compiled",
    "torch.optim.SGD, fused",
)
Record = dict[str, Any]


class Table(NamedTuple):
    """Where a table stands, and of what it is made."""

    page: Path
    name: str
    result: str  # a file of the results
    make: Callable[[Record], str]


def ratios(record: Record) -> str:
    """Steps as ratios to SGD's, of all networks and dtypes; the main peers alone."""
    results = record["results"]
    titles = [name.split() for name in results]
    head = ["one step", *(f"{NAMES[net]}, {dtype}" for net, dtype in titles)]
    lines = []
    for name in SHORT:
        each = [result["optimizers"].get(name) for result in results.values()]
        cells = [f"{x['ratio']:.2f}" if x else "not run" for x in each]
        lines.append([f"`{name}`" if "." in name else name, *cells])
    return markdown_table([head, *lines])


def rows(found: Record, fields: Mapping[str, tuple[str, float, str]]) -> str:
    """A line for each name; fields: title to key, factor and format.

    Columns without any value are left out.
    """
    some = {
        title: field
        for title, field in fields.items()
        if any(x.get(field[0]) is not None for x in found.values())
    }
    lines = [
        [name]
        + [
            "" if x.get(key) is None else how.format(x[key] * factor)
            for key, factor, how in some.values()
        ]
        for name, x in found.items()
    ]
    return markdown_table([["", *some], *lines])


def steps(record: Record) -> str:
    """Everything that was measured of every optimizer, a table for each network."""
    text = ""
    for title, result in record["results"].items():
        net, dtype = title.split()
        text += f"\n{NAMES[net]}, {dtype}: {result['leaves']} leaves,"
        text += f" {result['bytes'] / 1e6:.0f} MB; load {result['load']:.1f}\n\n"
        for name, x in result["optimizers"].items():
            if passes := 2 if name == "copy" else x.get("passes_by_xla"):
                x["speed"] = passes * result["bytes"] / x["median_seconds"]
        text += rows(
            result["optimizers"],
            {
                "ratio": ("ratio", 1, "{:.2f}"),
                "of fastest": ("ratio_of_fastest", 1, "{:.2f}"),
                "step, ms": ("median_seconds", 1e3, "{:.1f}"),
                "trace, s": ("trace_seconds", 1, "{:.2f}"),
                "compile, s": ("compile_seconds", 1, "{:.2f}"),
                "passes": ("passes_by_xla", 1, "{:.1f}"),
                "GB/s": ("speed", 1e-9, "{:.0f}"),
                "reductions": ("reductions", 1, "{}"),
                "temporary, MB": ("temporary_bytes", 1e-6, "{:.0f}"),
                "μs a leaf": ("microseconds_per_leaf", 1, "{:.1f}"),
            },
        )
    adds = record["import_adds_milliseconds"]
    return text + f"\n`import lars_optax` adds {adds:.0f} ms to `import optax`.\n"


def whole_steps(record: Record) -> str:
    """Of the trainer: a table for each network and number of images."""
    fields = {
        "ratio": ("ratio", 1, "{:.3f}"),
        "of fastest": ("ratio_of_fastest", 1, "{:.3f}"),
        "step, ms": ("median_seconds", 1e3, "{:.0f}"),
        "images/s": ("images_per_second", 1, "{:.1f}"),
        "temporary, MB": ("temporary_bytes", 1e-6, "{:.0f}"),
        "out of memory": ("out_of_memory", 1, "yes"),
    }
    text = ""
    for title, result in record["results"].items():
        kind, network, images = title.split(", ")
        what = "accumulating micro-batches of " if kind == "accumulate" else ""
        text += f"\n{NAMES[network]}, {what}{images}, {record['dtype']}"
        text += f"; load {result['load']:.1f}\n\n" if "load" in result else "\n\n"
        text += rows(result["steps"], fields)
        alone = [f"{name}, update alone" for name in (BASE, "lars_optax.lars")]
        if all(name in result["steps"] for name in alone):
            sgd, lars = (result["steps"][name]["median_seconds"] for name in alone)
            more = (lars - sgd) / result["steps"][BASE]["median_seconds"]
            text += f"\nBy the updates alone LARS adds {more:.1%} to SGD's step.\n"
    return text


def pipeline(record: Record) -> str:
    """Of the input pipeline: a table for each number of cores."""
    files = record["files"]
    text = f"{files['count']} files of {files['mean_bytes'] / 1e3:.0f} kB and"
    text += (
        f" {files['mean_width']:.0f}×{files['mean_height']:.0f} pixels on average.\n"
    )
    for result in record["results"]:
        text += f"\n{result['cores']} core{'s' * (result['cores'] > 1)}\n\n"
        fields = {
            "ratio": ("ratio", 1, "{:.2f}"),
            "images/s": ("images_per_second", 1, "{:.0f}"),
            "of each core": ("images_per_second_per_core", 1, "{:.0f}"),
        }
        text += rows(result["turns"], fields)
    return text


TABLES = (
    Table(README, "wrong", "regimes.json", lambda x: regimes.table(x, "wrong")),
    Table(README, "lacks", "regimes.json", lambda x: regimes.table(x, "lacks")),
    Table(README, "speed", "optimizer_step_cpu.json", ratios),
    Table(README, "demo", "demo.json", lambda x: demo.markdown(x["rows"])),
    Table(RESULTS / "regimes.md", "all", "regimes.json", regimes.table),
    Table(BENCHMARKS, "optimizer_step_cpu", "optimizer_step_cpu.json", steps),
    Table(BENCHMARKS, "optimizer_step_gpu", "optimizer_step_gpu.json", steps),
    Table(BENCHMARKS, "train_step_cpu", "train_step_cpu.json", whole_steps),
    Table(BENCHMARKS, "train_step_gpu", "train_step_gpu.json", whole_steps),
    Table(BENCHMARKS, "input_pipeline", "input_pipeline.json", pipeline),
    *(Table(study_page.PAGE, *table) for table in study_page.TABLES),
    Table(
        study_page.PAGE,
        "default ratio, screening",
        "dense.jsonl",
        lambda _: default_ratio.screening_table(),
    ),
    Table(
        study_page.PAGE,
        "default ratio, final",
        "study.jsonl",
        lambda x: default_ratio.final_table(study_runs.Runs(x["rows"])),
    ),
    Table(study_page.PAGE, "table 4", "table4.json", layers_page.table4),
    Table(study_page.PAGE, "spread", "table4.json", layers_page.spread),
    Table(study_page.PAGE, "along training", "layers.json", layers_page.along),
    *(
        Table(
            study_page.PAGE,
            f"ablation {name}",
            "ablations.jsonl",
            partial(ablations_page.part, name),
        )
        for name in ablations.ABLATIONS
    ),
    Table(study_page.PAGE, "ablation runs", "ablations.jsonl", ablations_page.every),
    Table(study_page.PAGE, "scaling cpu", "scaling_cpu.json", scaling.speeds),
    Table(study_page.PAGE, "scaling gpu", "scaling_gpu.json", scaling.speeds),
    Table(study_page.PAGE, "time cpu", "time_cpu.json", scaling.times),
    Table(study_page.PAGE, "time gpu", "time_gpu.json", scaling.times),
)


def pages() -> dict[Path, str]:
    """Every page as the results have it."""
    texts = {table.page: table.page.read_text() for table in TABLES}
    for page, name, result, make in TABLES:
        path = RESULTS / result
        found = make(read(path)) if path.is_file() else "Not run.\n"
        texts[page] = placed(texts[page], name, found)
    return texts


def read(path: Path) -> Record:
    """One record, or a file of lines, each of which is one."""
    text = path.read_text()
    if path.suffix == ".json":
        record: Record = json.loads(text)
        return record
    return {"rows": [json.loads(line) for line in text.splitlines()]}


def placed(text: str, name: str, table: str) -> str:
    """The text with the table between its marks, `<!-- name -->`, made anew."""
    marks = rf"(?s)(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)"
    new, count = re.subn(marks, lambda _: table, text)
    if count != 1:
        raise ValueError(f"found the marks <!-- {name} --> {count} times, not once")
    return new


def main() -> None:
    for page, text in pages().items():
        page.write_text(text)
        print(f"written: {page}")
    study_page.draw(study_runs.read())
    runs = study_runs.read(ablations.RESULTS).records
    ablations_page.draw(runs, study_page.PAGE.parent)


if __name__ == "__main__":
    main()
