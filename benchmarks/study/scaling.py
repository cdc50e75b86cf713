"""Measures the training speed on n and 2n devices, and the time to an accuracy.

    python -m benchmarks.study.scaling speed [--network resnet50] [--batches 512 4096]
    python -m benchmarks.study.scaling time [--seeds 3] [--fashion-mnist DIR]

`speed` measures the quantities of the LARS paper's Tables 8 to 11. It trains on noise,
with all devices and with half of them, and reads the speed from the trainer's log. The
whole batch is on the devices at once. Projected times are epochs × images / speed, as
in the paper. The virtual devices of a CPU share its cores, so their ratios say nothing
about real devices.

`time` measures the seconds of training until the test accuracy is first at most half a
point below that of the study's small-batch SGD. It trains that SGD, and LARS at 16 and
64 times its batch size, at the study's learning rates.

Writes benchmarks/results/scaling_DEVICE.json or time_DEVICE.json.
"""

from collections.abc import Callable
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import jax
import tyro

from benchmarks.results import STUDY_ROWS, Record, Table, markdown, read, save
from benchmarks.speed.training import Dtype
from benchmarks.study.protocol import DATA, FINAL, NETWORKS, SMALL, TUNED, Cell
from benchmarks.study.runs import STUDY_FILE, Job, Runs
from benchmarks.study.train import FASHION, Place, train
from examples.imagenet import config
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
UPDATES, RECORD = 30, 5  # updates of a run, and of a record of its speed
LARGE = (2048, TUNED[DATA])
MARGIN = 0.005  # below the baseline's accuracy


def measure_speed(
    network: config.Network | None = None,
    dtype: Dtype | None = None,
    batches: tuple[int, int] = (512, 4096),
) -> None:
    """Measures the speed for two batch sizes on all devices and on half of them.

    Args:
      network: what to train; by default alexnet_small on a CPU, else resnet50.
      dtype: dtype of activations; by default float32 on a CPU, else bfloat16.
      batches: the two batch sizes.
    """
    devices, logs = start_devices(None), []
    cpu = devices[0].platform == "cpu"
    network = network or ("alexnet_small" if cpu else "resnet50")
    dtype = dtype or ("float32" if cpu else "bfloat16")
    side = image_pixels(network)
    data = load("synthetic", pixels=side)
    counts = sorted({max(1, len(devices) // 2), len(devices)})
    for batch, count in product(batches, counts):
        epochs = UPDATES * batch / data.train.size
        settings = config.Config(
            data=config.Data(source="synthetic", pixels=side),
            model=config.Model(network=network, dtype=dtype),
            optimizer=config.Optimizer(warmup_epochs=0),
            batching=config.Batching(batch_size=batch, epochs=epochs, devices=count),
        )
        out = LOGS / f"{network}-{batch}-{count}"
        run = config.Run(log_every=RECORD, checkpoints=0, out=str(out))
        if fit(Experiment(settings, data, devices[:count]), run).diverged:
            raise SystemExit(f"{network} diverged at batch {batch}; change --batches")
        logs.append(str(out))
    # The epochs are the paper's, and the noise has as many images as ImageNet.
    found = [cell._asdict() for cell in speed.cells(read_runs(logs), epochs=100)]
    keep("scaling", {"devices": len(devices), "cells": found}, speeds)


def measure_time(seeds: Literal[1, 2, 3] = 3, fashion_mnist: str = FASHION) -> None:
    """Measures the time to an accuracy for SGD at a small batch and LARS at large ones.

    Args:
      seeds: number of runs of each network at each batch size.
      fashion_mnist: the folder of Fashion-MNIST's IDX files.
    """
    start_devices(None)
    runs, rows = Runs(read(STUDY_FILE)), []
    for network in NETWORKS:
        small = Cell(DATA, network, SMALL[DATA], "sgd")
        cells = [small, *(Cell(DATA, network, batch, "lars") for batch in LARGE)]
        for cell in cells:
            if not runs.final(cell):
                raise SystemExit(f"{cell.name} has no final run: run the study first")
        target = mean(r["accuracy"] for r in runs.final(small)) - MARGIN
        for cell, seed in product(cells, FINAL.seeds[:seeds]):
            rate = runs.final(cell)[0]["learning_rate"]
            out = LOGS / f"time-{network}-{cell.batch}-{seed}"
            train(Job(cell, rate, FINAL, seed), Place(fashion_mnist), out)
            epochs = [r for r in read_log(out / LOG) if r["kind"] == "epoch"]
            first: Record = next((r for r in epochs if r["accuracy"] >= target), {})
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
    keep("time", {"rows": rows}, times)


def keep(name: str, record: Record, page: Callable[[Record], str]) -> None:
    """Prints a record's tables, which `page` makes, and writes the record.

    Its file is benchmarks/results/NAME_DEVICE.json, where DEVICE is cpu or gpu.
    """
    device = jax.devices()[0]
    print(page(record))
    save(f"{name}_{device.platform}.json", {"device": device.device_kind} | record)


def speeds(record: Record) -> str:
    """Returns Markdown tables of speeds, like Tables 8 to 11 of the LARS paper."""
    found = [speed.Cell(**cell) for cell in record["cells"]]
    text = ""
    for table in speed.tables(found):
        text += f"\n{table.title}\n\n{markdown_table([table.head, *table.rows])}"
        text += f"\n{table.note}\n"
    if not speed.ratios(found):
        text += "\nThere is one device, and no 2n to compare with.\n"
    return text


def times(record: Record) -> str:
    """Returns a Markdown table of the times to the target accuracy."""
    key = itemgetter("network", "batch", "method", "target")
    lines = []
    for (network, batch, method, target), group in groupby(record["rows"], key):
        some = list(group)
        there = [row["seconds"] for row in some if row["seconds"] is not None]
        line = {
            "network": f"`{network}`",
            "batch": f"{batch:,}",
            "optimizer": method.upper(),
            "target": f"{target:.1%}",
            "time to the target": duration(mean(there)) if there else "never",
            "seeds that reach it": f"{len(there)} of {len(some)}",
            "final accuracy": f"{mean(x['accuracy'] for x in some):.1%}",
            "time of all epochs": duration(mean(row["seconds_in_all"] for row in some)),
        }
        lines.append(line)
    return markdown(lines)


TABLES = (
    Table(STUDY_ROWS, "scaling cpu", "scaling_cpu.json", speeds),
    Table(STUDY_ROWS, "scaling gpu", "scaling_gpu.json", speeds),
    Table(STUDY_ROWS, "time cpu", "time_cpu.json", times),
    Table(STUDY_ROWS, "time gpu", "time_gpu.json", times),
)


if __name__ == "__main__":
    commands: Any = {"speed": measure_speed, "time": measure_time}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
