"""Layers as Caffe computes them, where Flax has none or another; the networks' base.

Grouped convolution as one kernel, local response normalisation across channels, max
pooling that rounds up, and BatchNorm whose training pass returns its batch's moments.
"""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Initializer = Callable[..., Any]
Pixels = float | tuple[float, ...]  # of all channels, or of each
AxisName = str | tuple[str, ...] | None

# Weights of variance 2 / fan_in ("MSRA" in Caffe) and 1 / fan_in.
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
LINEAR = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Network(nn.Module):
    """What every network here is given; its logits are float32 whatever `dtype` is.

    Parameters and "batch_stats" are float32 too: `dtype` is that of activations and
    of what is multiplied. `bn_axis_name` normalises over those mapped axes together; by
    default the images of one call alone.
    """

    classes: int
    pixel_mean: Pixels
    pixel_std: Pixels
    width: float = 1.0
    dtype: Any = jnp.float32
    bn_axis_name: AxisName = None

    def normalized(self, images: jax.Array, smallest: int = 1) -> jax.Array:
        """Pixels less their mean, over their standard deviation, in `dtype`.

        Refuses fewer than `smallest` pixels a side: the last layers would get none.
        """
        height, width = images.shape[1:3]
        if min(height, width) < smallest:
            raise ValueError(
                f"images: got {height}×{width} pixels; this network takes at least"
                f" {smallest}×{smallest}: give larger images, or a small network"
            )
        mean = jnp.asarray(self.pixel_mean, jnp.float32)
        std = jnp.asarray(self.pixel_std, jnp.float32)
        return ((images.astype(jnp.float32) - mean) / std).astype(self.dtype)

    def scaled(self, channels: int, multiple_of: int = 1) -> int:
        """That many channels times `width`, rounded, never none."""
        return multiple_of * max(1, round(channels * self.width / multiple_of))


def batch_norm(train: bool, dtype: Any, axis_name: Any, **options: Any) -> nn.BatchNorm:
    """Flax's BatchNorm with Caffe's ε = 1e-4 for these networks.

    The "batch_stats" a training pass returns are the moments of its own batch, not a
    running average: `train_step` averages them over devices, then in time.
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
    """Convolution with symmetric padding; the kernel of all groups is one leaf.

    kernel: float32 [side, side, channels / groups, features]; bias: float32 [features],
    or none where `bias` is None. LARS thus takes all groups for one layer, as Caffe,
    where they are one blob.
    """

    features: int
    side: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    kernel_init: Initializer = HE
    bias: float | None = 0.0  # its initial value
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.side, self.side, x.shape[-1] // self.groups, self.features)
        kernel: jax.Array = self.param("kernel", self.kernel_init, shape)
        y = grouped_conv(
            x,
            kernel.astype(self.dtype),
            self.groups,
            self.stride,
            self.padding,
            as_slices=_grouped_convolution_is_slow(),
        )
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
    """Group i of the output channels sees group i of the input channels alone.

    `as_slices` computes one convolution a group, otherwise XLA is told the groups.
    """
    if as_slices and groups > 1:
        outputs = [
            grouped_conv(part, weights, 1, stride, padding, as_slices=False)
            for part, weights in zip(
                jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True
            )
        ]
        return jnp.concatenate(outputs, -1)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _grouped_convolution_is_slow() -> bool:
    """True on CPUs: XLA computes slices much faster there than groups."""
    return jax.default_backend() == "cpu"


def local_response_norm(x: jax.Array) -> jax.Array:
    """x / (1 + α/5 · Σ x²)^β, the sum over 5 neighbouring channels; α 1e-4, β 0.75.

    Krizhevsky et al. 2012, section 3.3, with the k, α, β and the division of α by the
    window that BVLC/caffe's lrn_layer and models/bvlc_alexnet have. In float32.
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
    """Maximum over 3×3 windows, stride 2, the number of windows rounded up.

    As BVLC/caffe's pooling_layer without padding: every pixel is in a window, and the
    last window may lack a row or column. 112 → 56, where VALID gives 55. Of equal
    pixels the first has the gradient, as there. Reverse mode alone; a NaN has none.
    """
    padding = [(0, (size - 3) % 2) for size in x.shape[1:3]]
    pooled: jax.Array = lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        [(0, 0), *padding, (0, 0)],
    )
    return pooled


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    pooled = max_pool(x)
    return pooled, (x, pooled)


def _max_pool_backward(
    kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array]:
    """Each of a window's nine places in turn.

    XLA's own gradient goes by index arrays, which take a CPU more time and memory.
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
