"""Networks in Flax Linen: uint8 images in, float32 logits out.

Small AlexNet-shaped networks for 28×28 and 32×32 images, without normalisation and
with BatchNorm after each convolution. Refuses a name it does not know.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_LINEAR = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

# Channels, kernel side, stride.
_CONVOLUTIONS = ((16, 5, 2), (32, 3, 2), (32, 3, 1))
_HIDDEN = 128


class SmallAlexNet(nn.Module):
    """Three convolutions, one hidden dense layer, `classes` logits.

    With `norm`, the "batch_stats" a training pass returns are the moments of its own
    batch, not a running average: `train_step` averages them over devices, then in time.
    """

    classes: int
    pixel_mean: float
    pixel_std: float
    width: float = 1.0
    norm: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = (images.astype(jnp.float32) - self.pixel_mean) / self.pixel_std
        for i, (channels, side, stride) in enumerate(_CONVOLUTIONS, start=1):
            x = nn.Conv(
                self._scaled(channels),
                (side, side),
                (stride, stride),
                use_bias=not self.norm,  # BatchNorm has its own
                kernel_init=_HE,
                name=f"conv{i}",
            )(x)
            if self.norm:
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=0.0,
                    epsilon=1e-4,
                    name=f"bn{i}",
                )(x)
            x = nn.relu(x)
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(self._scaled(_HIDDEN), kernel_init=_HE, name="fc1")(x))
        return nn.Dense(self.classes, kernel_init=_LINEAR, name="fc2")(x)

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))


def make_model(
    network: str, *, classes: int, width: float, pixel_mean: float, pixel_std: float
) -> nn.Module:
    """The network of that name, for pixels of that mean and standard deviation."""
    norms = {"alexnet-small": False, "alexnet-bn-small": True}
    if network not in norms:
        raise ValueError(f"network: got {network!r}; give one of {', '.join(norms)}")
    return SmallAlexNet(classes, pixel_mean, pixel_std, width, norms[network])
