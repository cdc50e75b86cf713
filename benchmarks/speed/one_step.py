"""Measures a training step of each full-size network on a CPU: time and peak memory.

    python -m benchmarks.speed.one_step

Each network has its own process, so that the peak memory is that network's. The step is
the trainer's with LARS, at 227 or 224 pixels, and is taken twice. The first step also
touches its memory for the first time. Exits with an error if a loss is not finite or a
kernel has not moved. Writes benchmarks/results/one_step.json.
"""

import json
import os
import resource
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

import lars_optax
from benchmarks.results import Record, save
from benchmarks.speed import training
from benchmarks.speed.training import Dtype, TrainingStep, draw_batch, run_module
from examples.imagenet.config import Network


class Options(NamedTuple):
    """What to measure."""

    network: Network | None = None  # measure and print this one, and write no file
    batch_size: int = 8  # images in a batch
    dtype: Dtype = "float32"  # of activations and products
    steps: int = 2  # updates to take
    params: str = ""  # with --network: save parameters here; any device


def measure(network: Network, given: Options) -> Record:
    """Returns what the steps took on one device."""
    tx = lars_optax.lars(1.0, weight_decay=5e-4)
    batch = draw_batch(network, given.batch_size)
    step = TrainingStep(network, given.dtype, batch, tx)
    seconds, losses = [], []
    for _ in range(given.steps):
        seconds.append(step())
        losses.append(step.metrics["loss"].item())
    peak = peak_memory()
    check(step.init().params, step.state.params, losses)
    leaves = jax.tree.leaves(step.state.params)
    if given.params:
        np.savez(given.params, *leaves)
    device = jax.local_devices()[0]
    return {
        "init_seconds": step.init_seconds,
        "compile_seconds": step.compile_seconds,
        "step_seconds": seconds,
        "loss": losses,
        "peak_memory_gib": peak / 2**30,
        "network": network,
        "dtype": given.dtype,
        "image_side": batch.images.shape[1],
        "batch_size": given.batch_size,
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "parameters": sum(leaf.size for leaf in leaves),
        "leaves": len(leaves),
    }


def check(old: Any, new: Any, losses: list[float]) -> None:
    """Exits with an error if a loss is not finite or a kernel has not moved as it must.

    A kernel should move by 0.001 of its norm in a step. A tenth to five times as much
    is allowed, and more as the momentum grows.
    """
    most = 0.005 * len(losses) * (1 + len(losses) / 10)
    if not np.isfinite(losses).all():
        raise SystemExit(f"losses are not finite: {losses}")
    mask = lars_optax.exclude_bias_and_norm(old)

    def moved(adapted: bool, old: Any, new: Any) -> bool:
        share = np.linalg.norm(new - old) / np.linalg.norm(old) if adapted else 1e-3
        return bool(1e-4 < share < most)

    if not jax.tree.all(jax.tree.map(moved, mask, old, new)):
        raise SystemExit("a kernel has not moved, or has moved too far")


def peak_memory() -> int:
    """Returns the most bytes ever in use on the GPU, or by this process without one."""
    if stats := jax.local_devices()[0].memory_stats():
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    given = tyro.cli(Options, description=__doc__)
    if given.network:
        if not given.params:
            jax.config.update("jax_platforms", "cpu")
        print(json.dumps(measure(given.network, given)))
        return
    found, options = {}, given._asdict()
    del options["network"], options["params"]
    for network in training.NETWORKS:
        record = run_module("benchmarks.speed.one_step", network=network, **options)
        found[network] = record | {"load": os.getloadavg()[0]}
        print(network, json.dumps(found[network]), flush=True)
    save("one_step.json", {"networks": found})


if __name__ == "__main__":
    main()
