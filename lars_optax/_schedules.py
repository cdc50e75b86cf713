"""Learning rate schedules with warm-up, and learning rates for a batch size.

A schedule is a function from a step count to a learning rate. The count is an int or an
integer array and starts at 0. Before step 0 and after the last step the rate is
constant.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lars_optax._validate import check_count, check_number

_STEPS = "Use epochs_to_steps to turn epochs into steps."
_MOST_STEPS = 2**31 - 1  # Optax counts steps in int32


def epochs_to_steps(epochs: float, num_examples: int, batch_size: int) -> int:
    """Returns the number of optimizer steps in a number of epochs.

    It is epochs · num_examples / batch_size, rounded to the nearest int. It is 0
    if the epochs have at most half a batch of examples.

    Args:
      epochs: The number of epochs, at least 0. It may be a fraction.
      num_examples: The number of training examples in one epoch.
      batch_size: The number of examples in one update, over all devices and accumulated
        steps.

    Returns:
      The number of updates, an int.

    Raises:
      ValueError: If `epochs` is negative or not finite, if another argument is not an
        int of at least 1, or if there are more than 2³¹ − 1 steps.

    Example:
      >>> epochs_to_steps(90, 1_281_167, 8192)
      14075
    """
    epochs = float(check_number("epochs", epochs))
    # The product would overflow narrow NumPy integers, so it is one of Python numbers.
    examples = check_count("num_examples", num_examples, low=1)
    size = check_count("batch_size", batch_size, low=1)
    try:
        steps = round(epochs * examples / size)
    except OverflowError:  # more than a float can hold
        steps = _MOST_STEPS + 1
    if steps > _MOST_STEPS:
        raise ValueError(
            f"epochs={epochs}, num_examples={num_examples} and batch_size={batch_size} "
            f"are more than {_MOST_STEPS} steps, the most that Optax counts. Give "
            "fewer epochs or a larger batch_size."
        )
    return steps


def linear_scaling(base_value: float, batch_size: int, base_batch_size: int) -> float:
    """Returns the learning rate for another batch size by the linear scaling rule.

    The rate is base_value · batch_size / base_batch_size. This rule is for SGD.

    Args:
      base_value: A learning rate that is tuned at `base_batch_size`.
      batch_size: The number of examples in one update, over all devices and accumulated
        steps.
      base_batch_size: The batch size of `base_value`.

    Returns:
      The learning rate at `batch_size`, a float.

    Raises:
      ValueError: If `base_value` is negative or not finite, or if a batch size is not
        above 0.

    Example:
      >>> linear_scaling(0.1, 8192, 256)
      3.2

    References:
      Krizhevsky 2014, https://arxiv.org/abs/1404.5997. Goyal et al. 2017,
      https://arxiv.org/abs/1706.02677. You, Gitman, Ginsburg 2017,
      https://arxiv.org/abs/1708.03888v1, section 2.3.
    """
    rate, factor = _scaled(base_value, batch_size, base_batch_size)
    return rate * factor


def sqrt_scaling(base_value: float, batch_size: int, base_batch_size: int) -> float:
    """Returns the learning rate for another batch size by the square-root scaling rule.

    The rate is base_value · √(batch_size / base_batch_size). It keeps the variance of
    an SGD step constant. The learning rates that the paper found for LARS grow more
    slowly than this rule:

        batch size   paper, Table 5   this rule from 512
               512              5.0                  5.0
              4096             10.0                 14.1
              8192             14.0                 20.0

    Args:
      base_value: A learning rate that is tuned at `base_batch_size`.
      batch_size: The number of examples in one update, over all devices and accumulated
        steps.
      base_batch_size: The batch size of `base_value`.

    Returns:
      The learning rate at `batch_size`, a float.

    Raises:
      ValueError: If `base_value` is negative or not finite, or if a batch size is not
        above 0.

    Example:
      >>> sqrt_scaling(5.0, 2048, 512)
      10.0

    References:
      You, Gitman, Ginsburg 2017, "Scaling SGD Batch Size to 32K for ImageNet Training",
      https://arxiv.org/abs/1708.03888v1, section 2.3.
    """
    rate, factor = _scaled(base_value, batch_size, base_batch_size)
    return rate * math.sqrt(factor)


def suggested_learning_rate(
    batch_size: int,
    steps: int,
    *,
    trust_coefficient: float = 0.001,
    momentum: float | None = 0.9,
) -> float:
    """Returns a first guess of the peak learning rate of LARS, without trials.

    With B `batch_size`, T `steps`, η `trust_coefficient` and μ `momentum`, it is

        γ = min(0.19 · (B/T)^(1/4), 0.4) · (1 − μ)/η

    A step changes the weights of a layer by at most about γη/(1 − μ) times their norm.
    The minimum in the rule is the value of γη/(1 − μ), so this value does not depend on
    η and μ. For a fixed data set and a fixed number of epochs, B/T is proportional to
    B². Until the minimum reaches 0.4, γ then grows with √B, as in `sqrt_scaling`.

    The constants were chosen from two groups of learning rates. One group is published,
    for AlexNet-BN and ResNet-50 trained with labels on ImageNet. Trials on small
    convolutional networks found the other. All these learning rates lie within a factor
    of 2 of the rule. Their batch sizes are 128 to 67,840, and their runs have about 200
    to 250,000 steps. Their schedules have a linear warm-up and a polynomial decay of
    power 2.

    Recipes for self-supervised learning, with a cosine decay, have learning rates of
    0.15 to 0.84 times the suggested one, so there the rule is probably too high. The
    rule was not tried with other networks, such as transformers, or with other
    schedules.

    Args:
      batch_size: The number of examples in one update, over all devices and accumulated
        steps.
      steps: The number of updates in the whole run, with the warm-up. `epochs_to_steps`
        computes it.
      trust_coefficient: The trust coefficient η of the optimizer, a number above 0.
      momentum: The momentum μ of the optimizer, at least 0 and below 1. None is 0.

    Returns:
      The learning rate at the end of the warm-up, as a float. If `trust_coefficient`
      or `momentum` is a JAX array, the learning rate is a JAX array too.

    Raises:
      ValueError: If `batch_size` or `steps` is not an int from 1 to 2³¹ − 1, or if
        another argument is out of range.

    Example:
      >>> steps = epochs_to_steps(90, 1_281_167, 8192)
      >>> round(suggested_learning_rate(8192, steps), 1)
      16.6
    """
    batch_size = check_count("batch_size", batch_size, low=1, high=_MOST_STEPS)
    steps = _check_steps("steps", steps, low=1)
    eta = check_number("trust_coefficient", trust_coefficient, positive=True)
    mu = check_number("momentum", momentum, high=1, optional=True)
    change = min(0.19 * math.pow(batch_size / steps, 0.25), 0.4)
    rate: float = change * (1 - (0 if mu is None else mu)) / eta
    return rate


def _scaled(
    base_value: float, batch_size: int, base_batch_size: int
) -> tuple[float, float]:
    """Returns the checked base value, and the ratio of the batch sizes."""
    size = check_number("batch_size", batch_size, positive=True)
    base_size = check_number("base_batch_size", base_batch_size, positive=True)
    return check_number("base_value", base_value), size / base_size


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
    """Returns a schedule with warm-up and polynomial decay, the paper's "poly" rule.

    With W `warmup_steps`, T `decay_steps` and b `transition_begin`, the rate at step t
    is

        t < W    init + (peak − init) · t/W          warmup="linear"
                 init                                warmup="constant"
        t ≥ W    end + (peak − end) · (1 − (t − b)/(T − b))^power
        t ≥ T    end

    Args:
      init_value: The learning rate at step 0. It has no effect if `warmup_steps` is 0.
      peak_value: The learning rate from which the polynomial decays.
      warmup_steps: The number W of warm-up steps. 0 disables the warm-up.
      decay_steps: The step T at which the decay ends. It counts from step 0 and
        includes the warm-up, as in `optax.warmup_cosine_decay_schedule`. In Google's
        runs of MLPerf it is one more than the number of steps in the run.
      end_value: The learning rate from step T on.
      power: The exponent of the polynomial, a number above 0. The paper always uses 2.
      warmup: "linear" for the gradual warm-up of Goyal et al. 2017, or "constant".
      transition_begin: The step b at which the polynomial begins, an int from 0 to W.
        None takes W, which makes the rate continuous. The authors' solver and the
        paper's recipes use 0. The warm-up then replaces the first W steps of the
        polynomial, and at step W the rate drops from peak to end + (peak − end) · (1 −
        W/T)^power.

    Returns:
      A schedule. `jax.jit` and `jax.vmap` accept it.

    Raises:
      ValueError: If a rate is negative or not finite, if a number of steps is not an
        int or is negative, if `power` is not above 0, if W ≥ T or b > W, or if `warmup`
        is neither "linear" nor "constant".

    Example:
      >>> rate = warmup_polynomial_decay_schedule(0.0, 8.0, 2, 6)
      >>> [float(rate(t)) for t in range(8)]
      [0.0, 4.0, 8.0, 4.5, 2.0, 0.5, 0.0, 0.0]

    References:
      You, Gitman, Ginsburg 2017, "Scaling SGD Batch Size to 32K for ImageNet Training",
      https://arxiv.org/abs/1708.03888v1. Goyal et al. 2017,
      https://arxiv.org/abs/1706.02677, section 2.2.
    """
    power = check_number("power", power, positive=True)
    return _warmup_decay(
        init_value,
        peak_value,
        warmup_steps,
        decay_steps,
        end_value,
        lambda left: left**power,
        warmup=warmup,
        transition_begin=transition_begin,
    )


def warmup_cosine_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    *,
    warmup: str = "linear",
    transition_begin: int | None = None,
) -> optax.Schedule:
    """Returns a schedule with warm-up and a cosine decay, for recipes.

    With b `transition_begin` and T `decay_steps`, the rate at step t after the warm-up
    is

        end + (peak − end) · (1 + cos(π (t − b)/(T − b))) / 2

    The arguments and the errors are those of `warmup_polynomial_decay_schedule`. With
    the default `warmup` and `transition_begin` the schedule is that of
    `optax.warmup_cosine_decay_schedule`.
    """
    return _warmup_decay(
        init_value,
        peak_value,
        warmup_steps,
        decay_steps,
        end_value,
        # (1 + cos(π (1 − x)))/2 = sin²(πx/2), and sin² is more accurate near x = 0.
        lambda left: jnp.sin(0.5 * jnp.pi * left) ** 2,
        warmup=warmup,
        transition_begin=transition_begin,
    )


def _warmup_decay(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    end_value: float,
    shape: Callable[[jax.Array], jax.Array],
    *,
    warmup: str,
    transition_begin: int | None,
) -> optax.Schedule:
    """Returns a schedule with warm-up and a decay by `shape`.

    `shape` is a function of the remaining fraction of the decay, which falls from 1 at
    its beginning to 0 at its end. The function goes from 1 to 0 too.
    """
    end_value = check_number("end_value", end_value)
    peak_value = check_number("peak_value", peak_value)
    warmup_steps = _check_steps("warmup_steps", warmup_steps)
    decay_steps = _check_steps("decay_steps", decay_steps, low=1)
    if decay_steps <= warmup_steps:
        raise ValueError(
            f"decay_steps must be greater than warmup_steps={warmup_steps}, because it "
            f"counts from step 0 and includes the warm-up; got {decay_steps}."
        )
    begin = warmup_steps
    if transition_begin is not None:
        begin = _check_steps("transition_begin", transition_begin)
    if begin > warmup_steps:
        raise ValueError(
            f"transition_begin must be at most warmup_steps={warmup_steps}, "
            f"got {begin}."
        )

    def decay(count: jax.Array) -> jax.Array:
        left = jnp.clip((decay_steps - count) / (decay_steps - begin), 0.0, 1.0)
        return end_value + (peak_value - end_value) * shape(left)

    return _join(init_value, peak_value, warmup_steps, warmup, decay)


def warmup_piecewise_constant_schedule(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    boundaries_and_scales: Mapping[int, float] | None,
    *,
    warmup: str = "linear",
) -> optax.Schedule:
    """Returns a schedule with warm-up and constant rates between boundaries.

    From each boundary on, the rate is multiplied by the scale of that boundary. Goyal
    et al. 2017 use the scale 0.1 at epochs 30, 60 and 80. `epochs_to_steps` turns
    epochs into steps.

    Args:
      init_value: The learning rate at step 0. It has no effect if `warmup_steps` is 0.
      peak_value: The learning rate at the end of the warm-up.
      warmup_steps: The number of warm-up steps. 0 disables the warm-up.
      boundaries_and_scales: A mapping from a step to the scale from that step on. Steps
        count from step 0 and include the warm-up. None keeps the peak.
      warmup: "linear", or "constant" for `init_value` at every warm-up step.

    Returns:
      A schedule. `jax.jit` and `jax.vmap` accept it.

    Raises:
      ValueError: If a rate or a scale is negative or not finite, if a number of steps
        is not an int or is negative, if a boundary lies inside the warm-up, or if
        `warmup` is neither "linear" nor "constant".

    Example:
      >>> rate = warmup_piecewise_constant_schedule(0.0, 4.0, 2, {3: 0.5, 5: 0.5})
      >>> [float(rate(t)) for t in range(7)]
      [0.0, 2.0, 4.0, 2.0, 2.0, 1.0, 1.0]

    References:
      Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1.
    """
    peak_value = check_number("peak_value", peak_value)
    warmup_steps = _check_steps("warmup_steps", warmup_steps)
    scales = {}
    if not isinstance(boundaries_and_scales, Mapping | None):
        raise ValueError(
            "boundaries_and_scales must be a mapping from steps to scales, got "
            f"{boundaries_and_scales!r}."
        )
    for boundary, scale in (boundaries_and_scales or {}).items():
        step = _check_steps("a key of boundaries_and_scales", boundary)
        if step < warmup_steps:
            raise ValueError(
                f"boundaries_and_scales has the boundary {step}, which lies inside the "
                f"warm-up of {warmup_steps} steps. Boundaries count from step 0 and "
                f"include the warm-up. Use a boundary of at least {warmup_steps}."
            )
        scales[step] = check_number(f"boundaries_and_scales[{boundary}]", scale)

    def decay(count: jax.Array) -> jax.Array:
        rate = jnp.asarray(peak_value, jnp.result_type(float))
        for step, scale in scales.items():
            rate = jnp.where(count >= step, rate * scale, rate)
        return rate

    return _join(init_value, peak_value, warmup_steps, warmup, decay)


def _check_steps(argument: str, value: int, *, low: int = 0) -> int:
    return check_count(argument, value, low=low, high=_MOST_STEPS, remedy=_STEPS)


def _join(
    init_value: float,
    peak_value: float,
    warmup_steps: int,
    warmup: str,
    decay: Callable[[jax.Array], jax.Array],
) -> optax.Schedule:
    init_value = check_number("init_value", init_value)
    if warmup not in ("linear", "constant"):
        raise ValueError(f"warmup must be 'linear' or 'constant', got {warmup!r}.")

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count)
        if jnp.issubdtype(count.dtype, jnp.integer):
            # The differences below would overflow narrow or unsigned integers.
            count = count.astype(jnp.result_type(int))
        count = jnp.maximum(count, 0)
        done = count / warmup_steps if warmup == "linear" and warmup_steps else 0.0
        rising = init_value + (peak_value - init_value) * done
        return jnp.where(count < warmup_steps, rising, decay(count))

    return schedule
