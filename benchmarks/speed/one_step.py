"""Measures a training step of each full-size network on a CPU: time and peak memory.

    python -m benchmarks.speed.one_step

Each network has its own process, so that the peak memory is that network's. The step is
the trainer's with LARS, at 227 or 224 pixels, and is taken twice. Exits with an error
if a loss is not finite or a kernel has not moved. Writes
benchmarks/results/one_step.json.
"""

import argparse
import json
import os
import resource
import sys
from typing import Any

import jax
import numpy as np

import lars_optax
from benchmarks.results import Record, save
from benchmarks.speed.training import NETWORKS, TrainingStep, draw_batch, run_module
from examples.imagenet.models import networks


def measure(
    network: str, batch_size: int, dtype: str, steps: int, params: str | None
) -> Record:
    """Returns what the steps took on one device, and saves the parameters there."""
    tx = lars_optax.lars(1.0, weight_decay=5e-4)
    batch = draw_batch(network, batch_size)
    step = TrainingStep(network, dtype, batch, tx)
    seconds, losses = [], []
    for _ in range(steps):
        seconds.append(step())
        losses.append(step.metrics["loss"].item())
    peak = peak_memory()
    check(step.init().params, step.state.params, losses, steps)
    leaves = jax.tree.leaves(step.state.params)
    if params:
        np.savez(params, *leaves)
    device = jax.local_devices()[0]
    return {
        "init_seconds": step.init_seconds,
        "compile_seconds": step.compile_seconds,
        "step_seconds": seconds,
        "loss": losses,
        "peak_memory_gib": peak / 2**30,
        "network": network,
        "dtype": dtype,
        "image_side": batch.images.shape[1],
        "batch_size": batch_size,
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "parameters": sum(leaf.size for leaf in leaves),
        "leaves": len(leaves),
    }


def check(old: Any, new: Any, losses: list[float], steps: int) -> None:
    """Exits unless losses are finite and kernels moved by 0.001 of their norm a step.

    A kernel may move by a tenth to five times as much, and further as the momentum
    grows.
    """
    most = 0.005 * steps * (1 + steps / 10)
    if not np.isfinite(losses).all():
        raise SystemExit(f"losses are not finite: {losses}")
    mask = lars_optax.exclude_bias_and_norm(old)

    def moved(adapted: bool, old: Any, new: Any) -> bool:
        share = np.linalg.norm(new - old) / np.linalg.norm(old) if adapted else 1e-3
        return bool(1e-4 < share < most)

    if not all(jax.tree.leaves(jax.tree.map(moved, mask, old, new))):
        raise SystemExit("a kernel has not moved, or has moved too far")


def peak_memory() -> int:
    """Returns the most bytes ever in use on the GPU, or by this process without one."""
    if stats := jax.local_devices()[0].memory_stats():
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = networks()
    parser.add_argument("--network", choices=names, help="print one, write nothing")
    parser.add_argument("--batch-size", type=int, default=8, help="images")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    # The first step also touches its memory for the first time.
    parser.add_argument("--steps", type=int, default=2, help="updates")
    parser.add_argument("--params", help="use any device, and save parameters there")
    given = parser.parse_args()
    if given.network:
        if not given.params:
            jax.config.update("jax_platforms", "cpu")
        print(json.dumps(measure(**vars(given))))
        return
    found = {}
    for network in NETWORKS:
        words = (f"--network={network}", f"--batch-size={given.batch_size}",
                 f"--dtype={given.dtype}", f"--steps={given.steps}")  # fmt: skip
        record = run_module("benchmarks.speed.one_step", *words)
        found[network] = record | {"load": os.getloadavg()[0]}
        print(network, json.dumps(found[network]), flush=True)
    save("one_step.json", {"networks": found})


if __name__ == "__main__":
    main()
