"""The trainer's whole step: what LARS adds, what accumulation costs, and PyTorch's.

    python -m benchmarks.speed.train_step [--torch PYTHON] [--networks resnet50 …]

The step is the trainer's on one device, jitted, its state donated, on full-size uint8
images that lie there already; all that is compared takes turns, a step each. Ratios are
to plain SGD: without the log of every layer's norms, and so without the check that
gradients are finite. Updates alone take turns too, as what LARS adds may be less than a
step's noise. First LARS accumulates gradients: there ratios are of seconds per image.

With --torch, a Python that has PyTorch takes turns at ResNet-50; on a GPU both share
the memory. Where a step does not fit, its table says out of memory; one that is not
finite is refused. Writes benchmarks/results/train_step_DEVICE.json, anew after each
table.
"""

import argparse
import json
import math
import os
import time
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leaves PyTorch some memory

import jax
import numpy as np

import lars_optax
from benchmarks.speed import optimizer_step as update
from benchmarks.speed.leaves import shapes
from benchmarks.speed.one_step import NETWORKS
from benchmarks.speed.peer import Peer
from examples.imagenet.data.dataset import Batch
from examples.imagenet.models import image_pixels, make_model, published_pixel_std
from examples.imagenet.provenance import provenance
from examples.imagenet.step.step import init_state, train_step

PLAIN, SGD, LARS = "optax.sgd, no log", update.BASE, "lars_optax.lars"
# A step of ResNet-50 on two cores takes seconds, and to compile it many times minutes.
CPU = {"dtype": "float32", "batch_sizes": [8], "rounds": 5,
       "accumulating": "alexnet_bn", "micro_batch": 4}  # fmt: skip
GPU = {"dtype": "bfloat16", "batch_sizes": [32, 64, 128, 256, 512, 1024],
       "rounds": 20, "accumulating": "resnet50", "micro_batch": 128}  # fmt: skip


def no_stats(_: Any, params: Any) -> Any:
    """In place of `layer_stats`: reads nothing, and says that all is finite."""
    return jax.tree.map(lambda leaf: lars_optax.LayerStats(*np.ones(3, "f")), params)


def draw_batch(network: str, size: int) -> Any:
    random, side = np.random.default_rng(0), image_pixels(network)
    images = random.integers(0, 256, (size, side, side, 3), np.uint8)
    return jax.device_put(Batch(images, random.integers(0, 1000, size, np.int32)))


def prepare(
    network: str, dtype: str, batch: Any, tx: Any, **options: Any
) -> tuple[update.Step, dict[str, Any]]:
    """The trainer's step on that batch, and the memory XLA takes for it."""
    std: Any = published_pixel_std(network)
    pixels = {"pixel_mean": 128.0, "pixel_std": std}
    model = make_model(network, classes=1000, dtype=dtype, **pixels)
    held: Any = [init_state(0, model, tx, batch.images.shape[1:]), None]
    step = partial(train_step, model=model, tx=tx, axis_name=None, **options)
    compiled: Any = jax.jit(step, donate_argnums=0).lower(held[0], batch).compile()

    def turn() -> float:
        start = time.perf_counter()
        held[:] = jax.block_until_ready(compiled(held[0], batch))
        seconds = time.perf_counter() - start
        if not held[1]["finite"]:
            raise SystemExit(f"{network}: a step was not finite")
        return seconds

    return turn, {"temporary_bytes": compiled.memory_analysis().temp_size_in_bytes}


def take_turns(
    steps: dict[str, update.Step], rounds: int, found: Any, images: dict[str, int]
) -> dict[str, Any]:
    """Adds seconds to what was found; all have run before, the first is the base."""
    load = os.getloadavg()[0]
    times = [{name: step() for name, step in steps.items()} for _ in range(rounds)]
    base, *_ = steps
    for name in steps:
        seconds = [turn[name] for turn in times]
        if math.isnan(sum(seconds)):
            found[name] = {"out_of_memory": True}
            continue
        row, first = found.setdefault(name, {}), found[base]
        row["median_seconds"], row["fastest_seconds"] = median(seconds), min(seconds)
        more = images.get(name, images[base]) / images[base]
        row["ratio"] = row["median_seconds"] / first["median_seconds"] / more
        row["ratio_of_fastest"] = min(seconds) / first["fastest_seconds"] / more
        if name in images:
            row["images_per_second"] = images[name] / median(seconds)
    return {"load": load, "steps": found}


