"""`--dry-run --compile-for`: the memory of a step, and the largest batch that fits."""

import jax
import numpy as np
import pytest
from cases import assert_usage

from examples.imagenet.cli import bind, parse
from examples.imagenet.gpu_memory import compile_step, largest_fit
from examples.imagenet.run.recorder import IN_FLIGHT

FLAGS = "--network alexnet_bn_small --dry-run --devices 2 --batch-size 64"


@pytest.mark.usefixtures("eight_devices")  # so that --devices starts no others
@pytest.mark.parametrize("engine", ["pmap", "shard_map"])
@pytest.mark.parametrize("slots", ["--accumulate 2", "--solvers-per-device 2"])
def test_the_parts_of_the_memory_are_those_of_the_compiled_step(engine, slots):
    """Compiled for virtual CPU devices, for which XLA reports the same quantities."""
    experiment = bind(parse(f"{FLAGS} --engine {engine} {slots}".split()))
    parameters = sum(x.size for x in jax.tree.leaves(experiment.shapes.params))
    found = compile_step(experiment, 16)
    # Each has a momentum; the rest is BatchNorm's statistics, a key and counters.
    assert 8 * parameters < found.state < 8.1 * parameters
    assert found.batches == (1 + IN_FLIGHT) * 32 * (28 * 28 + 4)
    assert found.temporary > 4 * parameters  # the gradients at least
    assert found.total == found.state + found.batches + found.temporary
    more = compile_step(experiment, 32)
    assert (more.state, more.batches) == (found.state, 2 * found.batches)
    assert more.temporary > 1.2 * found.temporary


@pytest.mark.parametrize("start", [1, 7, 300, 50_000])
@pytest.mark.parametrize("constant", [0, 50, 9_000])
def test_a_size_near_the_largest_is_found_if_the_measure_is_linear(start, constant):
    def measure(n):
        return constant + 3 * n

    n, taken = largest_fit(measure, (start, measure(start)), 10_000)
    assert taken == measure(n) <= 10_000 < measure(int(1.01 * n) + 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_large_size_that_fits_is_found_if_the_measure_is_not_linear(seed):
    noise = np.random.RandomState(seed).uniform(0.8, 1.2, 10_001)

    def measure(n):
        return int(noise[min(n, 10_000)] * 10 * n)

    n, taken = largest_fit(measure, (10, measure(10)), 10_000)
    assert taken == measure(n) <= 10_000
    assert n > 700


def test_there_is_no_size_if_one_does_not_fit():
    assert largest_fit(lambda n: 10 * n, (4, 40), 9) is None
    assert largest_fit(lambda n: 10 * n, (1, 10), 9) is None


def test_only_a_dry_run_compiles_for_another_machine(capsys):
    message = "--compile-for: got 'h100'; give --dry-run too"
    assert_usage(message, "--compile-for h100", capsys)
