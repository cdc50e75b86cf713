"""Learning rates over steps: warm-up, then decay; and how rates scale with the batch.

A schedule maps a step count (Python int or integer array, from 0) to a learning rate
and is constant outside its range. Nothing here counts epochs but `epochs_to_steps`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lars_optax._validate import check_count, check_number

_STEPS = "Steps are counted; epochs_to_steps turns epochs into steps."


def epochs_to_steps(epochs: float, num_examples: int, batch_size: int) -> int:
    """Steps in so many epochs: round(epochs · num_examples / batch_size).

    Args:
      epochs: passes over the training examples, 0 or more; need not be whole.
      num_examples: training examples of one epoch.
      batch_size: examples of one update, over all devices and accumulated steps.

    Raises:
      ValueError: on negative or non-finite values, and counts below 1.

    Example:
      >>> epochs_to_steps(90, 1_281_167, 8192)
      14075
    """
    check_number("epochs", epochs)
    check_count("num_examples", num_examples, low=1)
    check_count("batch_size", batch_size, low=1)
    return round(epochs * num_examples / batch_size)


def linear_scaling(base_value: float, batch_size: int, base_batch_size: int) -> float:
    """The linear scaling rule: base_value · batch_size / base_batch_size.

    For SGD (Krizhevsky 2014; Goyal et al. 2017; section 2.3 of the LARS paper).

    Args:
      base_value: the learning rate that is right at `base_batch_size`.
      batch_size: examples of one update, over all devices and accumulated steps.
      base_batch_size: that of `base_value`.

    Raises:
      ValueError: on a negative or non-finite rate, and batches that are not above 0.

    Example:
      >>> linear_scaling(0.1, 8192, 256)
      3.2
    """
    return base_value * _batch_factor(base_value, batch_size, base_batch_size)


def sqrt_scaling(base_value: float, batch_size: int, base_batch_size: int) -> float:
    """The square-root scaling rule: base_value · √(batch_size / base_batch_size).

    It keeps the variance of an SGD step constant (section 2.3 of the LARS paper). The
    rates that paper found for LARS grow more slowly: 5, 10 and 14 at batches of 512,
    4096 and 8192 (Table 5), where this gives 5, 14.1 and 20.

    Args:
      base_value: the learning rate that is right at `base_batch_size`.
      batch_size: examples of one update, over all devices and accumulated steps.
      base_batch_size: that of `base_value`.

    Raises:
      ValueError: on a negative or non-finite rate, and batches that are not above 0.

    Example:
      >>> sqrt_scaling(5.0, 2048, 512)
      10.0
    """
    return base_value * math.sqrt(
        _batch_factor(base_value, batch_size, base_batch_size)
    )


def _batch_factor(base_value: float, batch_size: int, base_batch_size: int) -> float:
    check_number("base_value", base_value)
    check_number("batch_size", batch_size, positive=True)
    check_number("base_batch_size", base_batch_size, positive=True)
    return batch_size / base_batch_size


def warmup_polynomial_decay_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    power: float = 2.0,
    *,
    warmup: str = "linear",
    transition_begin: int | None = None,
) -> optax.Schedule:
    """Warm up to the peak, then decay polynomially: the paper's "poly" rule.

    At step t, with W `warmup_steps`, T `decay_steps`, b `transition_begin`:

        t < W    init + (peak − init) · t/W          warmup="linear"
                 init                                 warmup="constant"
        t ≥ W    end + (peak − end) · (1 − (t − b)/(T − b))^power,  and end from T on

    Args:
      init_value: learning rate at step 0; not used when `warmup_steps` is 0.
      peak_value: learning rate from which the polynomial decays.
      warmup_steps: W, 0 for no warm-up.
      decay_steps: T, counted from step 0, warm-up included, as in
        `optax.warmup_cosine_decay_schedule`. MLPerf's decay over T − W + 1 steps is
        decay_steps=T + 1.
      end_value: learning rate at and after step T.
      power: exponent, 2 throughout the paper.
      warmup: "linear" (gradual warm-up, Goyal et al. 2017) or "constant".
      transition_begin: b, the step from which the polynomial counts. None is W, so that
        the rate is continuous. 0 is the authors' solver: the warm-up is cut out of the
        polynomial's start, and at W the rate falls from peak to peak · (1 − W/T)^power.
        The paper's recipes use 0.

    Returns:
      A schedule. It can be jitted and vmapped.

    Raises:
      ValueError: on negative or non-finite values, steps that are no ints, a power of
        0, W ≥ T, b > W, an unknown warm-up.

    Example:
      >>> rate = warmup_polynomial_decay_schedule(0.0, 8.0, 2, 6)
      >>> [float(rate(t)) for t in range(8)]
      [0.0, 4.0, 8.0, 4.5, 2.0, 0.5, 0.0, 0.0]
    """
    check_number("end_value", end_value)
    check_number("power", power, positive=True)
    warmup_steps = check_count("warmup_steps", warmup_steps, remedy=_STEPS)
    decay_steps = check_count("decay_steps", decay_steps, low=1, remedy=_STEPS)
    if decay_steps <= warmup_steps:
        raise ValueError(
            f"decay_steps counts from step 0, warm-up included, so it must be greater "
            f"than warmup_steps={warmup_steps}; got {decay_steps}."
        )
    begin = warmup_steps
    if transition_begin is not None:
        begin = check_count("transition_begin", transition_begin, remedy=_STEPS)
    if begin > warmup_steps:
        raise ValueError(
            "transition_begin must not lie after the warm-up, at most "
            f"warmup_steps={warmup_steps}; got {begin}."
        )

    def decay(count: jax.Array) -> jax.Array:
        left = jnp.clip((decay_steps - count) / (decay_steps - begin), 0.0, 1.0)
        return end_value + (peak_value - end_value) * left**power

    return _join(init_value, peak_value, warmup_steps, warmup, decay)


def warmup_piecewise_constant_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    boundaries_and_scales: Mapping[int, float] | None,
    *,
    warmup: str = "linear",
) -> optax.Schedule:
    """Warm up to the peak, then multiply by a scale from each boundary on.

    The multi-step rule of Goyal et al. 2017 is {30 epochs: 0.1, 60: 0.1, 80: 0.1}, each
    in steps (`epochs_to_steps`).

    Args:
      init_value: learning rate at step 0; not used when `warmup_steps` is 0.
      peak_value: learning rate from the end of the warm-up.
      warmup_steps: W, 0 for no warm-up.
      boundaries_and_scales: step, counted from step 0, warm-up included, to the factor
        by which the rate is multiplied from that step on. None for none.
      warmup: "linear" or "constant".

    Raises:
      ValueError: on negative or non-finite values, steps that are no ints, a boundary
        inside the warm-up, an unknown warm-up.

    Example:
      >>> rate = warmup_piecewise_constant_schedule(0.0, 4.0, 2, {3: 0.5, 5: 0.5})
      >>> [float(rate(t)) for t in range(7)]
      [0.0, 2.0, 4.0, 2.0, 2.0, 1.0, 1.0]
    """
    warmup_steps = check_count("warmup_steps", warmup_steps, remedy=_STEPS)
    scales = {}
    for boundary, scale in (boundaries_and_scales or {}).items():
        check_number(f"boundaries_and_scales[{boundary}]", scale)
        step = check_count("a key of boundaries_and_scales", boundary, remedy=_STEPS)
        if step < warmup_steps:
            raise ValueError(
                "boundaries_and_scales counts from step 0, warm-up included: the "
                f"boundary {step} lies inside the warm-up of {warmup_steps} steps."
            )
        scales[step] = scale

    def decay(count: jax.Array) -> jax.Array:
        rate = jnp.asarray(peak_value, jnp.result_type(float))
        for step, scale in scales.items():
            rate = jnp.where(count >= step, rate * scale, rate)
        return rate

    return _join(init_value, peak_value, warmup_steps, warmup, decay)


def _join(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    warmup: str,
    decay: Callable[[jax.Array], jax.Array],
) -> optax.Schedule:
    check_number("init_value", init_value)
    check_number("peak_value", peak_value)
    if warmup not in ("linear", "constant"):
        raise ValueError(f"warmup must be 'linear' or 'constant', got {warmup!r}.")

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count)
        if jnp.issubdtype(count.dtype, jnp.integer):
            # Narrow and unsigned counts would wrap around in the differences below.
            count = count.astype(jnp.result_type(int))
        count = jnp.maximum(count, 0)
        done = count / warmup_steps if warmup == "linear" and warmup_steps else 0.0
        rising = init_value + (peak_value - init_value) * done
        return jnp.where(count < warmup_steps, rising, decay(count))

    return schedule
