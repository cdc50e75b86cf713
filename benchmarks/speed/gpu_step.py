"""Measures ResNet-50 on one GPU in bfloat16: speed, memory, and whether it repeats.

    python -m benchmarks.speed.gpu_step

The trainer's step with LARS runs on a fixed batch, which lies on the device. It runs
twice as it is and twice with XLA's deterministic operations, each time in its own
process, and the parameters of the two runs are compared. Writes
benchmarks/results/gpu_step.json; without a GPU it runs, but writes nothing.
"""

import argparse
import os
import tempfile
from statistics import median

import numpy as np

from benchmarks.results import Record, save
from benchmarks.speed.training import run_module

FLAGS = {"default": "", "deterministic": "--xla_gpu_deterministic_ops=true"}


def run_twice(flags: str, *words: str) -> Record:
    """Returns two runs under the same XLA flags, and how their parameters differ."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    records, params = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2):
            path, module = f"{folder}/{i}.npz", "benchmarks.speed.one_step"
            record = run_module(module, *words, "--params", path, XLA_FLAGS=flags)
            speed = record["batch_size"] / median(record["step_seconds"][1:])
            records.append(record | {"images_per_second": speed})
            with np.load(path) as file:
                params.append([file[key] for key in file.files])
    pairs = list(zip(*params, strict=True))
    return {
        "runs": records,
        "equal": all(a.tobytes() == b.tobytes() for a, b in pairs),
        "largest_difference_of_a_leaf_over_its_largest_value": max(
            float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="resnet50", help="a network's name")
    parser.add_argument("--batch-size", type=int, default=256, help="images")
    parser.add_argument("--dtype", default="bfloat16", help="float32 or bfloat16")
    parser.add_argument("--steps", type=int, default=30, help="updates of a run")
    given = vars(parser.parse_args())
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    results = {name: run_twice(flags, *words) for name, flags in FLAGS.items()}
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
