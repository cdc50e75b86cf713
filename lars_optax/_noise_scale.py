"""The gradient noise scale, which says how large a batch still saves steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lars_optax._tree import flatten, is_empty, list_some, quote
from lars_optax._validate import check_number


class NoiseScale(NamedTuple):
    """Estimates of the noise and the signal of a gradient, and their ratio.

    Each field has the structure of the squared norms that were passed to
    `gradient_noise_scale`. It is a scalar or array for a whole network, or a tree with
    a scalar for each layer.

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
        noise, signal = (sum(map(jnp.sum, jax.tree.leaves(x)), 0.0) for x in self[:2])
        return _with_ratio(noise, signal)

    def moving_average(
        self, previous: "NoiseScale", decay: jax.typing.ArrayLike = 0.99
    ) -> "NoiseScale":
        """Returns exponential moving averages of noise and signal, and their ratio.

        Noise and signal of one step are rough estimates. The signal may be negative. An
        average of their ratios would be biased, so each is averaged separately:

            average ← decay · average + (1 − decay) · estimate

        The averages extend over about the last 1 / (1 − decay) steps. If the gradients
        shrink within these steps, the earlier and larger gradients dominate, and the
        scale is too small.

        Begin with zeros, for example `jax.tree.map(jnp.zeros_like, estimate)`. After n
        steps both averages are then too small by the factor 1 − decayⁿ. This factor
        cancels in the scale. Leave out steps whose gradients are not finite, because an
        average that is NaN stays NaN.

        Args:
          previous: The average over the steps before, of the same structure.
          decay: The weight of `previous`, a number of at least 0 and less than 1.

        Raises:
          ValueError: If `decay` is out of range, if `previous` is not a `NoiseScale`,
            or if its structure or shapes differ from those of this estimate.
        """
        decay = check_number("decay", decay, high=1.0)
        if not isinstance(previous, NoiseScale):
            raise ValueError(f"previous must be a NoiseScale, got {previous!r}.")

        def average(old: Any, new: Any) -> Any:
            old, new = _as_float(old), _as_float(new)
            keep = _number(decay, jnp.result_type(new))
            return keep * old + (1 - keep) * new

        averages = []
        for name in ("noise", "signal"):
            old, new = getattr(previous, name), getattr(self, name)
            remedy = "Begin with zeros like the estimate."
            _check_structures(f"previous.{name}", old, name, new, remedy)
            averages.append(jax.tree.map(average, old, new))
        return _with_ratio(*averages)


def _with_ratio(noise: Any, signal: Any) -> NoiseScale:
    return NoiseScale(noise, signal, jax.tree.map(jnp.divide, noise, signal))


def _number(value: Any, dtype: Any) -> Any:
    """Returns `value` in a form that keeps the dtype of arrays of `dtype`."""
    return value.astype(dtype) if isinstance(value, jax.Array) else value


