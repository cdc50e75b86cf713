"""AlexNet as BVLC released it, and AlexNet-BN in both orders of the authors' files.

They differ in what follows each convolution and in the initial biases: one row each.
Refuses images of which the poolings would leave nothing.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import Conv, Network, batch_norm, local_response_norm, max_pool

FormName = Literal["bvlc", "train_val2", "train_val"]
_SMALLEST = 39  # pixels a side; the last pooling leaves 1×1 of them

# Channels, kernel side, stride, padding, groups.
_CONVOLUTIONS = (
    (96, 11, 4, 0, 1),
    (256, 5, 1, 2, 2),
    (384, 3, 1, 1, 1),
    (384, 3, 1, 1, 2),
    (256, 3, 1, 1, 2),
)
_HIDDEN = 4096


class Form(NamedTuple):
    """What tells the three networks apart."""

    after: tuple[str, str, str, str, str]  # of each convolution, in order
    conv_bias: tuple[float | None, ...]  # initial values; None: there is no bias
    fc_bias: tuple[float, float, float]
    affine: bool = False  # BatchNorm learns a scale and a bias


FORMS: dict[FormName, Form] = {
    # BVLC/caffe, models/bvlc_alexnet/train_val.prototxt. CaffeNet has pool, then LRN.
    "bvlc": Form(
        ("relu lrn pool", "relu lrn pool", "relu", "relu", "relu pool"),
        (0.0, 0.1, 0.0, 0.1, 0.1),
        (0.1, 0.1, 0.0),
    ),
    # borisgin/nvcaffe-0.16, models/alexnet_bn/train_val2.prototxt: the one its solvers
    # name, and the only one whose biases give the paper's Table 4.
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
    """Five convolutions, three dense layers; 227×227 pixels leave 6×6×256 for fc6.

    Training needs `rngs={"dropout": key}` unless `dropout` is 0.
    """

    form: FormName = "bvlc"
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        form = FORMS[self.form]
        x = self.normalized(images, _SMALLEST)
        for i, (channels, side, stride, padding, groups) in enumerate(_CONVOLUTIONS):
            x = Conv(
                self.scaled(channels, multiple_of=2),
                side,
                stride,
                padding,
                groups,
                nn.initializers.normal(0.01),
                form.conv_bias[i],
                self.dtype,
                name=f"conv{i + 1}",
            )(x)
            for operation in form.after[i].split():
                x = self._apply(operation, i + 1, x, train)
        x = x.reshape(len(x), -1)
        for i in (6, 7):
            bias = form.fc_bias[i - 6]
            x = nn.relu(self._dense(f"fc{i}", self.scaled(_HIDDEN), 0.005, bias)(x))
            x = nn.Dropout(self.dropout, name=f"drop{i}")(x, deterministic=not train)
        return self._dense("fc8", self.classes, 0.01, form.fc_bias[2])(x)

    def _apply(self, operation: str, i: int, x: jax.Array, train: bool) -> jax.Array:
        match operation:
            case "relu":
                return nn.relu(x)
            case "lrn":
                return local_response_norm(x)
            case "pool":
                return max_pool(x)
        affine = FORMS[self.form].affine
        normalized: jax.Array = batch_norm(
            train,
            self.dtype,
            self.bn_axis_name,
            use_scale=affine,
            use_bias=affine,
            name=f"bn{i}",
        )(x)
        return normalized

    def _dense(self, name: str, features: int, std: float, bias: float) -> nn.Dense:
        return nn.Dense(
            features,
            dtype=jnp.float32 if name == "fc8" else self.dtype,
            kernel_init=nn.initializers.normal(std),
            bias_init=nn.initializers.constant(bias),
            name=name,
        )
