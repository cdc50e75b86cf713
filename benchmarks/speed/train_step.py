"""Measures what LARS and gradient accumulation add to the trainer's training step.

    python -m benchmarks.speed.train_step [--torch PYTHON] [--networks resnet50 …]

The step is the trainer's on one device, on full-size uint8 images that are already in
its memory. Ratios are to plain SGD, which neither logs the norms of the layers nor
checks that gradients are finite. The optimizers' updates are also timed alone, because
LARS may add less than the noise of a step. Where gradients are accumulated, ratios are
of seconds per image.

With --torch, PyTorch's step of ResNet-50 is timed in another Python; on a GPU the two
share the memory. The table says which steps ran out of memory. Exits with an error if
gradients are not finite. Writes benchmarks/results/train_step_DEVICE.json after each
table.
"""

import os
from functools import partial
from itertools import product
from typing import Any, NamedTuple

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leaves PyTorch some memory

import jax
import tyro

from benchmarks import results
from benchmarks.networks import TITLES, shapes
from benchmarks.results import BENCHMARKS, Record, Table
from benchmarks.speed import timer
from benchmarks.speed.optimizer_step import BASE, LARS, OPTIMIZERS, make_step
from benchmarks.speed.peer import start_peer
from benchmarks.speed.training import (
    PLAIN,
    Dtype,
    Network,
    TrainingStep,
    draw_batch,
    no_stats,
)
from examples.imagenet.models import image_pixels


class Options(NamedTuple):
    """The flags of this benchmark."""

    dtype: Dtype  # dtype of activations and matrix products
    rounds: int  # number of timed steps of each kind
    batch_sizes: tuple[int, ...]  # images in a step
    accumulating: Network  # the network whose gradients are accumulated
    micro_batch: int  # images in a micro-batch where gradients are accumulated
    networks: tuple[Network, ...] = ("resnet50", "alexnet")
    accumulate: tuple[int, ...] = (1, 8, 32)  # micro-batches in a step
    torch: str = ""  # path of a Python with PyTorch, to measure that too


# A step of ResNet-50 takes seconds on two cores, and compiling several takes minutes.
CPU = Options("float32", 5, (8,), "alexnet_bn", 4)
GPU = Options("bfloat16", 20, (32, 64, 128, 256, 512, 1024), "resnet50", 128)
COLUMNS = {
    "ratio": ("ratio", 1, "{:.3f}"),
    "of fastest": ("ratio_of_fastest", 1, "{:.3f}"),
    "step, ms": ("median_seconds", 1e3, "{:.0f}"),
    "images/s": ("images_per_second", 1, "{:.1f}"),
    "temporary, MB": ("temporary_bytes", 1e-6, "{:.0f}"),
    "out of memory": ("out_of_memory", 1, "yes"),
}


def time_steps(
    steps: dict[str, timer.Step], rounds: int, images: dict[str, int]
) -> Record:
    """Times several kinds of training step in turn, `rounds` times each.

    Returns for each kind its median time, the ratio of that to the first kind's, its
    speed with this many `images` in a batch, and the temporary memory it needs.
    """
    timed = timer.compare(steps, rounds, images=images)
    for name, step in steps.items():
        if isinstance(step, TrainingStep):
            timed["steps"][name]["temporary_bytes"] = step.temporary_bytes
    return timed


def compare(network: Network, size: int, given: Options) -> Record:
    """Times training steps of a network at one batch size, with SGD and with LARS.

    SGD is timed without and with the norms that the trainer logs. The updates of both
    optimizers are also timed alone, and for ResNet-50 PyTorch's step.
    """
    ready = partial(TrainingStep, network, given.dtype, draw_batch(network, size))
    both = {name: OPTIMIZERS[name] for name in (BASE, LARS)}
    steps: dict[str, timer.Step] = {PLAIN: ready(both[BASE], layer_stats=no_stats)}
    steps |= {name: ready(tx) for name, tx in both.items()}
    images = dict.fromkeys(steps, size)
    for name, tx in both.items():
        steps[f"{name}, update alone"] = make_step(tx, shapes(network))
    task = {"batch_size": size, "side": image_pixels(network), "dtype": given.dtype}
    python = given.torch if network == "resnet50" else ""
    with start_peer(python, "torch_train", task) as (theirs, versions):
        images |= dict.fromkeys(theirs, size)
        timed = time_steps(steps | theirs, given.rounds, images)
    return timed | {"torch": versions}


def accumulate(network: Network, size: int, given: Options) -> Record:
    """Times training steps with LARS for each number of accumulated micro-batches.

    A micro-batch has `size` images.
    """
    images = {f"accumulate {n}": n * size for n in given.accumulate}
    steps: dict[str, timer.Step] = {}
    for (name, count), n in zip(images.items(), given.accumulate, strict=True):
        batch, tx = draw_batch(network, count), OPTIMIZERS[LARS]
        steps[name] = TrainingStep(network, given.dtype, batch, tx, accumulate=n)
    return time_steps(steps, given.rounds, images)


def table(title: str, result: Record, dtype: str) -> str:
    """Returns a Markdown table of step times, and what LARS adds to SGD's step."""
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
    """Returns the Markdown tables of all networks and batch sizes."""
    found, dtype = record["results"].items(), record["dtype"]
    return "".join(table(title, result, dtype) for title, result in found)


TABLES = (
    Table(BENCHMARKS, "train_step_cpu", "train_step_cpu.json", page),
    Table(BENCHMARKS, "train_step_gpu", "train_step_gpu.json", page),
)


def main() -> None:
    device = jax.local_devices()[0]
    default = CPU if device.platform == "cpu" else GPU
    given = tyro.cli(Options, default=default, description=__doc__)
    tasks: list[Any] = list(product([compare], given.networks, given.batch_sizes))
    if given.accumulate:
        tasks.insert(0, (accumulate, given.accumulating, given.micro_batch))
    record: Record = {"device": device.device_kind, "dtype": given.dtype, "results": {}}
    for measure, network, size in tasks:
        try:
            found = measure(network, size, given)
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
