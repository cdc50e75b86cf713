"""The base class of the networks, and layers that Caffe computes differently from Flax.

These are: grouped convolution with one kernel, local response normalisation across
channels, max pooling whose output size is rounded up, and BatchNorm that returns the
moments of its batch in training.
"""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Pixels = float | tuple[float, ...]  # one number for all channels, or one for each
AxisName = str | tuple[str, ...] | None

# Weights of variance 2 / fan_in ("MSRA" in Caffe) and 1 / fan_in.
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
LINEAR = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Network(nn.Module):
    """Base class of the image classifiers, with the arguments that all of them take.

    Parameters, "batch_stats" and logits are float32 whatever `dtype` is.
    """

    classes: int  # number of classes, and so of logits
    pixel_mean: Pixels  # subtracted from the pixels, which are 0 to 255
    pixel_std: Pixels  # divides the pixels after that
    width: float = 1.0  # multiplies the number of channels of every layer but the last
    dtype: Any = jnp.float32  # of activations and products
    # Mapped axes over which BatchNorm takes its moments together; None for the images
    # of one call alone.
    bn_axis_name: AxisName = None
    platform: str | None = None  # of the devices that run it; None for JAX's default

    def normalized(self, images: jax.Array, smallest: int = 1) -> jax.Array:
        """Returns the images less `pixel_mean`, divided by `pixel_std`, in `dtype`.

        Raises ValueError if a side of the images has fewer than `smallest` pixels.
        """
        height, width = images.shape[1:3]
        if min(height, width) < smallest:
            raise ValueError(
                f"images: got {height}×{width} pixels, and this network needs at least"
                f" {smallest}×{smallest}; give larger --pixels or other --data, or"
                " choose a small --network"
            )
        mean = jnp.asarray(self.pixel_mean, jnp.float32)
        std = jnp.asarray(self.pixel_std, jnp.float32)
        return ((images.astype(jnp.float32) - mean) / std).astype(self.dtype)

    def scaled(self, channels: int, multiple_of: int = 1) -> int:
        """Returns channels · width, rounded to a positive multiple of `multiple_of`."""
        return multiple_of * max(1, round(channels * self.width / multiple_of))


def batch_norm(train: bool, dtype: Any, axis_name: Any, **options: Any) -> nn.BatchNorm:
    """Returns Flax's BatchNorm with ε = 1e-4, as in the LARS authors' Caffe networks.

    After a pass in training mode, "batch_stats" holds the moments of that batch alone.
    `train_step` averages them over devices and then over time.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.0,
        epsilon=1e-4,
        dtype=dtype,
        axis_name=axis_name,
        **options,
    )


class Conv(nn.Module):
    """Convolution with a square kernel that pads all sides alike, as Caffe does.

    Flax's padding "SAME" may pad one side more than the other. The parameters are
    float32: kernel [side, side, channels / groups, features] and bias [features]. All
    groups share one kernel, so LARS treats them as one layer, as it does in Caffe.
    """

    features: int  # number of output channels
    side: int  # of the kernel [pixels]
    stride: int
    padding: int  # on each side [pixels]
    groups: int = 1
    bias: float | None = None  # initial value; None for no bias
    kernel_init: Any = HE
    dtype: Any = jnp.float32  # of activations and products
    platform: str | None = None  # of the devices that run it; None for JAX's default

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.side, self.side, x.shape[-1] // self.groups, self.features)
        kernel: jax.Array = self.param("kernel", self.kernel_init, shape)
        weights = kernel.astype(self.dtype)
        form = self.groups, self.stride, self.padding
        as_slices = _grouped_convolution_is_slow(self.platform)
        y = grouped_conv(x, weights, *form, as_slices=as_slices)
        if self.bias is None:
            return y
        init = nn.initializers.constant(self.bias)
        bias: jax.Array = self.param("bias", init, (self.features,))
        return y + bias.astype(self.dtype)


def grouped_conv(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    stride: int,
    padding: int,
    *,
    as_slices: bool,
) -> jax.Array:
    """Returns a grouped convolution of x, in which groups of channels do not mix.

    Group i of the output channels depends on group i of the input channels. With
    `as_slices` each group is a convolution of its own, and otherwise one operation of
    XLA computes all groups.
    """
    if as_slices and groups > 1:
        parts = zip(*(jnp.split(a, groups, -1) for a in (x, kernel)), strict=True)
        y = [grouped_conv(a, b, 1, stride, padding, as_slices=False) for a, b in parts]
        return jnp.concatenate(y, -1)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _grouped_convolution_is_slow(platform: str | None) -> bool:
    """Returns True on CPUs, where one convolution for each group is much faster."""
    return (platform or jax.default_backend()) == "cpu"


def local_response_norm(x: jax.Array) -> jax.Array:
    """Returns x / (1 + α/5 · Σ x²)^β, where Σ sums over 5 neighbouring channels.

    α is 1e-4 and β is 0.75. The formula is that of Krizhevsky et al. 2012, section 3.3,
    with the constants and the division of α by 5 of BVLC's Caffe (lrn_layer and
    models/bvlc_alexnet). It is computed in float32 and returned in the dtype of x.
    """
    window, alpha, beta = 5, 1e-4, 0.75
    wide = x.astype(jnp.float32)
    one = (1,) * (x.ndim - 1)
    margin = [(0, 0)] * (x.ndim - 1) + [(window // 2, window // 2)]
    squares: jax.Array = lax.reduce_window(
        wide * wide, 0.0, lax.add, (*one, window), (*one, 1), margin
    )
    scale = (1.0 + alpha / window * squares) ** -beta
    return (wide * scale).astype(x.dtype)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Returns the maxima of 3×3 windows with stride 2, padded as Caffe pads them.

    Every pixel is in a window, and the last window may lack a row or a column: a side
    of 112 pixels becomes 56, where the padding "VALID" gives 55. If the maximum of a
    window stands in several places, the first one gets the gradient; a NaN gets none.
    Only reverse-mode differentiation is possible.
    """
    padding = [(0, 0), *((0, (size - 3) % 2) for size in x.shape[1:3]), (0, 0)]
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    y: jax.Array = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    return y


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    pooled = max_pool(x)
    return pooled, (x, pooled)


def _max_pool_backward(
    kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array]:
    """Returns the gradient of `max_pool`, summed over the nine places of a window.

    XLA's own gradient uses arrays of indices, which cost a CPU more time and memory.
    """
    x, pooled = kept
    height, width = x.shape[1:3]
    rows, columns = (2 * size + 1 for size in pooled.shape[1:3])
    missing = [(0, 0), (0, rows - height), (0, columns - width), (0, 0)]
    windows = jnp.pad(x, missing, constant_values=-jnp.inf)
    free = jnp.ones(pooled.shape, bool)
    total = jnp.zeros((), jnp.float32)
    for i, j in itertools.product(range(3), repeat=2):
        place = windows[:, i : i + rows - 2 : 2, j : j + columns - 2 : 2]
        here = free & (place == pooled)
        free &= ~here
        part = jnp.where(here, cotangent, 0).astype(jnp.float32)
        apart = [(0, 0, 0), (i, 2 - i, 1), (j, 2 - j, 1), (0, 0, 0)]
        total = total + lax.pad(part, jnp.float32(0), apart)
    return (total[:, :height, :width].astype(x.dtype),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
