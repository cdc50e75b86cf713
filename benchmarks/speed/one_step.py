"""Measures a training step of each full-size network on a CPU: time and peak memory.

    python -m benchmarks.speed.one_step

Each network has its own process, so that the peak memory is that network's. The step is
the trainer's with LARS, on images of 227 or 224 pixels a side, and is taken twice. The
first step takes longer, because its memory is new. Exits with an error if a loss is not
finite or LARS changed a kernel too little or too much. Writes
benchmarks/results/one_step.json.
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
    """The flags of this benchmark."""

    network: Network | None = None  # measure only this one and write no file
    batch_size: int = 8  # images in a batch
    dtype: Dtype = "float32"  # dtype of activations and matrix products
    steps: int = 2  # training steps to take
    params: str = ""  # with --network: save parameters here, use any device


def measure(network: Network, given: Options) -> Record:
    """Takes training steps on one device, and returns their times, losses and memory.

    Saves the parameters after the last step in the file `given.params` unless it is "".
    """
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
    """Exits with an error if a loss is not finite or a kernel changed unexpectedly.

    LARS should change a kernel by 0.001 of its norm in a step. From `old` to `new`, at
    least a tenth of that and at most five times that for each step is allowed, and more
    as the momentum grows.
    """
    most = 0.005 * len(losses) * (1 + len(losses) / 10)
    if not np.isfinite(losses).all():
        raise SystemExit(f"losses {losses} are not finite; nothing is written")
    mask = lars_optax.exclude_bias_and_norm(old)

    def moved(adapted: bool, old: Any, new: Any) -> bool:
        share = np.linalg.norm(new - old) / np.linalg.norm(old) if adapted else 1e-3
        return bool(1e-4 < share < most)

    if not jax.tree.all(jax.tree.map(moved, mask, old, new)):
        raise SystemExit(
            "LARS changed a kernel by less than 0.0001 or more than"
            f" {most:g} of its norm; nothing is written"
        )


def peak_memory() -> int:
    """Returns the peak memory in bytes: the GPU's or, without one, this process's."""
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
