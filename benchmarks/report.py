"""Makes the tables of the README and of the benchmarks' pages from the kept results.

    make report

A table stands between marks, `<!-- name -->` and `<!-- end of name -->`; what was not
run says so. A test compares the pages with the results.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import regimes
from benchmarks.optimizer_step import BASE
from benchmarks.tables import markdown, placed
from examples.imagenet import demo

README, BENCHMARKS = Path("README.md"), Path("benchmarks/README.md")
RESULTS = Path("benchmarks/results")
NETWORKS = {"resnet50": "ResNet-50", "alexnet": "AlexNet", "vit_b": "ViT-B/16"}
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
    head = ["one step", *(f"{NETWORKS[net]}, {dtype}" for net, dtype in titles)]
    lines = []
    for name in SHORT:
        each = [result["optimizers"].get(name) for result in results.values()]
        cells = [f"{x['ratio']:.2f}" if x else "not run" for x in each]
        lines.append([f"`{name}`" if "." in name else name, *cells])
    return markdown([head, *lines])


def steps(record: Record) -> str:
    """Everything that was measured of every optimizer, a table for each network."""
    fields = {
        "ratio": ("ratio", "{:.2f}"),
        "of fastest": ("ratio_of_fastest", "{:.2f}"),
        "step, ms": ("median_seconds", "{:.1f}"),
        "trace, s": ("trace_seconds", "{:.2f}"),
        "compile, s": ("compile_seconds", "{:.2f}"),
        "passes": ("passes_by_xla", "{:.1f}"),
        "reductions": ("reductions", "{}"),
        "temporary, MB": ("temporary_bytes", "{:.0f}"),
        "μs a leaf": ("microseconds_per_leaf", "{:.1f}"),
    }
    scale = {"step, ms": 1e3, "temporary, MB": 1e-6}
    text = ""
    for title, result in record["results"].items():
        net, dtype = title.split()
        text += f"\n{NETWORKS[net]}, {dtype}: {result['leaves']} leaves,"
        text += f" {result['bytes'] / 1e6:.0f} MB; load {result['load']:.1f}\n\n"
        lines = [
            [
                name,
                *(
                    how.format(x[field] * scale.get(column, 1)) if field in x else ""
                    for column, (field, how) in fields.items()
                ),
            ]
            for name, x in result["optimizers"].items()
        ]
        text += markdown([["", *fields], *lines])
    adds = record["import_adds_milliseconds"]
    return text + f"\n`import lars_optax` adds {adds:.0f} ms to `import optax`.\n"


TABLES = (
    Table(README, "wrong", "regimes.json", lambda x: regimes.table(x, "wrong")),
    Table(README, "lacks", "regimes.json", lambda x: regimes.table(x, "lacks")),
    Table(README, "speed", "optimizer_step_cpu.json", ratios),
    Table(README, "demo", "demo.json", lambda x: demo.markdown(x["rows"])),
    Table(RESULTS / "regimes.md", "all", "regimes.json", regimes.table),
    Table(BENCHMARKS, "optimizer_step_cpu", "optimizer_step_cpu.json", steps),
    Table(BENCHMARKS, "optimizer_step_gpu", "optimizer_step_gpu.json", steps),
)


def pages() -> dict[Path, str]:
    """Every page as the results have it."""
    texts = {table.page: table.page.read_text() for table in TABLES}
    for page, name, result, make in TABLES:
        path = RESULTS / result
        found = make(json.loads(path.read_text())) if path.is_file() else "Not run.\n"
        texts[page] = placed(texts[page], name, found)
    return texts


def main() -> None:
    for page, text in pages().items():
        page.write_text(text)
        print(f"written: {page}")


if __name__ == "__main__":
    main()
