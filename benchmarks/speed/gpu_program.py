"""Counts kernels, bytes and memory of steps that are compiled for a GPU but not run.

    make gpu-program

XLA compiles for an NVIDIA H100 on a machine without one, if JAX's CUDA plugin is
installed. The steps are those of the optimizers on the leaves of whole networks, and
the trainer's step under its `pmap` on 1 and on 8 GPUs. `hlo.py` defines what counts as
a kernel and as a byte moved. Writes benchmarks/results/gpu_program.json after each
step.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from benchmarks import results
from benchmarks.networks import NETWORKS, TITLES, Network, shapes
from benchmarks.results import BENCHMARKS, Record, Table
from benchmarks.speed import hlo
from benchmarks.speed.optimizer_step import (
    BASE,
    LARS,
    OPTIMIZERS,
    bytes_of,
    full_title,
    lower,
)
from benchmarks.speed.training import PLAIN, Dtype, no_stats, trainers_step
from examples.imagenet import config
from examples.imagenet.compile_for import Gpu, gpus
from examples.imagenet.data.dataset import Batch
from examples.imagenet.models import image_pixels
from examples.imagenet.step.devices import parallelize

# The optimizer of each of the trainer's steps, and further arguments of the step.
STEPS: dict[str, tuple[Any, Record]] = {
    PLAIN: (OPTIMIZERS[BASE], {"layer_stats": no_stats}),
    BASE: (OPTIMIZERS[BASE], {}),
    LARS: (OPTIMIZERS[LARS], {}),
}
FILE = "gpu_program.json"
IMAGES = 256  # in a micro-batch on each device
LAYOUTS = {"b01f": "NHWC", "bf01": "NCHW"}  # from XLA's names
UPDATE_COLUMNS = {
    "kernels": ("kernels", 1, "{:,}"),
    "passes": ("passes", 1, "{:.2f}"),
    "temporary, MB": ("temporary_bytes", 1e-6, "{:.2f}"),
    "compile, s": ("compile_seconds", 1, "{:.1f}"),
}
MEASURED_COLUMNS = {
    "kernels, compiled": ("kernels", 1, "{:,}"),
    "passes, compiled": ("passes", 1, "{:.2f}"),
    "passes, by XLA": ("passes_by_xla", 1, "{:.2f}"),
    "passes at the copy's speed, ms": ("floor_seconds", 1e3, "{:.3f}"),
    "step, ms": ("median_seconds", 1e3, "{:.3f}"),
}
STEP_COLUMNS = {
    "arguments, GiB": ("argument_bytes", 2**-30, "{:.2f}"),
    "temporary, GiB": ("temporary_bytes", 2**-30, "{:.2f}"),
    "kernels": ("kernels", 1, "{:,}"),
    "GB moved": ("bytes", 1e-9, "{:,.1f}"),
    "in convolutions": ("convolution_bytes", 1e-9, "{:,.1f}"),
    "convolutions": ("convolutions", 1, "{}"),
    "activations transposed or copied, GB": ("transposed_bytes", 1e-9, "{:.2f}"),
    "copies": ("copies", 1, "{}"),
    "all-reduces": ("all_reduces", 1, "{}"),
    "all-reduced ÷ gradients": ("all_reduced_over_gradients", 1, "{:.4f}"),
    "compile, s": ("compile_seconds", 1, "{:.0f}"),
}


def compile_and_count(lowered: Any) -> tuple[list[hlo.Kernel], Record]:
    """Compiles a lowered step, and returns its kernels and a record of it."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    kernels = hlo.parse(compiled.as_text()).kernels()
    memory = compiled.memory_analysis()
    return kernels, {
        "kernels": sum(kernel.times for kernel in kernels),
        "bytes": sum(kernel.times * kernel.bytes for kernel in kernels),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": seconds,
    }


