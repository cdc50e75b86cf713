"""Image classifiers in Flax Linen, which turn uint8 images into float32 logits.

They are AlexNet, AlexNet-BN and ResNet-50 under the names that `lars_optax.recipes`
gives them, and small networks for 28×28 or 32×32 pixels. Raises ValueError for an
unknown name, an option that the network does not have, and float16.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ..flags import check_number
from .alexnet import AlexNet
from .layers import AxisName, Network, Pixels
from .resnet import ResNet
from .small import SmallAlexNet


class _Entry(NamedTuple):
    """The class and the arguments with which `make_model` builds one network."""

    build: type[Network]
    fixed: dict[str, Any]  # arguments of `build` that make it this network
    options: frozenset[str]  # arguments of `make_model` that this network can take
    pixels: int  # side of the images that it is meant for
    pixel_std: float | None = None  # what its authors divide pixels by, if published


_BN = frozenset({"bn_axis_name"})
_ALEXNET, _RESNET = frozenset({"dropout"}), _BN | {"zero_init_last_bn"}
_NETWORKS = {
    "alexnet": _Entry(AlexNet, {"form": "bvlc"}, _ALEXNET, 227, 1.0),
    "alexnet_bn": _Entry(AlexNet, {"form": "train_val2"}, _ALEXNET | _BN, 227, 256.0),
    "alexnet_bn_train_val": _Entry(
        AlexNet, {"form": "train_val"}, _ALEXNET | _BN, 227, 256.0
    ),
    "resnet50": _Entry(ResNet, {"stride_in": 1}, _RESNET, 224, 256.0),
    "resnet50_v1.5": _Entry(ResNet, {"stride_in": 2}, _RESNET, 224, 256.0),
    "alexnet_small": _Entry(SmallAlexNet, {"norm": False}, frozenset(), 28),
    "alexnet_bn_small": _Entry(SmallAlexNet, {"norm": True}, _BN, 28),
    "resnet_small": _Entry(
        ResNet, {"blocks": (2, 2, 2), "small_stem": True, "stride_in": 2}, _RESNET, 28
    ),
}


def make_model(
    network: str,
    *,
    classes: int,
    pixel_mean: Pixels,
    pixel_std: Pixels,
    width: float = 1.0,
    dtype: Any = "float32",
    dropout: float | None = None,
    zero_init_last_bn: bool = False,
    bn_axis_name: AxisName = None,
    platform: str | None = None,
) -> Network:
    """Returns the network of this name as a Flax module, without parameters.

    Args:
      network: name of the network, one of `networks()`.
      classes: number of classes, and so of logits.
      pixel_mean: subtracted from the pixels, which are 0 to 255; one number, or one for
        each channel. The LARS paper's networks subtract the training images' mean.
      pixel_std: divides the pixels after that; one number, or one for each channel. It
        is 1 in BVLC's AlexNet, and 256 in the LARS authors' AlexNet-BN and ResNet-50.
      width: multiplies the number of channels of every layer but the last; 1 for the
        network as published.
      dtype: dtype of activations and products, "float32" or "bfloat16". Parameters,
        BatchNorm's moments and logits are float32 either way.
      dropout: fraction of the outputs of the layers fc6 and fc7 that is dropped in
        training, for AlexNets; 0 drops none, and None means 0.5.
      zero_init_last_bn: whether the scale of the last BatchNorm of each residual block
        starts at 0 instead of 1, for ResNets.
      bn_axis_name: mapped axes over which BatchNorm takes its moments together, for
        networks with BatchNorm; None for the moments of each device's own images.
      platform: platform of the devices that run the network, such as "gpu", which
        decides the form of grouped convolutions; None for `jax.default_backend()`.
    """
    entry = _entry(network)
    check_number("classes", classes, low=1)
    check_number("width", width, above=0)
    stds = pixel_std if isinstance(pixel_std, tuple) else (pixel_std,)
    for std in stds:
        check_number("pixel_std", std, above=0)
    options: dict[str, Any] = {
        "dropout": dropout,
        "zero_init_last_bn": zero_init_last_bn or None,
        "bn_axis_name": bn_axis_name,
    }
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - entry.options:
        has = [known for known, other in _NETWORKS.items() if name in other.options]
        raise ValueError(
            f"{name}: got {given[name]!r}, but {network} does not have this option;"
            f" leave it out, or choose one of the networks {', '.join(has)}"
        )
    if dropout is not None:
        check_number("dropout", dropout, low=0, below=1)
    compute = _compute_dtype(dtype)
    return entry.build(
        classes,
        pixel_mean,
        pixel_std,
        width,
        compute,
        platform=platform,
        **entry.fixed,
        **given,
    )


def networks() -> tuple[str, ...]:
    """Returns the names of the networks that `make_model` can build."""
    return tuple(_NETWORKS)


def image_pixels(network: str) -> int:
    """Returns the side of the images that the network of this name is meant for."""
    return _entry(network).pixels


def published_pixel_std(network: str) -> float | None:
    """Returns the number by which the network's authors divide pixels.

    Returns None for the small networks, which exist in this trainer alone.
    """
    return _entry(network).pixel_std


def _entry(network: str) -> _Entry:
    if network not in _NETWORKS:
        raise ValueError(
            f"network: got {network!r}; give one of {', '.join(networks())}"
        )
    return _NETWORKS[network]


def _compute_dtype(dtype: Any) -> Any:
    try:
        compute = jnp.dtype(dtype)
    except TypeError:
        compute = None
    if compute == jnp.float16:
        raise ValueError(
            "dtype: got float16; gradients below 6e-8 would become 0, because this"
            " trainer does not scale the loss; give bfloat16, whose range is float32's"
        )
    if compute not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype: got {dtype!r}; give float32 or bfloat16")
    return compute