def gradient_noise_scale(
    small_square_norm: Any,
    big_square_norm: Any,
    small_batch_size: jax.typing.ArrayLike,
    big_batch_size: jax.typing.ArrayLike,
) -> NoiseScale:
    """Returns estimates of the gradient noise scale, from gradients of two batch sizes.

    The simple noise scale is tr Σ / |G|², where G is the expected gradient and Σ is the
    covariance matrix of the gradient of one example. Far below this batch size, twice
    the batch needs almost half the steps. At this batch size, it takes about twice as
    many examples to reach a loss as with small batches. Far above it, a larger batch
    hardly saves steps.

    The mean gradient of B examples has the expected squared norm |G|² + tr Σ / B. With
    the squared norms s and S of gradients of b and B examples, the estimates are

        noise = (s − S) / (1/b − 1/B)
        signal = (B·S − b·s) / (B − b)

    Both are unbiased, even if the large batch consists of the small ones. Their ratio
    is biased, and the estimates of one step are rough. `NoiseScale.moving_average`
    averages noise and signal over steps. For better estimates, pass as
    `small_square_norm` the mean of the squared norms of several small batches.

    Data-parallel training has both norms without a further backward pass. The small
    batch is that of one device, and the large batch is that of all devices. Only one
    more scalar for each layer, or for the whole tree, is averaged over the devices:

        grads = jax.grad(loss)(params, batch)           # on each device, in pmap
        small = jax.tree.map(lambda g: jnp.vdot(g, g), grads)
        grads, small = jax.lax.pmean((grads, small), "devices")
        big = jax.tree.map(lambda g: jnp.vdot(g, g), grads)
        estimate = gradient_noise_scale(small, big, b, b * num_devices)

    In `shard_map` pass check_vma=False, because by default the gradients of replicated
    parameters are already summed over the devices. With gradient accumulation the small
    batch is one micro-batch, and `small` is the mean over the micro-batches.
    `estimate.total()` has the estimates for the whole tree.

    The noise scale has limits:

    - It holds for SGD with small steps whose length is tuned for each batch size. LARS
      divides the gradient of each layer by its norm, so the layers count differently.
    - Only its order of magnitude is meaningful, because it assumes that the loss curves
      equally in all directions.
    - It grows during training, often by a factor of 10 and more.
    - It assumes that the examples are drawn independently. This does not hold for
      BatchNorm over a small batch, or for sampling without replacement from few
      examples.

    Args:
      small_square_norm: The squared norm of the mean gradient over a small batch, or
        the mean of such squared norms over several small batches. A scalar, an array or
        a tree, for example one scalar for each layer. A leaf may be None. Sum the
        squares of bfloat16 or float16 gradients in float32.
      big_square_norm: The squared norm of the mean gradient over a large batch, of the
        same structure and shapes.
      small_batch_size: The number b of examples in a small batch, a number above 0.
      big_batch_size: The number B of examples in the large batch, a number above b.

    Returns:
      A `NoiseScale`, whose fields have the structure of the squared norms. They are
      float32, or float64 if a squared norm is. The scale is infinite or NaN if the
      signal is 0.

    Raises:
      ValueError: If a batch size is out of range, if a squared norm is complex, or if
        the structures or shapes of the squared norms differ. The values of JAX arrays
        are not checked.

    Example:
      >>> estimate = gradient_noise_scale(6.0, 5.0, 10, 20)
      >>> print(estimate.noise, estimate.signal, estimate.scale)
      20.0 4.0 5.0

    References:
      McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch
      Training", https://arxiv.org/abs/1812.06162, appendix A.1.
    """
    sizes = (
        check_number("small_batch_size", small_batch_size, positive=True),
        check_number("big_batch_size", big_batch_size, positive=True),
    )
    if not any(isinstance(x, jax.Array) for x in sizes) and sizes[0] >= sizes[1]:
        raise ValueError(
            "big_batch_size must be larger than small_batch_size, got "
            f"{big_batch_size!r} and {small_batch_size!r}. Compare at least two "
            "devices or micro-batches with their mean."
        )
    _check_squares(small_square_norm, big_square_norm)
    small, big = jax.tree.map(_as_float, (small_square_norm, big_square_norm))

    def noise_of(s: jax.Array, S: jax.Array) -> Any:
        b, B = (_number(size, s.dtype) for size in sizes)
        return (s - S) * (b * (B / (B - b)))

    noise = jax.tree.map(noise_of, small, big)
    signal = jax.tree.map(lambda S, n: S - n / _number(sizes[1], n.dtype), big, noise)
    return _with_ratio(noise, signal)


def _as_float(x: jax.typing.ArrayLike) -> jax.Array:
    dtype = jnp.result_type(x)
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return jnp.asarray(x, dtype if wide else jnp.float32)


def _check_squares(small: Any, big: Any) -> None:
    names = "small_square_norm", "big_square_norm"
    remedies = (
        "Compute both from gradients of the same parameters.",
        "Pass the mean of the squared norms of several small batches.",
    )
    _check_structures(names[0], small, names[1], big, *remedies)
    for name, tree in zip(names, (small, big), strict=True):
        for path, x in zip(*flatten(tree)[:2], strict=True):
            if jnp.iscomplexobj(x):
                raise ValueError(
                    f"{name} is complex at {quote(path)}, but a squared norm is real. "
                    "Pass its real part."
                )


def _kind(x: Any) -> str:
    return type(x).__name__ if is_empty(x) else f"shape {jnp.shape(x)}"


def _check_structures(
    name: str, tree: Any, other: str, like: Any, remedy: str, shape_remedy: str = ""
) -> None:
    """Raises ValueError unless both trees have the same structure and shapes.

    The message ends with a remedy. It is `shape_remedy`, if given, if shapes differ.
    """
    (paths, leaves, structure), (others, alike, expected) = flatten(tree), flatten(like)
    if structure != expected:
        differ = [p for p in (*paths, *others) if (p in paths) != (p in others)]
        where = f"differ at {list_some(differ)}" if differ else "differ in type"
        raise ValueError(
            f"{name} and {other} must have the same structure, but they {where}. "
            f"{remedy}"
        )
    for path, x, y in zip(paths, leaves, alike, strict=True):
        if _kind(x) != _kind(y):
            raise ValueError(
                f"{name} has {_kind(x)} at {quote(path)}, but {other} has {_kind(y)}. "
                f"{shape_remedy or remedy}"
            )
