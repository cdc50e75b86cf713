"""How a batch is split over what works on it. Refuses one that does not divide."""

import math
from typing import NamedTuple

from .config import Batching


class Plan(NamedTuple):
    """batch = processes · devices · solvers · accumulate · images_per_slot."""

    processes: int
    devices: int  # of each process
    solvers: int  # slots side by side on each device
    accumulate: int  # slots one after the other
    images_per_slot: int  # images that share BatchNorm moments [images]

    def __str__(self) -> str:
        return (
            f"processes {self.processes} × devices {self.devices}"
            f" × solvers {self.solvers} × accumulate {self.accumulate}"
            f" × {self.images_per_slot:,} images"
        )


def make_plan(
    batching: Batching, devices: int, examples: int, processes: int = 1
) -> Plan:
    """The split of a batch that divides evenly; ValueError with the nearest that do."""
    batch = batching.batch_size
    parts = Plan(
        processes, devices, batching.solvers_per_device, batching.accumulate, 1
    )
    slots = math.prod(parts)
    if batch % slots == 0 and batch <= examples:
        return parts._replace(images_per_slot=batch // slots)
    over = f"{slots} devices" if slots == devices else f"{slots} slots ({parts})"
    # The largest that is not above, the smallest that is, of those there are images for
    low, high = min(batch, examples) // slots * slots, batch // slots * slots + slots
    near = [str(n) for n in (low, high) if 0 < n <= examples]
    if not near:
        problem = f"one image for each of {over} exceeds the {examples} training images"
        remedy = "give fewer of them"
    elif batch > examples:
        problem = f"{batch} exceeds the {examples} training images"
        remedy = f"give at most {low}"
    else:
        problem = f"{batch} does not divide over {over}"
        remedy = f"the nearest sizes that do: {', '.join(near)}"
    raise ValueError(f"--batch-size: {problem}; {remedy}")
