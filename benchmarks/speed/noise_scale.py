"""Measures what the trainer's --noise-scale adds to a training step.

    python -m benchmarks.speed.noise_scale

A step processes two slots in turn, on one device, with LARS. The same step with the
estimate of the noise scale takes turns with it. What the estimate adds is one pass over
the gradient of each slot, so it matters less if a slot has more images. Writes
benchmarks/results/noise_scale_cost_DEVICE.json.
"""

from functools import partial

import jax
import tyro

from benchmarks import results
from benchmarks.results import BENCHMARKS, Record, Table, markdown
from benchmarks.speed import timer
from benchmarks.speed.optimizer_step import LARS, OPTIMIZERS
from benchmarks.speed.training import TrainingStep, draw_batch

SLOTS = 2
# The network, the images in a slot, and the number of timed steps of each kind.
TASKS = (
    ("alexnet_bn_small", 256, 60),
    ("alexnet_bn_small", 64, 150),
    ("resnet50", 8, 8),
)
WITHOUT, WITH = "without", "with"


def measure(network: str, size: int, rounds: int) -> Record:
    """Times both kinds of step on two slots of `size` images."""
    batch, tx = draw_batch(network, SLOTS * size), OPTIMIZERS[LARS]
    ready = partial(TrainingStep, network, "float32", batch, tx, accumulate=SLOTS)
    steps: dict[str, timer.Step] = {
        name: ready(noise_scale=name == WITH) for name in (WITHOUT, WITH)
    }
    task = {"network": network, "slot": size, "rounds": rounds}
    return task | timer.compare(steps, rounds)


def page(record: Record) -> str:
    """Returns a Markdown table of what the noise scale adds to a step."""
    lines = []
    for row in record["rows"]:
        steps = row["steps"]
        lines.append(
            {
                "network": row["network"],
                "images in a slot": str(row["slot"]),
                "step, ms": f"{1e3 * steps[WITHOUT]['median_seconds']:.1f}",
                "added, %": f"{100 * (steps[WITH]['ratio'] - 1):.1f}",
            }
        )
    return markdown(lines)


TABLES = (Table(BENCHMARKS, "noise_scale_cost", "noise_scale_cost_cpu.json", page),)


def main() -> None:
    rows = [measure(*task) for task in TASKS]
    platform = jax.default_backend()
    results.save(f"noise_scale_cost_{platform}.json", {"rows": rows})
    print(page({"rows": rows}))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
