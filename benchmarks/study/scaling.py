"""Images per second at a fixed batch on n and 2n devices; time to an accuracy.

    python -m benchmarks.study.scaling speed [--network resnet50] [--batches 512 4096]
    python -m benchmarks.study.scaling time [--seeds 3] [--fashion-mnist DIR]

`speed`: the cells and ratios of the paper's Tables 8 to 11, by the trainer's own
records on noise, with all devices and half of them, which hold a batch at once;
projected times are epochs × images / speed, as the paper's. Virtual devices of a CPU
share its cores, so that there the ratios say nothing of machines.

`time`: seconds of training until the test accuracy is first within half a point of the
study's small-batch SGD, for that and for LARS at 16 and 64 times its batch, at the
study's rates.

Writes benchmarks/results/scaling_DEVICE.json, time_DEVICE.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import jax

from benchmarks.study.__main__ import FASHION, Place, experiment
from benchmarks.study.page import DATA, NETWORKS
from benchmarks.study.protocol import FINAL, RUN, SMALL, TUNED, Cell
from benchmarks.study.runs import read
from examples.imagenet.config import (
    Batching,
    Config,
    Data,
    Model,
    Network,
    Optimizer,
    Run,
)
from examples.imagenet.data.sources import load
from examples.imagenet.log import LOG, read_log
from examples.imagenet.models import image_pixels
from examples.imagenet.provenance import provenance
from examples.imagenet.report import speed
from examples.imagenet.report.page import duration, markdown_table
from examples.imagenet.report.runs import read_runs
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit
from examples.imagenet.step.devices import start_devices

RESULTS, LOGS = Path("benchmarks/results"), Path("runs/scaling")
UPDATES, RECORD = 30, 5  # of each cell; updates in a record of speed
LARGE = (2048, TUNED[DATA])
MARGIN = 0.005  # of the baseline's accuracy
Record = dict[str, Any]


def measure(network: Any, dtype: str, batches: list[int]) -> Record:
    """A run for each batch on all devices and on half of them."""
    devices = start_devices(None)
    data = load("synthetic", pixels=image_pixels(network))
    counts = sorted({max(1, len(devices) // 2), len(devices)})
    logs = []
    for batch in batches:
        for count in counts:
            config = Config(
                data=Data(source="synthetic", pixels=image_pixels(network)),
                model=Model(network=network, dtype=dtype),
                optimizer=Optimizer(warmup_epochs=0),
                batching=Batching(
                    batch_size=batch,
                    epochs=UPDATES * batch / data.train.size,
                    devices=count,
                ),
            )
            out = str(LOGS / f"{network}-{batch}-{count}")
            run = Run(log_every=RECORD, checkpoints=0, out=out)
            bound = Experiment.of(config, data, devices[:count])
            if fit(bound, run).diverged:
                raise SystemExit(f"error: {network} diverged at a batch of {batch}")
            logs.append(out)
    # As many as the paper's; the noise is as many images as ImageNet.
    found = speed.cells(read_runs(logs), epochs=100)
    return {"devices": len(devices), "cells": [cell._asdict() for cell in found]}


def time_to_accuracy(seeds: int, fashion: str) -> Record:
    """Of the small batch and the large ones, for each network."""
    runs, rows = read(), []
    for network in NETWORKS:
        small = Cell(DATA, network, SMALL[DATA], "sgd")
        large = [Cell(DATA, network, batch, "lars") for batch in LARGE]
        for cell in (small, *large):
            if not runs.final(cell):
                raise SystemExit(
                    f"error: the study has no final run of {cell.name} yet"
                )
        target = mean(r["accuracy"] for r in runs.final(small)) - MARGIN
        for cell in (small, *large):
            rate = runs.final(cell)[0]["learning_rate"]
            for seed in FINAL.seeds[:seeds]:
                out = LOGS / f"time-{network}-{cell.batch}-{seed}"
                run = replace(RUN, seed=seed, out=str(out))
                fit(experiment(cell, rate, FINAL, Place(fashion)), run)
                epochs = [r for r in read_log(out / LOG) if r["kind"] == "epoch"]
                there = [r for r in epochs if r["accuracy"] >= target]
                row = cell._asdict() | {"learning_rate": rate, "seed": seed}
                row |= {"target": target, "accuracy": epochs[-1]["accuracy"]}
                row["seconds_in_all"] = epochs[-1]["seconds"]
                row["seconds"] = there[0]["seconds"] if there else None
                row["epoch"] = there[0]["epoch"] if there else None
                rows.append(row)
                print(row, flush=True)
    return {"rows": rows}


def speeds(record: Record) -> str:
    """Tables like the paper's 8 to 11."""
    found = [speed.Cell(**cell) for cell in record["cells"]]
    text = ""
    for table in speed.tables(found):
        text += f"\n{table.title}\n\n{markdown_table([table.head, *table.rows])}"
        text += f"\n{table.note}\n"
    if not speed.ratios(found):
        text += "\nOne device: no 2n to compare with.\n"
    return text


def times(record: Record) -> str:
    """A line for each network and batch."""
    lines = []
    for network in NETWORKS:
        own = [row for row in record["rows"] if row["network"] == network]
        for batch in sorted({row["batch"] for row in own}):
            some = [row for row in own if row["batch"] == batch]
            there = [row["seconds"] for row in some if row["seconds"] is not None]
            lines.append(
                [
                    f"`{network}`",
                    f"{batch:,}",
                    some[0]["method"].upper(),
                    f"{some[0]['target']:.1%}",
                    duration(mean(there)) if there else "never",
                    f"{len(there)} of {len(some)}",
                    f"{mean(row['accuracy'] for row in some):.1%}",
                    duration(mean(row["seconds_in_all"] for row in some)),
                ]
            )
    head = ["network", "batch", "optimizer", "target", "time to it", "seeds there"]
    return markdown_table([[*head, "at the end", "all epochs"], *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["speed", "time"])
    parser.add_argument("--network", choices=get_args(Network))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs=2, type=int, default=[512, 4096])
    seeds = range(1, len(FINAL.seeds) + 1)
    parser.add_argument("--seeds", type=int, choices=seeds, default=seeds[-1])
    parser.add_argument("--fashion-mnist", metavar="DIR", default=FASHION)
    given = parser.parse_args()
    start_devices(None)
    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    network = given.network or ("alexnet_small" if cpu else "resnet50")
    dtype = given.dtype or ("float32" if cpu else "bfloat16")
    record = provenance() | {"device": device.device_kind}
    if given.what == "speed":
        record |= measure(network, dtype, given.batches)
        path, text = RESULTS / f"scaling_{device.platform}.json", speeds(record)
    else:
        record |= time_to_accuracy(given.seeds, given.fashion_mnist)
        path, text = RESULTS / f"time_{device.platform}.json", times(record)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{text}written: {path}")


if __name__ == "__main__":
    main()
