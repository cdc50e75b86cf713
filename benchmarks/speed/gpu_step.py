"""Measures training of ResNet-50 on one GPU: speed, memory and repeatability.

    python -m benchmarks.speed.gpu_step

Each run is a process that takes training steps in bfloat16 with LARS, on one batch in
the GPU's memory. Two runs have XLA's default operations and two have its deterministic
ones. The final parameters of each two are compared. Writes
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
    """The flags of this benchmark."""

    network: Network = "resnet50"  # the network to train
    batch_size: int = 256  # images in a batch
    dtype: Dtype = "bfloat16"  # dtype of activations and matrix products
    steps: int = 30  # training steps in each run


def run_twice(flags: str, **options: Any) -> Record:
    """Runs the same training twice, and returns both results and how they differ.

    `flags` are added to XLA_FLAGS. `options` are flags of benchmarks.speed.one_step.
    """
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
        raise SystemExit("JAX sees no GPU, so no file is written; run this on a GPU")
    save("gpu_step.json", results)


if __name__ == "__main__":
    main()
