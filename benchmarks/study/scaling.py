"""Measures speed at a fixed batch on n and 2n devices, and the time to an accuracy.

    python -m benchmarks.study.scaling speed [--network resnet50] [--batches 512 4096]
    python -m benchmarks.study.scaling time [--seeds 3] [--fashion-mnist DIR]

`speed` measures what the paper's Tables 8 to 11 have, from the trainer's log of a
training on noise, with all devices and with half of them. The batch is on the devices
at once. Projected times are epochs × images / speed, as in the paper. The virtual
devices of a CPU share its cores, so their ratios say nothing about real devices.

`time` measures the seconds of training until the test accuracy is first within half a
point of the study's small-batch SGD. It trains that, and LARS at 16 and 64 times its
batch, at the study's learning rates.

Writes benchmarks/results/scaling_DEVICE.json or time_DEVICE.json.
"""

import argparse
from dataclasses import replace
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import jax

from benchmarks.results import STUDY, Record, Table, read, save
from benchmarks.study.protocol import DATA, FINAL, NETWORKS, RUN, SMALL, TUNED, Cell
from benchmarks.study.runs import STUDY_FILE, Runs
from benchmarks.study.train import FASHION, Place, experiment
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
from examples.imagenet.report import speed
from examples.imagenet.report.page import duration, markdown_table
from examples.imagenet.report.runs import read_runs
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit
from examples.imagenet.step.devices import start_devices

LOGS = Path("runs/scaling")
UPDATES, RECORD = 30, 5  # of a run, and in each of its records of speed
LARGE = (2048, TUNED[DATA])
MARGIN = 0.005  # below the baseline's accuracy


def measure(network: Any, dtype: str, batches: list[int]) -> Record:
    """Measures the speed for each batch size on all devices and on half of them."""
    devices = start_devices(None)
    data = load("synthetic", pixels=image_pixels(network))
    counts = sorted({max(1, len(devices) // 2), len(devices)})
    logs = []
    for batch, count in product(batches, counts):
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
        out = LOGS / f"{network}-{batch}-{count}"
        run = Run(log_every=RECORD, checkpoints=0, out=str(out))
        if fit(Experiment(config, data, devices[:count]), run).diverged:
            raise SystemExit(f"error: {network} diverged at a batch of {batch}")
        logs.append(str(out))
    # The epochs are the paper's, and the noise has as many images as ImageNet.
    found = speed.cells(read_runs(logs), epochs=100)
    return {"devices": len(devices), "cells": [cell._asdict() for cell in found]}


def time_to_accuracy(seeds: int, fashion: str) -> Record:
    """Measures the time for the small batch and the large ones, for each network."""
    runs, rows = Runs(read(STUDY_FILE)), []
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
                first: Record = there[0] if there else {}
                row = cell._asdict() | {
                    "learning_rate": rate,
                    "seed": seed,
                    "target": target,
                    "accuracy": epochs[-1]["accuracy"],
                    "seconds_in_all": epochs[-1]["seconds"],
                    "seconds": first.get("seconds"),
                    "epoch": first.get("epoch"),
                }
                rows.append(row)
                print(row, flush=True)
    return {"rows": rows}


def speeds(record: Record) -> str:
    """Returns tables like the paper's 8 to 11."""
    found = [speed.Cell(**cell) for cell in record["cells"]]
    text = ""
    for table in speed.tables(found):
        text += f"\n{table.title}\n\n{markdown_table([table.head, *table.rows])}"
        text += f"\n{table.note}\n"
    if not speed.ratios(found):
        text += "\nThere is one device, and no 2n to compare with.\n"
    return text


def times(record: Record) -> str:
    """Returns a table with a row for each network and batch size."""
    head = ["network", "batch", "optimizer", "target", "time to it", "seeds there"]
    lines = [[*head, "at the end", "all epochs"]]
    key = itemgetter("network", "batch", "method", "target")
    order = list(NETWORKS)
    rows = sorted(record["rows"], key=lambda r: (order.index(r["network"]), r["batch"]))
    for (network, batch, method, target), group in groupby(rows, key):
        some = list(group)
        there = [row["seconds"] for row in some if row["seconds"] is not None]
        time = duration(mean(there)) if there else "never"
        line = [f"`{network}`", f"{batch:,}", method.upper(), f"{target:.1%}", time]
        line += [
            f"{len(there)} of {len(some)}",
            f"{mean(x['accuracy'] for x in some):.1%}",
        ]
        lines.append([*line, duration(mean(row["seconds_in_all"] for row in some))])
    return markdown_table(lines)


TABLES = (
    Table(STUDY, "scaling cpu", "scaling_cpu.json", speeds),
    Table(STUDY, "scaling gpu", "scaling_gpu.json", speeds),
    Table(STUDY, "time cpu", "time_cpu.json", times),
    Table(STUDY, "time gpu", "time_gpu.json", times),
)


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
    if given.what == "speed":
        record, file, page = measure(network, dtype, given.batches), "scaling", speeds
    else:
        record = time_to_accuracy(given.seeds, given.fashion_mnist)
        file, page = "time", times
    print(page(record))
    save(f"{file}_{device.platform}.json", {"device": device.device_kind} | record)


if __name__ == "__main__":
    main()
