"""Times steps that take turns, and compares their median times.

In every round each step is taken once, in an order drawn at random. If the machine
becomes slower meanwhile, this affects all steps alike.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from random import Random
from statistics import median
from typing import Any

Step = Callable[[], float]  # takes one step, waits for it and returns the seconds


def clock(step: Callable[[], Any]) -> float:
    """Calls `step` once and returns the seconds that the call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(
    steps: Mapping[str, Step],
    rounds: int,
    base: str = "",
    *,
    warm_up: int = 1,
    images: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Times all steps. Returns the load average, and each step's seconds and ratios.

    Ratios are to the step named `base`, which by default is the first. `warm_up` rounds
    come first and do not count. If `images` gives the number of images in a step,
    ratios are of seconds per image. A step that it does not name counts as many images
    as `base`. A step that returns NaN ran out of memory.
    """
    base = base or next(iter(steps))
    for _ in range(warm_up):
        for step in steps.values():
            step()
    load, random = os.getloadavg()[0], Random(0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            times[name].append(steps[name]())
    counts = images or {base: 1}

    def row(name: str) -> dict[str, Any]:
        seconds = times[name]
        if math.isnan(sum(seconds)):
            return {"out_of_memory": True}
        share = counts.get(name, counts[base]) / counts[base]
        found = {
            "median_seconds": median(seconds),
            "fastest_seconds": min(seconds),
            "ratio": median(seconds) / median(times[base]) / share,
            "ratio_of_fastest": min(seconds) / min(times[base]) / share,
        }
        if images and name in images:
            found["images_per_second"] = images[name] / median(seconds)
        return found

    return {"load": load, "steps": {name: row(name) for name in steps}}
