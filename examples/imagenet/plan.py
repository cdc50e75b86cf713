"""Splits a batch evenly over processes and devices, or names sizes that divide."""

import math
from typing import NamedTuple

from .config import Batching


class Plan(NamedTuple):
    """The factors into which a batch is split; their product is the batch size.

    Each device processes its images in parts, called slots, which have BatchNorm
    statistics of their own: `solvers` slots at a time, `accumulate` times in turn.
    """

    processes: int
    devices: int  # of each process
    solvers: int
    accumulate: int
    images_per_slot: int

    def __str__(self) -> str:
        factors = self._asdict().items()
        return " × ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in factors)


def make_plan(
    batching: Batching, devices: int, examples: int, processes: int = 1
) -> Plan:
    """Returns the even split of a batch over `processes` with `devices` each.

    Raises ValueError, with the nearest batch sizes that are possible, if the batch does
    not divide evenly or has more images than the `examples` of the training set.
    """
    batch = batching.batch_size
    factors = (processes, devices, batching.solvers_per_device, batching.accumulate)
    slots = math.prod(factors)
    if batch % slots == 0 and batch <= examples:
        return Plan(*factors, batch // slots)
    # The nearest sizes below and above, as far as there are images.
    low, high = min(batch, examples) // slots * slots, batch // slots * slots + slots
    near = " or ".join(str(size) for size in (low, high) if 0 < size <= examples)
    raise ValueError(
        f"--batch-size: got {batch}; it must be at most {examples}, the number of"
        f" training images, and divisible by {slots} = {' × '.join(map(str, factors))}"
        " (--processes × --devices × --solvers-per-device ×"
        " --accumulate);"
        f" give {near or 'fewer devices, or smaller values of these flags'}"
    )