def measure_update(tx: Any, network: str, dtype: str, gpu: jax.Device) -> Record:
    """Returns what a step of an optimizer on the parameters of a network costs.

    A pass is as many bytes as the parameters have.
    """
    on_gpu = jax.sharding.SingleDeviceSharding(gpu)
    tree = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=on_gpu),
        shapes(network),
    )
    record = compile_and_count(lower(tx, tree))[1]
    return record | {"passes": record["bytes"] / bytes_of(tree)}


def measure_step(
    tx: Any,
    network: str,
    devices: Sequence[jax.Device],
    micro_batches: int,
    **options: Any,
) -> Record:
    """Returns what the trainer's step in bfloat16 under its `pmap` costs.

    Each micro-batch has `IMAGES` images of the network's full size on each device.
    `options` are further arguments of the trainer's `train_step`.
    """
    options |= {"platform": devices[0].platform, "accumulate": micro_batches}
    init, step = trainers_step(network, "bfloat16", tx, **options)
    state, side = jax.eval_shape(init), image_pixels(network)
    parallel = parallelize(step, devices, donate_state=True)
    rows = len(devices) * micro_batches * IMAGES
    batch = Batch(
        images=jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8),
        labels=jax.ShapeDtypeStruct((rows,), jnp.int32),
        mirror=jax.ShapeDtypeStruct((rows,), jnp.bool_),
    )
    kernels, record = compile_and_count(parallel.lower(state, batch))
    sizes = {leaf.size for leaf in jax.tree.leaves(state.params)}
    reduces = [k for k in kernels if k.instruction.opcode.startswith("all-reduce")]
    return record | {
        "gradient_bytes": bytes_of(state.params),
        "batch_stats_bytes": bytes_of(state.batch_stats),
        "all_reduces": sum(kernel.times for kernel in reduces),
        "all_reduced_bytes": sum(
            kernel.times * sum(operand.bytes for operand in kernel.operands)
            for kernel in reduces
        ),
        "convolutions": convolutions(kernels),
        "transposed_bytes": transposed_bytes(kernels, IMAGES, sizes),
        "convolution_bytes": sum(k.times * k.bytes for k in kernels if layout(k)),
        "copies": sum(k.times for k in kernels if k.instruction.opcode == "copy"),
    }


def layout(kernel: hlo.Kernel) -> str:
    """Returns the layout of a convolution's output, and "" for other kernels."""
    return kernel.instruction.attribute(r"dim_labels=\S+->(\w+)")


def convolutions(kernels: Iterable[hlo.Kernel]) -> dict[str, int]:
    """Returns how many convolutions have each dtype and layout, such as "bf16 NHWC".

    If the dtypes of the two operands and the output differ, all of them are named.
    """
    found: Counter[str] = Counter()
    for kernel in kernels:
        if name := layout(kernel):
            arrays = (*kernel.operands[:2], kernel.instruction)
            dtypes = sorted({array.outputs[0].dtype for array in arrays})
            found[f"{'/'.join(dtypes)} {LAYOUTS.get(name, name)}"] += kernel.times
    return dict(found)


def transposed_bytes(
    kernels: Iterable[hlo.Kernel], images: int, parameter_sizes: Collection[int]
) -> int:
    """Returns the bytes moved by kernels that copy or transpose an activation.

    An array is taken to be an activation if its number of elements is a multiple of
    `images` and is not in `parameter_sizes`.
    """
    total = 0
    for kernel in kernels:
        steps = (kernel.instruction, *kernel.fused.values())
        moved = [s.outputs[0].size for s in steps if s.opcode in ("copy", "transpose")]
        if any(n % images == 0 and n not in parameter_sizes for n in moved):
            total += kernel.times * kernel.bytes
    return total


def origin(record: Record) -> str:
    """Returns the line that stands above tables of compiled steps."""
    return f"\nCompiled for an {record['gpu'].upper()}, not run.\n"


def update_page(record: Record) -> str:
    """Returns the Markdown tables of the optimizers' steps."""
    text = origin(record)
    for title, result in record["updates"].items():
        text += f"\n{full_title(title)}: {result['leaves']} leaves,"
        text += f" {result['bytes'] / 1e6:.0f} MB\n\n"
        text += results.table(result["optimizers"], UPDATE_COLUMNS)
    return text


