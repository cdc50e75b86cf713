"""One optimizer step on the parameters of whole networks: time, compilation, memory.

    python -m benchmarks.speed.optimizer_step [--torch PYTHON] [--networks resnet50 …]

The step is what a training loop jits, `update` and `apply_updates` with donated state
and parameters, on the leaves of ResNet-50, AlexNet and ViT-B/16. The optimizers take
turns, a step each, and ratios are to `optax.sgd` with momentum, by medians and by the
fastest, of one run on one machine. A copy of all parameters, one read and one write,
takes its turn too, to tell what the memory gives. With --torch, a Python that has
PyTorch and timm takes its turns in a process of its own. Tracing and compiling take
turns as well. Needs a quiet machine; the load average is recorded. Writes
benchmarks/results/optimizer_step_DEVICE.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lars_optax
from benchmarks.speed.leaves import NETWORKS, shapes
from benchmarks.speed.peer import Peer
from examples.imagenet.provenance import provenance

RATE, DECAY, MOMENTUM = 1e-3, 5e-4, 0.9  # small: the weights stay what they are
BASE = "optax.sgd"
RESULTS = Path("benchmarks/results")
Step = Callable[[], float]  # takes one step, waits for it and returns the seconds

by_role = lars_optax.exclude_bias_and_norm
OPTIMIZERS: dict[str, Any] = {
    BASE: optax.sgd(RATE, MOMENTUM),
    "lars_optax.lars": lars_optax.lars(RATE, DECAY),
    "lars_optax.lars, all leaves": lars_optax.lars(
        RATE, DECAY, weight_decay_mask=True, trust_ratio_mask=True
    ),
    "optax.lars": optax.lars(RATE, DECAY, by_role, trust_ratio_mask=by_role),
    "optax.lars, all leaves": optax.lars(RATE, DECAY),
    "optax.lamb": optax.lamb(RATE, weight_decay=DECAY),
}


def train_step(tx: Any, params: Any, state: Any, grads: Any) -> Any:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def draw(tree: Any, scale: float) -> Any:
    """Normal numbers in the shapes and dtypes of a tree."""
    random = np.random.default_rng(0)

    def one(leaf: Any) -> jax.Array:
        x = random.standard_normal(leaf.shape, np.float32) * np.float32(scale)
        return jnp.asarray(x, leaf.dtype)

    return jax.tree.map(one, tree)


def build(tx: Any, tree: Any) -> tuple[Any, dict[str, float]]:
    """The compiled step, and what it took."""
    step = jax.jit(partial(train_step, tx), donate_argnums=(0, 1))
    start = time.perf_counter()
    lowered = step.lower(tree, jax.eval_shape(tx.init, tree), tree)
    then = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    return compiled, {"trace_seconds": then - start, "compile_seconds": end - then}


def examine(compiled: Any, size: int) -> dict[str, Any]:
    """What XLA made of it."""
    text = str(compiled.as_text())
    entry = text[text.index("\nENTRY") :]
    return {
        "passes_by_xla": compiled.cost_analysis()["bytes accessed"] / size,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "reductions": len(re.findall(r" reduce\(", text)),
        "kernels": len(re.findall(r" (?:fusion|reduce|call|dot)\(", entry)),
    }


def clock(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def stepper(compiled: Any, tx: Any, tree: Any, grads: Any) -> Step:
    params = draw(tree, 0.05)
    held = [params, tx.init(params)]

    def step() -> None:
        held[:] = jax.block_until_ready(compiled(*held, grads))

    return partial(clock, step)


def copier(size: int) -> Step:
    """One read and one write of so many bytes, on a CPU by a thread for each core."""
    if jax.default_backend() != "cpu":
        held = [jnp.ones(size // 4)]
        negate = jax.jit(jnp.negative, donate_argnums=0)

        def copy() -> None:
            held[0] = negate(held[0]).block_until_ready()

        return partial(clock, copy)
    threads = os.cpu_count() or 1
    source = np.ones((threads, size // threads), np.uint8)
    target = np.empty_like(source)
    pool = ThreadPoolExecutor(threads)
    return partial(clock, lambda: list(pool.map(np.copyto, target, source)))


def compare(
    network: str, dtype: str, rounds: int, python: str | None
) -> dict[str, Any]:
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes(network))
    leaves = jax.tree.leaves(tree)
    size = sum(x.size * x.dtype.itemsize for x in leaves)
    grads = draw(tree, 0.01)
    built = [
        {name: build(tx, tree) for name, tx in OPTIMIZERS.items()} for _ in range(3)
    ]
    found: dict[str, Any] = {}
    steps = {"copy": copier(size)}
    for name, tx in OPTIMIZERS.items():
        compiled = built[-1][name][0]
        found[name] = examine(compiled, size)
        for field in ("trace_seconds", "compile_seconds"):
            found[name][field] = median(each[name][1][field] for each in built)
        steps[name] = stepper(compiled, tx, tree, grads)
    record: dict[str, Any] = {"leaves": len(leaves), "bytes": size}
    with ExitStack() as stack:
        if python:
            adapted = jax.tree.leaves(by_role(tree))
            task = {"shapes": [x.shape for x in leaves], "adapted": adapted}
            peer = Peer(python, "torch_step.py", task | {"dtype": dtype})
            steps |= stack.enter_context(peer).steps
            record["torch"] = peer.versions
        for _ in range(3):  # touches memory for the first time; torch compiles twice
            for step in steps.values():
                step()
        record["load"] = os.getloadavg()[0]
        times = [{name: step() for name, step in steps.items()} for _ in range(rounds)]
    base = [row[BASE] for row in times]
    for name in steps:
        seconds = [row[name] for row in times]
        found.setdefault(name, {}).update(
            ratio=median(seconds) / median(base),
            ratio_of_fastest=min(seconds) / min(base),
            median_seconds=median(seconds),
            fastest_seconds=min(seconds),
        )
    for name, idle in dispatch(tree).items():
        found[name]["microseconds_per_leaf"] = 1e6 * idle / len(leaves)
    return record | {"optimizers": found}


def dispatch(tree: Any) -> dict[str, float]:
    """Seconds of a step on leaves of one element each: all but the arithmetic."""
    small = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1,) * x.ndim, x.dtype), tree)
    grads = draw(small, 0.01)
    steps = {
        name: stepper(build(tx, small)[0], tx, small, grads)
        for name, tx in OPTIMIZERS.items()
    }
    times = [{name: step() for name, step in steps.items()} for _ in range(50)]
    return {name: median(row[name] for row in times) for name in steps}


def import_milliseconds() -> float:
    """What `import lars_optax` adds to `import optax`, each time in a new process."""
    code = (
        "import time, optax; start = time.perf_counter(); import lars_optax; "
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    return 1e3 * median(float(subprocess.check_output(command)) for _ in range(9))


def show(record: dict[str, Any]) -> None:
    fields = {"ratio": ".2f", "ratio_of_fastest": ".2f", "median_seconds": ".4f",
              "trace_seconds": ".2f", "compile_seconds": ".2f", "passes_by_xla": ".1f",
              "reductions": "d", "kernels": "d", "microseconds_per_leaf": ".1f",
              "temporary_bytes": ".1e"}  # fmt: skip
    print(" " * 28, *(f"{name[:12]:>12}" for name in fields))
    for name, result in record["optimizers"].items():
        cells = (
            format(result[x], how) if x in result else "" for x, how in fields.items()
        )
        print(f"{name:28}", *(f"{cell:>12}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--torch", metavar="PYTHON", help="one that has PyTorch")
    arguments = parser.parse_args()
    device = jax.local_devices()[0]
    results: dict[str, Any] = {}
    for network in arguments.networks:
        for dtype in arguments.dtypes:
            print(f"\n{network}, {dtype}, {device.device_kind}", flush=True)
            results[f"{network} {dtype}"] = record = compare(
                network, dtype, arguments.rounds, arguments.torch
            )
            show(record)
    record = provenance() | {"device": device.device_kind, "results": results}
    record["import_adds_milliseconds"] = import_milliseconds()
    print(
        f"import lars_optax adds {record['import_adds_milliseconds']:.0f} ms to optax"
    )
    path = RESULTS / f"optimizer_step_{device.platform}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
