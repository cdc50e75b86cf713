"""One training step of each full-size network on a CPU: time and peak memory.

    python -m benchmarks.speed.one_step

Each network has a process of its own, so that the peak is its own; the step is the
trainer's, with LARS, at 227 or 224 pixels, compiled ahead and run twice. Refuses a
result in which a loss is not finite or a kernel has not moved. Writes
benchmarks/results/one_step.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lars_optax
from examples.imagenet.data.dataset import Batch
from examples.imagenet.models import image_pixels, make_model, published_pixel_std
from examples.imagenet.provenance import provenance
from examples.imagenet.step.step import init_state, train_step

NETWORKS = ("alexnet", "alexnet_bn", "resnet50")
BATCH = 8
STEPS = 2  # the first also touches its memory for the first time
RESULTS = Path("benchmarks/results/one_step.json")


def measure(
    network: str, batch_size: int, dtype: str = "float32", steps: int = STEPS
) -> tuple[dict[str, Any], Any]:
    """What so many steps on one device took, and the parameters after them."""
    side = image_pixels(network)
    std = published_pixel_std(network) or 1.0
    model = make_model(
        network, classes=1000, pixel_mean=128.0, pixel_std=std, dtype=dtype
    )
    tx = lars_optax.lars(1.0, weight_decay=5e-4)
    init = partial(init_state, 0, model, tx, (side, side, 3))
    start = time.perf_counter()
    state = jax.block_until_ready(init())
    record: dict[str, Any] = {"init_seconds": time.perf_counter() - start}

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, side, side, 3), np.uint8)
    labels = random.integers(0, 1000, batch_size, np.int32)
    batch = jax.device_put(Batch(images, labels))
    step = partial(train_step, model=model, tx=tx, axis_name=None)
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    record["compile_seconds"] = time.perf_counter() - start
    record["step_seconds"], record["loss"] = [], []
    for _ in range(steps):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        record["step_seconds"].append(time.perf_counter() - start)
        record["loss"].append(metrics["loss"].item())
    record["peak_memory_gib"] = peak_memory() / 2**30
    check(init().params, state.params, record["loss"], steps)
    leaves = jax.tree.leaves(state.params)
    return record | {
        "dtype": dtype,
        "image_side": side,
        "batch_size": batch_size,
        "devices": jax.device_count(),
        "parameters": sum(leaf.size for leaf in leaves),
        "leaves": len(leaves),
    }, jax.device_get(state.params)


def check(old: Any, new: Any, losses: list[float], steps: int) -> None:
    """Every kernel has moved by about 0.001 of its norm a step, and no loss is lost."""
    most = 0.005 * steps * (1 + steps / 10)  # as the momentum grows
    if not np.isfinite(losses).all():
        raise SystemExit(f"losses are not finite: {losses}")
    mask = lars_optax.exclude_bias_and_norm(old)

    def moved(adapted: bool, old: Any, new: Any) -> bool:
        share = np.linalg.norm(new - old) / np.linalg.norm(old) if adapted else 1e-3
        return bool(1e-4 < share < most)

    if not all(jax.tree.leaves(jax.tree.map(moved, mask, old, new))):
        raise SystemExit("a kernel has not moved, or too far")


def peak_memory() -> int:
    """Most bytes ever in a GPU's memory, or in this process's where there is none."""
    if stats := jax.local_devices()[0].memory_stats():
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, help="measure one, write none")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="images")
    arguments = parser.parse_args()
    if arguments.network:
        jax.config.update("jax_platforms", "cpu")
        print(json.dumps(measure(arguments.network, arguments.batch_size)[0]))
        return
    networks = {}
    for network in NETWORKS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.speed.one_step",
            "--network",
            network,
        ]
        command += ["--batch-size", str(arguments.batch_size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        networks[network] = json.loads(done.stdout) | {"load": os.getloadavg()[0]}
        print(network, json.dumps(networks[network]), flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps(provenance() | {"networks": networks}, indent=1) + "\n"
    )
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
