"""ResNet with bottleneck blocks in the versions v1 and v1.5, by default ResNet-50.

It is that of He et al. 2015, Table 1, as the LARS paper's authors build it in Caffe
(borisgin/nvcaffe-0.16, models/resnet50). The small form, for images of 28×28 or 32×32
pixels, starts with a 3×3 convolution and has no pooling after it.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import HE, Conv, Network, batch_norm, max_pool

_EXPANSION = 4  # output channels of a block / channels of its 3×3 convolution


class Bottleneck(nn.Module):
    """Residual block: 1×1, 3×3 and 1×1 convolutions with BatchNorm, added to the input.

    The first block of a stage projects its input to the new shape by a 1×1 convolution
    with BatchNorm.
    """

    channels: int  # of the first and the second convolution
    strides: tuple[int, int]  # of the first and the second convolution
    project: bool  # whether the input is projected
    zero_init_last_bn: bool  # whether the scale of the last BatchNorm starts at 0
    norm: Any  # function that returns a BatchNorm layer with the name it is given
    dtype: Any  # of activations and products

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(Conv, dtype=self.dtype)
        first, second = self.strides
        last = nn.initializers.zeros if self.zero_init_last_bn else nn.initializers.ones
        out = _EXPANSION * self.channels
        y = conv(self.channels, 1, first, 0, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = conv(self.channels, 3, second, 1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = conv(out, 1, 1, 0, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=last)(y)
        if self.project:
            x = conv(out, 1, first * second, 0, name="conv_projection")(x)
            x = self.norm(name="bn_projection")(x)
        return nn.relu(x + y)


class ResNet(Network):
    """ResNet of bottleneck blocks, whose stages except the first halve the image."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)  # number of blocks in each stage
    # The convolution that halves height and width: the first one, 1×1, in version v1 of
    # the paper; the second, 3×3, in v1.5 (Goyal et al. 2017, MLPerf).
    stride_in: Literal[1, 2] = 1
    small_stem: bool = False  # whether to start with a 3×3 convolution and no pooling
    # Whether each block starts as the identity (Goyal et al. 2017, section 5.1).
    zero_init_last_bn: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train, self.dtype, self.bn_axis_name)
        x = self.normalized(images, 1 if self.small_stem else 3)
        stem = (3, 1, 1) if self.small_stem else (7, 2, 3)  # side, stride, padding
        x = Conv(self.scaled(64), *stem, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        if not self.small_stem:
            x = max_pool(x)
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                stride = 2 if stage and not block else 1
                x = Bottleneck(
                    self.scaled(64 * 2**stage),
                    (stride, 1) if self.stride_in == 1 else (1, stride),
                    project=not block,
                    zero_init_last_bn=self.zero_init_last_bn,
                    norm=norm,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x)
        x = x.mean((1, 2), dtype=jnp.float32)
        return nn.Dense(self.classes, kernel_init=HE, name="fc")(x)
