"""Measures the trainer's whole step: what LARS and accumulation cost, and PyTorch.

    python -m benchmarks.speed.train_step [--torch PYTHON] [--networks resnet50 …]

The step is the trainer's on one device, on full-size uint8 images that lie there
already. Ratios are to plain SGD, which neither logs the norms of the layers nor checks
that gradients are finite. The optimizers' updates are timed alone too, as what LARS
adds may be less than the noise of a step. Where gradients are accumulated, ratios are
of seconds per image.

With --torch, another Python that has PyTorch is timed on ResNet-50; on a GPU both share
the memory. The table says where a step ran out of memory. Exits with an error if
gradients are not finite. Writes benchmarks/results/train_step_DEVICE.json after each
table.
"""

import argparse
import os
from functools import partial
from itertools import product
from typing import Any

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leaves PyTorch some memory

import jax
import numpy as np

import lars_optax
from benchmarks import results
from benchmarks.networks import TITLES, shapes
from benchmarks.results import BENCHMARKS, Record, Table
from benchmarks.speed import timer
from benchmarks.speed.optimizer_step import BASE, OPTIMIZERS, make_step
from benchmarks.speed.peer import start_peer
from benchmarks.speed.training import NETWORKS, TrainingStep, draw_batch
from examples.imagenet.models import image_pixels

PLAIN, LARS = "optax.sgd, no log", "lars_optax.lars"
# A step of ResNet-50 on two cores takes seconds, and to compile it many times minutes.
CPU = {"dtype": "float32", "batch_sizes": [8], "rounds": 5,
       "accumulating": "alexnet_bn", "micro_batch": 4}  # fmt: skip
GPU = {"dtype": "bfloat16", "batch_sizes": [32, 64, 128, 256, 512, 1024],
       "rounds": 20, "accumulating": "resnet50", "micro_batch": 128}  # fmt: skip
COLUMNS = {
    "ratio": ("ratio", 1, "{:.3f}"),
    "of fastest": ("ratio_of_fastest", 1, "{:.3f}"),
    "step, ms": ("median_seconds", 1e3, "{:.0f}"),
    "images/s": ("images_per_second", 1, "{:.1f}"),
    "temporary, MB": ("temporary_bytes", 1e-6, "{:.0f}"),
    "out of memory": ("out_of_memory", 1, "yes"),
}


def no_stats(_: Any, params: Any) -> Any:
    """Takes the place of `layer_stats`; reads nothing and returns finite numbers."""
    return jax.tree.map(lambda leaf: lars_optax.LayerStats(*np.ones(3, "f")), params)


def time_steps(
    steps: dict[str, timer.Step], rounds: int, images: dict[str, int]
) -> Record:
    """Times steps, ratios to the first of them, and adds the memory they take."""
    timed = timer.compare(steps, rounds, next(iter(steps)), images=images)
    for name, step in steps.items():
        if isinstance(step, TrainingStep):
            timed["steps"][name]["temporary_bytes"] = step.temporary_bytes
    return timed


def compare(
    network: str, size: int, dtype: str, rounds: int, python: str | None
) -> Record:
    """Times SGD without and with the log, LARS with it, their updates, and PyTorch."""
    ready = partial(TrainingStep, network, dtype, draw_batch(network, size))
    both = {name: OPTIMIZERS[name] for name in (BASE, LARS)}
    steps: dict[str, timer.Step] = {PLAIN: ready(both[BASE], layer_stats=no_stats)}
    steps |= {name: ready(tx) for name, tx in both.items()}
    images = dict.fromkeys(steps, size)
    for name, tx in both.items():
        steps[f"{name}, update alone"] = make_step(tx, shapes(network))
    task = {"batch_size": size, "side": image_pixels(network), "dtype": dtype}
    python = python if network == "resnet50" else None
    with start_peer(python, "torch_train", task) as peer:
        images |= dict.fromkeys(peer.steps, size)
        timed = time_steps(steps | peer.steps, rounds, images)
    return timed | {"torch": peer.versions}


def accumulate(
    network: str, size: int, dtype: str, rounds: int, counts: list[int]
) -> Record:
    """Times LARS that accumulates the gradients of so many micro-batches."""
    steps: dict[str, timer.Step] = {}
    for n in counts:
        batch, tx = draw_batch(network, n * size), OPTIMIZERS[LARS]
        step = TrainingStep(network, dtype, batch, tx, accumulate=n)
        steps[f"accumulate {n}"] = step
    images = dict(zip(steps, [n * size for n in counts], strict=True))
    return time_steps(steps, rounds, images)


def table(title: str, result: Record, dtype: str) -> str:
    """Returns the steps of one network and batch size, and what LARS adds to SGD."""
    kind, network, images = title.split(", ")
    what = "accumulating micro-batches of " if kind == "accumulate" else ""
    load = f"; load {result['load']:.1f}" if "load" in result else ""
    text = f"\n{TITLES[network]}, {what}{images}, {dtype}{load}\n\n"
    steps = result["steps"]
    text += results.table(steps, COLUMNS)
    alone = [f"{name}, update alone" for name in (BASE, LARS)]
    if all(name in steps for name in alone):
        sgd, lars = (steps[name]["median_seconds"] for name in alone)
        more = (lars - sgd) / steps[BASE]["median_seconds"]
        text += f"\nBy the updates alone LARS adds {more:.1%} to SGD's step.\n"
    return text


def page(record: Record) -> str:
    """Returns the tables of all networks and batch sizes."""
    found, dtype = record["results"].items(), record["dtype"]
    return "".join(table(title, result, dtype) for title, result in found)


TABLES = (
    Table(BENCHMARKS, "train_step_cpu", "train_step_cpu.json", page),
    Table(BENCHMARKS, "train_step_gpu", "train_step_gpu.json", page),
)


def main() -> None:
    device = jax.local_devices()[0]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    some = ["resnet50", "alexnet"]
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=some)
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="images of a step")
    parser.add_argument("--accumulating", choices=NETWORKS, help="one network")
    parser.add_argument("--accumulate", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--micro-batch", type=int, help="images, when accumulating")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, help="steps of each kind")
    parser.add_argument("--torch", metavar="PYTHON", help="one that has PyTorch")
    parser.set_defaults(**CPU if device.platform == "cpu" else GPU)
    given = parser.parse_args()
    tasks: list[Any] = []
    if given.accumulate:
        tasks += [(accumulate, given.accumulating, given.micro_batch, given.accumulate)]
    for each in product(given.networks, given.batch_sizes):
        tasks += [(compare, *each, given.torch)]
    record: Record = {"device": device.device_kind, "dtype": given.dtype, "results": {}}
    for measure, network, size, more in tasks:
        try:
            found = measure(network, size, given.dtype, given.rounds, more)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found = {"steps": {"any": {"out_of_memory": True}}}
        title = f"{measure.__name__}, {network}, {size} images"
        record["results"][title] = found
        print(table(title, found, given.dtype))
        results.save(f"train_step_{device.platform}.json", record)


if __name__ == "__main__":
    main()
