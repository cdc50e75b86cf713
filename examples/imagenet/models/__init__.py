"""Networks in Flax Linen: uint8 images in, float32 logits out.

The paper's three by the names of `lars_optax.recipes`, and small ones for 28×28 and
32×32 pixels. Refuses a name it does not know, an option the network does not have,
and float16.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ..flags import check_number
from .alexnet import AlexNet
from .layers import AxisName, Network, Pixels
from .resnet import ResNet
from .small import SmallAlexNet


class _Entry(NamedTuple):
    build: type[Network]
    fixed: dict[str, Any]
    options: frozenset[str]
    pixels: int  # a side, as published or meant
    pixel_std: float | None = None  # of the authors' files; None: that of the images


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
) -> Network:
    """The network of that name, for pixels of that mean and standard deviation.

    Args:
      network: one of `networks()`.
      classes: logits.
      pixel_mean: subtracted from pixels 0…255; a number, or one per channel. The
        paper's networks subtract the mean of the training images.
      pixel_std: what the difference is divided by; 1 in BVLC AlexNet, 256 in
        AlexNet-BN and ResNet-50.
      width: multiplies every layer's number of channels except the last's.
      dtype: of the computation, "float32" or "bfloat16"; parameters, BatchNorm's
        moments and logits are float32 in both.
      dropout: AlexNets: share of fc6's and fc7's outputs dropped in training; None
        for 0.5.
      zero_init_last_bn: ResNets: initial scale 0 of each block's last BatchNorm.
      bn_axis_name: networks with BatchNorm: mapped axes over which to normalise
        together; None for none.
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
            f"{name}: got {given[name]!r} for {network}, which has no such thing;"
            f" leave it out, or take one of {', '.join(has)}"
        )
    if dropout is not None:
        check_number("dropout", dropout, low=0, below=1)
    compute = _compute_dtype(dtype)
    return entry.build(
        classes, pixel_mean, pixel_std, width, compute, **entry.fixed, **given
    )


def networks() -> tuple[str, ...]:
    """The names `make_model` knows."""
    return tuple(_NETWORKS)


def image_pixels(network: str) -> int:
    """Pixels a side of the images the network is meant for."""
    return _entry(network).pixels


def published_pixel_std(network: str) -> float | None:
    """What its authors divide pixels by; None for the networks of this trainer."""
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
        raise ValueError(f"dtype: got {dtype!r}; give float32 or bfloat16") from None
    if compute == jnp.float16:
        raise ValueError(
            "dtype: got float16; gradients below 6e-8 would become 0, and this trainer"
            " does not scale the loss: give bfloat16, which has float32's range"
        )
    if compute not in (jnp.dtype("float32"), jnp.dtype("bfloat16")):
        raise ValueError(f"dtype: got {compute}; give float32 or bfloat16")
    return compute
