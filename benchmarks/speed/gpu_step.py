"""ResNet-50 on one GPU in bfloat16: images per second, memory, and whether it repeats.

    python -m benchmarks.speed.gpu_step

Runs the trainer's step with LARS on a fixed batch, twice as it is and twice with XLA's
deterministic operations, each in a process of its own, and compares the parameters of
the two. The batch lies on the device: no input pipeline is measured. Writes
benchmarks/results/gpu_step.json; where JAX sees no GPU it runs, but writes nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from benchmarks.speed.one_step import measure
from examples.imagenet.provenance import provenance

FLAGS = {"default": "", "deterministic": "--xla_gpu_deterministic_ops=true"}
RESULTS = Path("benchmarks/results/gpu_step.json")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures in this process; leaves the parameters beside."""
    record, params = measure(
        arguments.network, arguments.batch_size, arguments.dtype, arguments.steps
    )
    np.savez(arguments.params, *jax.tree.leaves(params))
    seconds = record["step_seconds"]
    record["images_per_second"] = arguments.batch_size / median(seconds[1:])
    device = jax.local_devices()[0]
    return record | {
        "network": arguments.network,
        "platform": device.platform,
        "device": device.device_kind,
    }


def twice(name: str, words: list[str]) -> dict[str, Any]:
    """Two runs under the same flags, and by how much their parameters differ."""
    records, params = [], []
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS[name]}".strip()
    }
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2):
            path = f"{folder}/{i}.npz"
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.speed.gpu_step",
                    *words,
                    "--params",
                    path,
                ],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env=environment,
            )
            records.append(json.loads(done.stdout))
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
    parser.add_argument("--params", help="measure once, and leave parameters there")
    arguments = parser.parse_args()
    if arguments.params:
        print(json.dumps(run(arguments)))
        return
    words = sys.argv[1:]
    results = {name: twice(name, words) for name in FLAGS}
    for name, result in results.items():
        last = result["runs"][-1]
        print(
            f"{name}: {last['images_per_second']:,.0f} images/s,"
            f" {last['peak_memory_gib']:.1f} GiB, two runs equal: {result['equal']}"
        )
    if last["platform"] != "gpu":
        raise SystemExit("JAX sees no GPU: nothing is written")
    RESULTS.write_text(json.dumps(provenance() | results, indent=1) + "\n")
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
