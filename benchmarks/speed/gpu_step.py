"""Measures ResNet-50 on one GPU in bfloat16: speed, memory, and whether it repeats.

    python -m benchmarks.speed.gpu_step

The trainer's step with LARS runs on a fixed batch, which lies on the device. It runs
twice as it is and twice with XLA's deterministic operations, each time in its own
process, and the parameters of the two runs are compared. Writes
benchmarks/results/gpu_step.json. Without a GPU it runs but writes nothing.
"""

import os
import tempfile
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks.results import Record, save
from benchmarks.speed.training import Dtype, run_module
from examples.imagenet.config import Network

FLAGS = {"default": "", "deterministic": "--xla_gpu_deterministic_ops=true"}


class Options(NamedTuple):
    """What to run."""

    network: Network = "resnet50"  # the network to train
    batch_size: int = 256  # images in a batch
    dtype: Dtype = "bfloat16"  # of activations and products
    steps: int = 30  # updates of a run


def run_twice(flags: str, **options: Any) -> Record:
    """Returns two runs under the same XLA flags, and how their parameters differ."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    environment = os.environ | {"XLA_FLAGS": flags}
    module, runs, params = "benchmarks.speed.one_step", [], []
    with tempfile.TemporaryDirectory() as folder:
        for path in (f"{folder}/0.npz", f"{folder}/1.npz"):
            run = run_module(module, environment, **options, params=path)
            speed = run["batch_size"] / median(run["step_seconds"][1:])
            runs.append(run | {"images_per_second": speed})
            with np.load(path) as file:
                params.append([file[key] for key in file.files])
    pairs = list(zip(*params, strict=True))
    return {
        "runs": runs,
        "equal": all(a.tobytes() == b.tobytes() for a, b in pairs),
        "largest_difference_of_a_leaf_over_its_largest_value": max(
            float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs
        ),
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)._asdict()
    results = {name: run_twice(flags, **options) for name, flags in FLAGS.items()}
    for name, result in results.items():
        last = result["runs"][-1]
        print(
            f"{name}: {last['images_per_second']:,.0f} images/s,"
            f" {last['peak_memory_gib']:.1f} GiB, two runs equal: {result['equal']}"
        )
    if last["platform"] != "gpu":
        raise SystemExit("JAX sees no GPU, so nothing is written")
    save("gpu_step.json", results)


if __name__ == "__main__":
    main()
