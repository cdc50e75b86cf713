"""Slots of a batch: the same in turn, side by side, in a loop, on any device."""

import math
import re
from functools import partial

import jax
import numpy as np
import pytest
import steps

from examples.imagenet.data.dataset import Batch
from examples.imagenet.step import devices as engine
from examples.imagenet.step.moments import to_moments


def test_slots_are_the_same_on_any_device_with_batch_norm_and_dropout(devices):
    """Four slots of 4 images: moments and dropout go by a slot's number, not its place.

    There is no reference without slots: a slot is what BatchNorm sees.
    """
    setup = steps.make_setup(steps.NOISY, algorithm="lars", learning_rate=5.0)
    batches = [steps.make_batch(seed, 16) for seed in range(3)]
    four, _ = steps.run(setup, batches, devices)
    for n, options in [
        (1, {"accumulate": 4}),
        (1, {"solvers": 4}),
        (2, {"solvers": 2, "name": "shard_map"}),
    ]:
        other, _ = steps.run(setup, batches, devices[:n], **options)
        steps.assert_params_close(other.params, four.params, steps.ROUNDINGS)
        steps.assert_params_close(other.batch_stats, four.batch_stats, 1e-5)
    # Two slots are another network: the test can tell.
    two, _ = steps.run(setup, batches, devices[:2])
    with pytest.raises(AssertionError):
        steps.assert_params_close(two.params, four.params, steps.ROUNDINGS)


def test_a_loop_over_slots_is_what_they_are_unrolled(devices):
    """GPUs take the loop, CPUs do not."""
    setup = steps.make_setup(steps.NOISY, algorithm="sgd", learning_rate=0.1)
    batches = [steps.make_batch(seed, 12) for seed in range(2)]
    unrolled, _ = steps.run(setup, batches, devices[:1], accumulate=3, solvers=2)
    step, state = steps.step_of(setup, accumulate=3, solvers=2), steps.start(setup)
    loop = partial(step, platform="gpu")
    spelt_out = convolutions(partial(step, platform="cpu"), state, batches[0])
    assert spelt_out == 3 * convolutions(loop, state, batches[0])
    step = jax.jit(loop)
    for batch in batches:
        state, _ = step(state, batch)
    steps.assert_params_close(state.params, unrolled.params, steps.ROUNDINGS)
    steps.assert_params_close(state.batch_stats, unrolled.batch_stats, steps.ROUNDINGS)


def convolutions(step, *arguments):
    """How many a program spells out, before XLA has rewritten any; at least one."""
    lowered = jax.jit(lambda *each: step(*each)).lower(*arguments)
    return lowered.as_text().count("stablehlo.convolution") or pytest.fail("none")


def test_slots_in_turn_need_little_more_memory_than_one():
    """Four slots of 64 images, against one of 64 and one of 256."""
    setup = steps.make_setup(steps.NORMED, algorithm="sgd")
    state = jax.eval_shape(partial(steps.start, setup))

    def temporary(images, accumulate):
        step = jax.jit(steps.step_of(setup, accumulate=accumulate))
        compiled = step.lower(state, steps.make_batch(0, images)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    turns = temporary(256, 4)
    assert turns < 1.5 * temporary(64, 1)
    assert turns < 0.5 * temporary(256, 1)


SLOTS = [(steps.PLAIN, 1, 1), (steps.NORMED, 1, 1), (steps.NORMED, 4, 2)]


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
@pytest.mark.parametrize(("net", "accumulate", "solvers"), SLOTS)
def test_gradients_are_reduced_once(name, net, accumulate, solvers, eight_devices):
    """One all-reduce, of each gradient, moment and metric once, and in no loop."""
    setup = steps.make_setup(net, algorithm="lars")
    step = steps.step_of(setup, accumulate=accumulate, solvers=solvers)
    step = engine.parallelize(step, eight_devices, engine=name, donate_state=True)
    state = engine.replicate(steps.start(setup), eight_devices)
    lowered = step.mapped.lower(state, step.spread(steps.make_batch(0, 64)))
    text = lowered.compile().as_text()
    assert not re.search(r" (all-gather|reduce-scatter|all-to-all)", text)
    # Bodies of loops come before the entry.
    before, entry = text.split("\nENTRY ")
    assert not all_reduces(before)
    (reduced,) = all_reduces(entry)
    params, moments = state.params, to_moments(state.batch_stats)
    carried = [4 * x.size for x in jax.tree.leaves((params, moments))]
    assert sorted(reduced) == sorted([*carried, 4, 4])  # and loss and accuracy


def all_reduces(text):
    """Of each all-reduce in a compiled program, the bytes of its float32 arrays."""
    results = re.findall(r" = (.*?) all-reduce(?:-start)?\(", text)
    shapes = [re.findall(r"(\w+)\[([\d,]*)\]", result) for result in results]
    assert {dtype for arrays in shapes for dtype, _ in arrays} <= {"f32"}
    return [
        [4 * math.prod(int(n) for n in dims.split(",") if n) for _, dims in arrays]
        for arrays in shapes
    ]


def test_dropout_is_another_in_every_slot_and_step():
    """The same two images in each slot, at rate 0: only dropout can differ."""
    setup = steps.make_setup(steps.NOISY, algorithm="sgd", learning_rate=0.0)
    half = steps.make_batch(0, 2)
    whole = Batch(*(np.concatenate([x] * 2) for x in half[:2]))
    state, one_slot = steps.start(setup), jax.jit(steps.step_of(setup))
    state_1, first = one_slot(state, half)
    assert one_slot(state, half)[1]["loss"] == first["loss"]
    assert abs(one_slot(state_1, half)[1]["loss"] - first["loss"]) > 1e-4
    _, both = jax.jit(steps.step_of(setup, accumulate=2))(state, whole)
    assert abs(both["loss"] - first["loss"]) > 1e-4
