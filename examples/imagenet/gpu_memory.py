"""Finds the memory that a training step takes on a GPU, by compiling it for the GPU.

The machine needs no GPU. The memory is what XLA plans for the program. On a GPU it may
need more, because XLA times the convolutions of cuDNN there and takes the fastest.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from .compile_for import Gpu, memory
from .data.dataset import Share
from .dry_run import size
from .run.experiment import Experiment
from .run.recorder import IN_FLIGHT

_GIB = 2**30
_RESERVED = 0.75  # the share of a GPU's memory that JAX reserves by default
_MOST_COMPILATIONS = 6  # in the search for the largest batch


class Memory(NamedTuple):
    """The bytes that a step takes on one device."""

    state: int  # the old state, whose memory the new one takes
    batches: int  # the batches of this step and of those that wait for it
    temporary: int  # gradients, activations and all else that the step itself needs

    @property
    def total(self) -> int:
        return sum(self)


def describe_memory(experiment: Experiment, gpu: Gpu) -> Iterator[str]:
    """Yields lines about the memory that a step takes on each device.

    The devices of the experiment must come from `compile_for.gpus`. The lines say
    whether the step fits into the part of a GPU's memory that JAX reserves, and the
    largest batch that does. They take about three compilations.
    """
    plan, limit = experiment.plan, int(_RESERVED * memory(gpu))
    start = time.monotonic()
    found = compile_step(experiment, plan.images_per_slot)
    seconds = time.monotonic() - start
    yield f"compiled   for {plan.devices} × {gpu} in {seconds:.0f} s, not run"
    parts = (f"{part / _GIB:,.1f} of {name}" for name, part in found._asdict().items())
    verdict = "fits" if found.total <= limit else "does not fit"
    yield (
        f"           {found.total / _GIB:,.1f} GiB on each GPU: {', '.join(parts)}"
        f" arrays; this {verdict} into the {limit / _GIB:.1f} GiB that JAX reserves"
    )
    largest = largest_fit(
        lambda images: compile_step(experiment, images).total,
        (plan.images_per_slot, found.total),
        limit,
    )
    if largest is None:
        yield "largest    no batch that fits was found"
        return
    images, taken = largest
    each = images * plan.solvers * plan.accumulate
    yield (
        f"largest    {each:,} images on each GPU, {images:,} per slot, which take"
        f" {taken / _GIB:,.1f} GiB"
    )


def compile_step(experiment: Experiment, images_per_slot: int) -> Memory:
    """Compiles the step for a number of images per slot, and returns its memory."""
    plan, state = experiment.plan, experiment.shapes
    each = images_per_slot * plan.solvers * plan.accumulate
    one, _ = next(experiment.dataset.train.training(0, range(1), Share(1)))

    def rows(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((plan.devices * each, *x.shape[1:]), x.dtype)

    compiled = experiment.step.lower(state, jax.tree.map(rows, one)).compile()
    found: Any = compiled.memory_analysis()
    # The new state takes the memory of the old one; the metrics need their own.
    metrics = found.output_size_in_bytes - found.alias_size_in_bytes
    batches = (1 + IN_FLIGHT) * each * size(one)
    return Memory(size(state), batches, found.temp_size_in_bytes + metrics)


def largest_fit(
    measure: Callable[[int], int], first: tuple[int, int], limit: int
) -> tuple[int, int] | None:
    """Returns a large n with measure(n) ≤ limit, and measure(n), or None.

    None says that no n ≥ 1 was found to fit. If the measure is linear, n is within 1 %
    of the largest. `first` is an n ≥ 1 and its measure. A line through the two known
    measures nearest to the limit gives the next n to try. If this n is not between the
    largest that fits and the smallest that does not, their mean is tried. If all fit,
    twice the largest is tried.
    """
    known = {first[0]: first[1]}
    for _ in range(_MOST_COMPILATIONS):
        fits = max((n for n in known if known[n] <= limit), default=0)
        fails = min((n for n in known if n > fits), default=0)
        (a, at_a), *others = sorted(
            known.items(), key=lambda found: abs(found[1] - limit)
        )
        b, at_b = others[0] if others else (0, 0)
        n = int(a + (limit - at_a) * (b - a) / (at_b - at_a)) if at_a != at_b else 0
        if n <= fits or (fails and n >= fails):
            n = (fits + fails) // 2 if fails else 2 * fits
        if n < 1 or (n <= 1.01 * fits and others):
            break
        known[n] = measure(n)
    return max((x for x in known.items() if x[1] <= limit), default=None)
