"""The gradient noise scale, which says how large a batch still saves steps."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lars_optax._tree import flatten, list_some
from lars_optax._validate import check_number


class NoiseScale(NamedTuple):
    """Estimates of the noise and the signal of a gradient, and their ratio.

    Each field has the structure of the squared norms that `gradient_noise_scale` got: a
    scalar or array for a whole network, or a tree with a scalar for each layer.

    Attributes:
      noise: An estimate of tr Σ, where Σ is the covariance matrix of the gradient of
        one example. It is the sum of the variances of all elements of this gradient.
      signal: An estimate of |G|², where G is the expected gradient.
      scale: noise / signal, in examples.
    """

    noise: Any
    signal: Any
    scale: Any

    def total(self) -> "NoiseScale":
        """Returns the estimates for all layers together, as scalars.

        Noise and signal are sums over layers. The scale is the ratio of the sums.
        """
        noise, signal = (sum(map(jnp.sum, jax.tree.leaves(x))) for x in self[:2])
        return _with_ratio(noise, signal)

    def moving_average(
        self, previous: "NoiseScale", decay: jax.typing.ArrayLike = 0.99
    ) -> "NoiseScale":
        """Returns exponential moving averages of noise and signal, and their ratio.

        Noise and signal of one step are rough estimates. The signal may be negative.
        An average of their ratios would be biased, so both are averaged apart:

            average ← decay · average + (1 − decay) · estimate

        Begin with zeros, for example `jax.tree.map(jnp.zeros_like, estimate)`. After n
        steps both averages are then too small by the factor 1 − decayⁿ. This factor
        cancels in the scale.

        Args:
          previous: The average over the steps before.
          decay: The weight of `previous`, a number of at least 0 and less than 1.

        Raises:
          ValueError: If `decay` is out of range.
        """
        check_number("decay", decay, high=1.0)
        noise, signal = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, previous[:2], self[:2]
        )
        return _with_ratio(noise, signal)


def _with_ratio(noise: Any, signal: Any) -> NoiseScale:
    return NoiseScale(noise, signal, jax.tree.map(operator.truediv, noise, signal))


def gradient_noise_scale(
    small_square_norm: Any,
    big_square_norm: Any,
    small_batch_size: jax.typing.ArrayLike,
    big_batch_size: jax.typing.ArrayLike,
) -> NoiseScale:
    """Returns estimates of the gradient noise scale, from gradients of two batch sizes.

    The simple noise scale tr Σ / |G|² is about the batch size up to which twice the
    batch needs almost half the steps. Here G is the expected gradient, and Σ is the
    covariance matrix of the gradient of one example. Far above this batch size a larger
    batch hardly saves steps. The mean gradient of B examples has the expected squared
    norm |G|² + tr Σ / B. With the squared norms s and S of gradients of b and B
    examples, the estimates are

        noise = (s − S) / (1/b − 1/B)
        signal = (B·S − b·s) / (B − b)

    Both are unbiased, also if the large batch consists of the small ones. The ratio is
    not, and the estimates of one step are rough. Average noise and signal apart over
    steps with `NoiseScale.moving_average`. To make them less rough, pass as
    `small_square_norm` the mean of the squared norms of several small batches.

    Data-parallel training has both norms at no further backward pass. The small batch
    is that of one device, and the large batch is that of all devices. One scalar for
    each layer, or for the whole tree, joins the mean of the gradients:

        grads = jax.grad(loss)(params, batch)           # on each device, in pmap
        small = jax.tree.map(lambda g: jnp.vdot(g, g), grads)
        grads, small = jax.lax.pmean((grads, small), "devices")
        big = jax.tree.map(lambda g: jnp.vdot(g, g), grads)
        estimate = gradient_noise_scale(small, big, b, b * num_devices)

    In `shard_map` pass check_vma=False, because by default the gradients of replicated
    parameters are already summed over the devices. With gradient accumulation the small
    batch is one micro-batch, and `small` is the mean over the micro-batches.
    `estimate.total()` has the estimates for the whole tree.

    What the noise scale does not tell:

    - It holds for SGD with small steps. LARS divides the gradient of each layer by its
      norm, so the layers count differently.
    - It grows during training, often by a factor of 10 and more.
    - The examples are taken as drawn independently. BatchNorm over a small batch, or
      sampling without replacement from few examples, breaks this.

    Args:
      small_square_norm: The squared norm of the mean gradient over a small batch, or
        the mean of such squared norms over several small batches. A scalar, an array or
        a tree, for example one scalar for each layer. A leaf may be None.
      big_square_norm: The squared norm of the mean gradient over a large batch, of the
        same structure.
      small_batch_size: The number b of examples in a small batch, a number above 0.
      big_batch_size: The number B of examples in the large batch, a number above b.

    Returns:
      A `NoiseScale`, whose fields have the structure of the squared norms. They are
      float32, or float64 if a squared norm is. The scale is infinite or NaN if the
      signal is 0.

    Raises:
      ValueError: If a batch size is out of range, or if the structures of the squared
        norms differ. Traced batch sizes are not checked.

    Example:
      >>> estimate = gradient_noise_scale(6.0, 5.0, 10, 20)
      >>> print(estimate.noise, estimate.signal, estimate.scale)
      20.0 4.0 5.0

    References:
      McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch
      Training", https://arxiv.org/abs/1812.06162, appendix A.1.
    """
    check_number("small_batch_size", small_batch_size, positive=True)
    check_number("big_batch_size", big_batch_size, positive=True)
    sizes: Any = (small_batch_size, big_batch_size)
    if not any(isinstance(x, jax.Array) for x in sizes) and sizes[0] >= sizes[1]:
        raise ValueError(
            "big_batch_size must be larger than small_batch_size, got "
            f"{big_batch_size!r} and {small_batch_size!r}."
        )
    _check_structures(small_square_norm, big_square_norm)
    weight = 1 / (1 / small_batch_size - 1 / big_batch_size)
    small, big = jax.tree.map(_as_float, (small_square_norm, big_square_norm))
    noise = jax.tree.map(lambda s, b: (s - b) * weight, small, big)
    signal = jax.tree.map(lambda b, n: b - n / big_batch_size, big, noise)
    return _with_ratio(noise, signal)


def _as_float(x: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _check_structures(small: Any, big: Any) -> None:
    (paths, _, structure), (others, _, other) = flatten(small), flatten(big)
    if structure != other:
        differ = [p for p in (*paths, *others) if (p in paths) != (p in others)]
        where = f"differ at {list_some(differ)}" if differ else "have other containers"
        raise ValueError(
            "small_square_norm and big_square_norm must have the same structure, but "
            f"they {where}. Compute both from gradients of the same parameters."
        )
