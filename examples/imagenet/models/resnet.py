"""ResNet with bottleneck blocks, v1 and v1.5; ResNet-50 by default.

He et al. 2015, Table 1, as borisgin/nvcaffe-0.16 models/resnet50 builds it. The small
form, for 28×28 and 32×32 pixels, starts with a 3×3 convolution and no pooling.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import HE, Network, batch_norm, max_pool

_EXPANSION = 4  # channels that leave a block over those of its 3×3 convolution


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolution, each with BatchNorm, added to the block's input.

    The first block of a stage projects the input, with BatchNorm, to the new shape.
    """

    channels: int
    strides: tuple[int, int]  # of the first and the second convolution
    project: bool
    zero_init_last_bn: bool
    norm: Any  # a BatchNorm once it has a name
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.strides
        last = nn.initializers.zeros if self.zero_init_last_bn else nn.initializers.ones
        out = _EXPANSION * self.channels
        y = self._conv("conv1", self.channels, 1, first)(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self._conv("conv2", self.channels, 3, second)(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self._conv("conv3", out, 1, 1)(y)
        y = self.norm(name="bn3", scale_init=last)(y)
        if self.project:
            x = self._conv("conv_projection", out, 1, first * second)(x)
            x = self.norm(name="bn_projection")(x)
        return nn.relu(x + y)

    def _conv(self, name: str, features: int, side: int, stride: int) -> nn.Conv:
        return _conv(name, features, side, stride, self.dtype)


class ResNet(Network):
    """`blocks` in each stage; every stage but the first halves height and width.

    `stride_in` is the convolution of a block that halves: 1, the first 1×1, is v1, the
    paper's; 2, the 3×3, is v1.5 (Goyal et al. 2017, MLPerf). `zero_init_last_bn` starts
    each block as its shortcut (Goyal et al. 2017, section 5.1).
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stride_in: Literal[1, 2] = 1
    small_stem: bool = False
    zero_init_last_bn: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train, self.dtype, self.bn_axis_name)
        x = self.normalized(images, 1 if self.small_stem else 3)
        side, stride = (3, 1) if self.small_stem else (7, 2)
        x = _conv("conv1", self.scaled(64), side, stride, self.dtype)(x)
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


def _conv(name: str, features: int, side: int, stride: int, dtype: Any) -> nn.Conv:
    """Without bias, padded alike on all sides, as Caffe does and SAME does not."""
    return nn.Conv(
        features,
        (side, side),
        (stride, stride),
        padding=side // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=HE,
        name=name,
    )