def step_page(record: Record) -> str:
    """Returns the Markdown tables of the trainer's step."""
    text = origin(record)
    for network, steps in record["steps"].items():
        text += f"\n{TITLES[network]}, bfloat16,"
        text += f" {record['images']} images in a micro-batch on each GPU\n\n"
        text += results.table({k: row(step) for k, step in steps.items()}, STEP_COLUMNS)
    return text


def measured_page(measured: Record) -> str:
    """Returns Markdown tables of the compiled steps beside the measured ones.

    `measured` is the content of optimizer_step_gpu.json.
    """
    updates, text = results.read(FILE)["updates"], ""
    for title, result in measured["results"].items():
        compiled = updates.get(title, {"optimizers": {}})["optimizers"]
        seconds = result["optimizers"]["copy"]["median_seconds"]
        rows = {}
        for name in (name for name in compiled if name in result["optimizers"]):
            both = result["optimizers"][name] | compiled[name]
            # A copy is two passes: it reads and writes the parameters.
            rows[name] = both | {"floor_seconds": seconds * both["passes"] / 2}
        text += f"\n{full_title(title)}, measured on {measured['device']}\n\n"
        text += results.table(rows, MEASURED_COLUMNS)
    return text


def row(step: Record) -> Record:
    """Returns the record of a trainer's step, with its fields as the table has them."""
    kinds = (f"{n:,} {kind}" for kind, n in step["convolutions"].items())
    ratio = step["all_reduced_bytes"] / step["gradient_bytes"] or None
    return step | {
        "all_reduces": step["all_reduces"] or None,
        "all_reduced_over_gradients": ratio,
        "convolutions": ", ".join(kinds),
    }


TABLES = (
    Table(BENCHMARKS, "gpu_program_measured", "optimizer_step_gpu.json", measured_page),
    Table(BENCHMARKS, "gpu_program_updates", FILE, update_page),
    Table(BENCHMARKS, "gpu_program_steps", FILE, step_page),
)


def main(
    compile_for: Gpu = "h100",
    networks: tuple[Network, ...] = NETWORKS,
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16"),
    trained: tuple[config.Network, ...] = ("resnet50_v1.5", "alexnet_bn"),
    devices: tuple[int, ...] = (1, 8),
    micro_batches: tuple[int, ...] = (1, 16),
) -> None:
    """Compiles each step and saves what its program costs.

    Args:
      compile_for: the GPU to compile for.
      networks: the networks whose parameters the optimizers update.
      dtypes: the dtypes of the parameters.
      trained: the networks that the trainer's step trains.
      devices: the numbers of GPUs that run the trainer's step.
      micro_batches: the numbers of micro-batches in the trainer's step.
    """
    record: Record = {"gpu": compile_for, "images": IMAGES, "updates": {}, "steps": {}}
    packages = ("jax-cuda13-plugin", "nvidia-cuda-nvcc")
    chips = {count: gpus(compile_for, count) for count in {1, *devices}}
    for network, dtype in product(networks, dtypes):
        tree = shapes(network)
        size = sum(leaf.size for leaf in jax.tree.leaves(tree))
        found = {
            "leaves": len(jax.tree.leaves(tree)),
            "bytes": size * jnp.dtype(dtype).itemsize,
            "optimizers": {
                name: measure_update(tx, network, dtype, *chips[1])
                for name, tx in OPTIMIZERS.items()
            },
        }
        record["updates"][f"{network} {dtype}"] = found
        results.save(FILE, record, packages)
    tasks = product(trained, devices, micro_batches, STEPS.items())
    for trainee, count, parts, (name, (tx, options)) in tasks:
        title = f"{count} GPU{'s' * (count > 1)}, {parts} micro-batch"
        title += f"{'es' * (parts > 1)}, {name}"
        step = measure_step(tx, trainee, chips[count], parts, **options)
        record["steps"].setdefault(trainee, {})[title] = step
        results.save(FILE, record, packages)
    print(update_page(record), step_page(record))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
