"""Measures one optimizer step on whole networks: time, compilation and memory.

    python -m benchmarks.speed.optimizer_step [--torch PYTHON] [--networks resnet50 …]

The step is what a training loop jits: `update` and `apply_updates` with donated state
and parameters. The leaves are those of ResNet-50, AlexNet and ViT-B/16. Ratios are to
`optax.sgd` with momentum. A copy of all parameters, which is one read and one write, is
timed too and shows the speed of the memory. With --torch, the optimizers of PyTorch and
timm are timed in another Python. Run it on a quiet machine; the load average is
recorded. Writes benchmarks/results/optimizer_step_DEVICE.json after each table.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import lars_optax
from benchmarks import results
from benchmarks.networks import NETWORKS, TITLES, Network, shapes
from benchmarks.results import BENCHMARKS, COMPARED, Record, Table
from benchmarks.speed import timer
from benchmarks.speed.peer import start_peer
from benchmarks.speed.training import Dtype

RATE, DECAY, MOMENTUM = 1e-3, 5e-4, 0.9  # the weights hardly change at this rate
BASE, LARS = "optax.sgd", "lars_optax.lars"

by_role = lars_optax.exclude_bias_and_norm
OPTIMIZERS: dict[str, Any] = {
    BASE: optax.sgd(RATE, MOMENTUM),
    LARS: lars_optax.lars(RATE, DECAY),
    f"{LARS}, all leaves": lars_optax.lars(
        RATE, DECAY, weight_decay_mask=True, trust_ratio_mask=True
    ),
    "optax.lars": optax.lars(RATE, DECAY, by_role, trust_ratio_mask=by_role),
    "optax.lars, all leaves": optax.lars(RATE, DECAY),
    "optax.lamb": optax.lamb(RATE, weight_decay=DECAY),
    "optax.adamw": optax.adamw(RATE, weight_decay=DECAY),
}
# The optimizers in the table of docs/compared.md.
MAIN = (BASE, LARS, "optax.lars", "optax.lamb", "timm Lars",
        "timm Lars, compiled", "torch.optim.SGD, fused")  # fmt: skip
COLUMNS = {
    "ratio": ("ratio", 1, "{:.2f}"),
    "of fastest": ("ratio_of_fastest", 1, "{:.2f}"),
    "step, ms": ("median_seconds", 1e3, "{:.1f}"),
    "trace, s": ("trace_seconds", 1, "{:.2f}"),
    "compile, s": ("compile_seconds", 1, "{:.2f}"),
    "passes": ("passes_by_xla", 1, "{:.1f}"),
    "GB/s": ("bytes_per_second", 1e-9, "{:.0f}"),
    "reductions": ("reductions", 1, "{}"),
    "temporary, MB": ("temporary_bytes", 1e-6, "{:.0f}"),
    "μs a leaf": ("microseconds_per_leaf", 1, "{:.1f}"),
}


def draw(tree: Any, scale: float) -> Any:
    """Returns a tree of normally distributed arrays, with the tree's shapes and dtypes.

    Their standard deviation is `scale`.
    """
    random, factor = np.random.default_rng(0), np.float32(scale)

    def one(leaf: Any) -> jax.Array:
        x = random.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(factor * x, leaf.dtype)

    return jax.tree.map(one, tree)


def lower(tx: Any, tree: Any) -> Any:
    """Lowers a step of the optimizer `tx` on parameters with the shapes of `tree`."""

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(update, donate_argnums=(0, 1))
    return step.lower(tree, jax.eval_shape(tx.init, tree), tree)


def build(tx: Any, tree: Any) -> tuple[Any, Record]:
    """Compiles a step of the optimizer `tx` on parameters with the shapes of `tree`.

    Returns the compiled step, and a record: the seconds to trace and to compile it, and
    what XLA reports of the memory that it accesses and of its reductions.
    """
    start = time.perf_counter()
    lowered = lower(tx, tree)
    traced = time.perf_counter()
    compiled: Any = lowered.compile()
    end = time.perf_counter()
    return compiled, {
        "passes_by_xla": compiled.cost_analysis()["bytes accessed"] / bytes_of(tree),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "reductions": str(compiled.as_text()).count(" reduce("),
        "trace_seconds": traced - start,
        "compile_seconds": end - traced,
    }


def bytes_of(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def make_step(tx: Any, tree: Any, compiled: Any = None) -> timer.Step:
    """Returns a function that takes one optimizer step and returns its time [s].

    Parameters and gradients are random, with the shapes of `tree`. The step is compiled
    here unless `compiled` is given.
    """
    compiled = compiled or build(tx, tree)[0]
    params, grads = draw(tree, 0.05), draw(tree, 0.01)
    held = [params, tx.init(params)]

    def step() -> None:
        held[:] = jax.block_until_ready(compiled(*held, grads))

    return partial(timer.clock, step)


def make_copy(size: int) -> timer.Step:
    """Returns a function that copies `size` bytes and returns the seconds it takes.

    On a CPU it has a thread for each core.
    """
    if jax.default_backend() != "cpu":
        held = [jnp.ones(size // 4)]
        negate = jax.jit(jnp.negative, donate_argnums=0)

        def copy() -> None:
            held[0] = negate(held[0]).block_until_ready()

        return partial(timer.clock, copy)
    threads = os.cpu_count() or 1
    source = np.ones((threads, size // threads), np.uint8)
    target = np.empty_like(source)
    pool = ThreadPoolExecutor(threads)
    return partial(timer.clock, lambda: list(pool.map(np.copyto, target, source)))


def measure(network: str, dtype: str, rounds: int, python: str) -> Record:
    """Measures a step of each optimizer on a network, and a copy of its parameters.

    If `python` is the path of a Python with PyTorch and timm, their optimizers are
    measured too.
    """
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes(network))
    leaves = jax.tree.leaves(tree)
    size = bytes_of(tree)
    built = [{name: build(tx, tree) for name, tx in OPTIMIZERS.items()} for _ in "123"]
    found, steps = {}, {"copy": make_copy(size)}
    for name, tx in OPTIMIZERS.items():
        figures = [each[name][1] for each in built]
        found[name] = {k: median(each[k] for each in figures) for k in figures[0]}
        steps[name] = make_step(tx, tree, built[-1][name][0])
    adapted = jax.tree.leaves(by_role(tree))
    task = {"shapes": [x.shape for x in leaves], "adapted": adapted, "dtype": dtype}
    with start_peer(python, "torch_step", task) as (theirs, versions):
        # The first step touches memory for the first time, and torch compiles twice.
        timed = timer.compare(steps | theirs, rounds, BASE, warm_up=3)
    for name, row in timed.pop("steps").items():
        found[name] = found.get(name, {}) | row
    # On leaves of one element each almost no arithmetic is left.
    small = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1,) * x.ndim, x.dtype), tree)
    steps = {name: make_step(tx, small) for name, tx in OPTIMIZERS.items()}
    for name, row in timer.compare(steps, 50, BASE)["steps"].items():
        each = row["median_seconds"] / len(leaves)
        found[name]["microseconds_per_leaf"] = 1e6 * each
    about = {"leaves": len(leaves), "bytes": size, "torch": versions}
    return about | timed | {"optimizers": found}


def import_milliseconds() -> float:
    """Returns the milliseconds that `import lars_optax` takes after `import optax`.

    They are the median over nine new processes.
    """
    clock = "time.perf_counter()"
    code = f"import time, optax; t = {clock}; import lars_optax; print({clock} - t)"
    command = [sys.executable, "-c", code]
    return 1e3 * median(float(subprocess.check_output(command)) for _ in range(9))


def main_table(record: Record) -> str:
    """Returns the table of docs/compared.md: step times as multiples of SGD's."""
    rows = []
    for name in MAIN:
        row = {"one step": f"`{name}`" if "." in name else name}
        for title, result in record["results"].items():
            found = result["optimizers"].get(name)
            cell = f"{found['ratio']:.2f}" if found else "not run"
            row[full_title(title)] = cell
        rows.append(row)
    return results.markdown(rows)


