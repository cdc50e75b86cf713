"""AlexNet as BVLC released it, and two forms of AlexNet with BatchNorm (AlexNet-BN).

The two forms are those in the files of the LARS paper's authors. All three differ in
the operations after each convolution and in the initial biases.
Raises ValueError for images so small that pooling would leave no pixel.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import Conv, Network, batch_norm, local_response_norm, max_pool

FormName = Literal["bvlc", "train_val2", "train_val"]
_SMALLEST = 39  # side of the images of which the last pooling leaves one pixel

# Channels, kernel side, stride, padding, groups.
_CONVOLUTIONS = (
    (96, 11, 4, 0, 1),
    (256, 5, 1, 2, 2),
    (384, 3, 1, 1, 1),
    (384, 3, 1, 1, 2),
    (256, 3, 1, 1, 2),
)
_HIDDEN = 4096
_OPERATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "lrn": local_response_norm,
    "pool": max_pool,
}


class Form(NamedTuple):
    """The properties in which BVLC's AlexNet and the two AlexNet-BN differ."""

    after: tuple[str, str, str, str, str]  # operations after each convolution, in order
    conv_bias: tuple[float | None, ...]  # initial values; None: there is no bias
    fc_bias: tuple[float, float, float]  # initial values
    affine: bool = False  # whether BatchNorm learns a scale and a bias


FORMS: dict[FormName, Form] = {
    # BVLC/caffe, models/bvlc_alexnet/train_val.prototxt. CaffeNet pools before the LRN.
    "bvlc": Form(
        ("relu lrn pool", "relu lrn pool", "relu", "relu", "relu pool"),
        (0.0, 0.1, 0.0, 0.1, 0.1),
        (0.1, 0.1, 0.0),
    ),
    # borisgin/nvcaffe-0.16, models/alexnet_bn/train_val2.prototxt. The authors' solvers
    # name this file, and only its biases give the norms of the paper's Table 4.
    "train_val2": Form(
        ("relu pool bn", "relu pool bn", "relu bn", "relu bn", "relu pool"),
        (0.01, 0.01, 0.01, 0.01, 0.01),
        (0.1, 0.1, 0.01),
    ),
    # The same folder's train_val.prototxt.
    "train_val": Form(
        ("bn relu pool", "bn relu pool", "bn relu", "bn relu", "bn relu pool"),
        (None, None, None, None, 0.1),
        (0.1, 0.1, 0.0),
        affine=True,
    ),
}


class AlexNet(Network):
    """AlexNet: five convolutions and three dense layers, for images of 227×227 pixels.

    Training needs `rngs={"dropout": key}` unless `dropout` is 0.
    """

    form: FormName = "bvlc"
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        form = FORMS[self.form]
        affine = {"use_scale": form.affine, "use_bias": form.affine}
        norm = partial(batch_norm, train, self.dtype, self.bn_axis_name, **affine)
        conv = partial(
            Conv,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            platform=self.platform,
        )
        x = self.normalized(images, _SMALLEST)
        rows = zip(_CONVOLUTIONS, form.conv_bias, form.after, strict=True)
        for i, (layer, bias, after) in enumerate(rows, start=1):
            channels, side, stride, padding, groups = layer
            features = self.scaled(channels, multiple_of=2)
            x = conv(features, side, stride, padding, groups, bias, name=f"conv{i}")(x)
            for name in after.split():
                x = norm(name=f"bn{i}")(x) if name == "bn" else _OPERATIONS[name](x)
        x = x.reshape(len(x), -1)
        for i, bias in zip((6, 7), form.fc_bias[:2], strict=True):
            x = nn.relu(self._dense(f"fc{i}", self.scaled(_HIDDEN), 0.005, bias)(x))
            x = nn.Dropout(self.dropout, name=f"drop{i}")(x, deterministic=not train)
        return self._dense("fc8", self.classes, 0.01, form.fc_bias[2])(x)

    def _dense(self, name: str, features: int, std: float, bias: float) -> nn.Dense:
        return nn.Dense(
            features,
            dtype=jnp.float32 if name == "fc8" else self.dtype,
            kernel_init=nn.initializers.normal(std),
            bias_init=nn.initializers.constant(bias),
            name=name,
        )
