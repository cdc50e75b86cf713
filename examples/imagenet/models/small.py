"""A small network in the shape of AlexNet, for images of 28×28 or 32×32 pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import HE, LINEAR, Network, batch_norm

# Channels, kernel side, stride.
_CONVOLUTIONS = ((16, 5, 2), (32, 3, 2), (32, 3, 1))
_HIDDEN = 128


class SmallAlexNet(Network):
    """Three convolutions, one hidden dense layer, and a dense layer for the logits."""

    norm: bool = False  # whether BatchNorm follows each convolution

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.normalized(images)
        for i, (channels, side, stride) in enumerate(_CONVOLUTIONS, start=1):
            x = nn.Conv(
                self.scaled(channels),
                (side, side),
                (stride, stride),
                use_bias=not self.norm,  # BatchNorm has a bias of its own
                dtype=self.dtype,
                kernel_init=HE,
                name=f"conv{i}",
            )(x)
            if self.norm:
                x = batch_norm(train, self.dtype, self.bn_axis_name, name=f"bn{i}")(x)
            x = nn.relu(x)
        x = x.reshape(len(x), -1)
        hidden = self.scaled(_HIDDEN)
        x = nn.Dense(hidden, dtype=self.dtype, kernel_init=HE, name="fc1")(x)
        x = nn.relu(x).astype(jnp.float32)
        return nn.Dense(self.classes, kernel_init=LINEAR, name="fc2")(x)