def compare(
    network: str, size: int, dtype: str, rounds: int, python: str | None
) -> dict[str, Any]:
    """SGD without and with the log, LARS with it, their updates alone, PyTorch."""
    batch, tree = draw_batch(network, size), shapes(network)
    grads = update.draw(tree, 0.01)
    ready = partial(prepare, network, dtype, batch)
    both = {name: update.OPTIMIZERS[name] for name in (SGD, LARS)}
    whole = {PLAIN: ready(both[SGD], layer_stats=no_stats)}
    whole |= {name: ready(tx) for name, tx in both.items()}
    found = {name: about for name, (_, about) in whole.items()}
    steps = {name: step for name, (step, _) in whole.items()}
    images = dict.fromkeys(steps, size)
    for name, tx in both.items():
        step = update.stepper(update.build(tx, tree)[0], tx, tree, grads)
        steps[f"{name}, update alone"] = step
    versions = None
    with ExitStack() as stack:
        if python and network == "resnet50":
            task = {"batch_size": size, "side": image_pixels(network), "dtype": dtype}
            peer = stack.enter_context(Peer(python, "torch_train.py", task))
            versions = peer.versions
            steps |= peer.steps
            images |= dict.fromkeys(peer.steps, size)
        for step in steps.values():  # PyTorch compiles
            step()
        record = take_turns(steps, rounds, found, images)
    return record | {"torch": versions}


def accumulate(
    network: str, size: int, dtype: str, rounds: int, counts: list[int]
) -> dict[str, Any]:
    """Micro-batches of that size, so many one after the other."""
    images = {f"accumulate {n}": n * size for n in counts}
    steps, found, lars = {}, {}, update.OPTIMIZERS[LARS]
    for name, n in zip(images, counts, strict=True):
        batch = draw_batch(network, n * size)
        steps[name], found[name] = prepare(network, dtype, batch, lars, accumulate=n)
    for name, step in steps.items():
        step()
        # All states and batches are there: the peak grows by what a step takes.
        if stats := jax.local_devices()[0].memory_stats():
            found[name]["peak_bytes_so_far"] = stats["peak_bytes_in_use"]
    return take_turns(steps, rounds, found, images)


def show(title: str, record: dict[str, Any]) -> None:
    fields = {"median_seconds": ".4f", "fastest_seconds": ".4f", "ratio": ".3f",
              "ratio_of_fastest": ".3f", "images_per_second": ".1f",
              "temporary_bytes": ".2e", "peak_bytes_so_far": ".2e",
              "out_of_memory": ""}  # fmt: skip
    print(f"\n{title}\n{'':28}", *(f"{name[:12]:>12}" for name in fields))
    for name, row in record["steps"].items():
        cells = (format(row[x], how) if x in row else "" for x, how in fields.items())
        print(f"{name:28}", *(f"{cell:>12}" for cell in cells), flush=True)


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
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--torch", metavar="PYTHON", help="one that has PyTorch")
    parser.set_defaults(**CPU if device.platform == "cpu" else GPU)
    given = parser.parse_args()
    tasks: list[Any] = []
    if given.accumulate:
        tasks += [(accumulate, given.accumulating, given.micro_batch, given.accumulate)]
    for each in product(given.networks, given.batch_sizes):
        tasks += [(compare, *each, given.torch)]
    record = provenance() | {"device": device.device_kind, "dtype": given.dtype}
    path = Path(f"benchmarks/results/train_step_{device.platform}.json")
    for measure, network, size, more in tasks:
        try:
            found = measure(network, size, given.dtype, given.rounds, more)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found = {"steps": {"any": {"out_of_memory": True}}}
        title = f"{measure.__name__}, {network}, {size} images"
        record.setdefault("results", {})[title] = found
        show(f"{title}, {given.dtype}, {device.device_kind}", found)
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