def full_title(title: str) -> str:
    """Returns the heading "AlexNet, float32" for a title such as "alexnet float32"."""
    network, dtype = title.split()
    return f"{TITLES[network]}, {dtype}"


def table(title: str, result: Record) -> str:
    """Returns a heading and a Markdown table of the optimizers on one network."""
    text = f"\n{full_title(title)}: {result['leaves']} leaves,"
    text += f" {result['bytes'] / 1e6:.0f} MB; load {result['load']:.1f}\n\n"
    rows = {}
    for name, row in result["optimizers"].items():
        passes = 2 if name == "copy" else row.get("passes_by_xla", 0)
        speed = passes * result["bytes"] / row["median_seconds"] or None
        rows[name] = row | {"bytes_per_second": speed}
    return text + results.table(rows, COLUMNS)


def page(record: Record) -> str:
    """Returns the Markdown tables of all networks and dtypes, and the import time."""
    adds = record["import_adds_milliseconds"]
    tables = "".join(table(*result) for result in record["results"].items())
    return f"{tables}\n`import lars_optax` adds {adds:.0f} ms to `import optax`.\n"


TABLES = (
    Table(COMPARED, "speed", "optimizer_step_cpu.json", main_table),
    Table(BENCHMARKS, "optimizer_step_cpu", "optimizer_step_cpu.json", page),
    Table(BENCHMARKS, "optimizer_step_gpu", "optimizer_step_gpu.json", page),
)


def main(
    networks: tuple[Network, ...] = NETWORKS,
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16"),
    rounds: int = 20,
    torch: str = "",
) -> None:
    """Measures a step of each optimizer on each network in each dtype.

    Args:
      networks: the networks whose parameters are updated.
      dtypes: the dtypes of the parameters to measure with.
      rounds: number of timed steps of each optimizer.
      torch: path of a Python with PyTorch and timm; if empty, they are not measured.
    """
    device = jax.local_devices()[0]
    record: Record = {"device": device.device_kind, "results": {}}
    record["import_adds_milliseconds"] = import_milliseconds()
    for network, dtype in product(networks, dtypes):
        title = f"{network} {dtype}"
        found = measure(network, dtype, rounds, torch)
        record["results"][title] = found
        print(table(title, found), flush=True)
        results.save(f"optimizer_step_{device.platform}.json", record)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
