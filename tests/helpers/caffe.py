"""Caffe's layers and the three networks, naively, in NumPy float64.

Written from BVLC/caffe (pooling_layer, lrn_layer, models/bvlc_alexnet) and
borisgin/nvcaffe-0.16 (models/alexnet_bn, models/resnet50); imports nothing of the
project. Images [n, height, width, channels], kernels [height, width, in, out].
"""

import numpy as np


def windows(x, side, stride):
    """[n, rows, columns, channels, side, side]"""
    every = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))
    return every[:, ::stride, ::stride]


def conv(x, kernel, bias=0.0, stride=1, pad=0, group=1):
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    parts = zip(np.split(x, group, 3), np.split(kernel, group, 3), strict=True)
    made = [
        np.tensordot(windows(seen, len(part), stride), part, ([4, 5, 3], [0, 1, 2]))
        for seen, part in parts
    ]
    return np.concatenate(made, 3) + bias


def pool(x, side=3, stride=2):
    """Max; the output's size is rounded up, the last window cut off at the edge."""
    rows, columns = (-(-(size - side) // stride) + 1 for size in x.shape[1:3])
    edge = [(0, 0), (0, stride), (0, stride), (0, 0)]
    x = np.pad(x, edge, constant_values=-np.inf)
    return windows(x, side, stride)[:, :rows, :columns].max((4, 5))


def lrn(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    half = size // 2
    squares = np.pad(x**2, [(0, 0)] * 3 + [(half, half)])
    near = np.lib.stride_tricks.sliding_window_view(squares, size, 3).sum(-1)
    return x / (k + alpha / size * near) ** beta


def bn(x, stats, affine):
    y = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-4)
    return y * affine.get("scale", 1.0) + affine.get("bias", 0.0)


def relu(x):
    return np.maximum(x, 0)


# In the prototxt's order; a bn has the number of the convolution before it.
ALEXNETS = {
    "alexnet": "conv1 relu lrn pool conv2 relu lrn pool conv3 relu conv4 relu"
    " conv5 relu pool fc6 relu fc7 relu fc8",
    "alexnet_bn": "conv1 relu pool bn1 conv2 relu pool bn2 conv3 relu bn3"
    " conv4 relu bn4 conv5 relu pool fc6 relu fc7 relu fc8",
    "alexnet_bn_train_val": "conv1 bn1 relu pool conv2 bn2 relu pool conv3 bn3 relu"
    " conv4 bn4 relu conv5 bn5 relu pool fc6 relu fc7 relu fc8",
}
_CONVS = {
    "conv1": {"stride": 4},
    "conv2": {"pad": 2, "group": 2},
    "conv3": {"pad": 1},
    "conv4": {"pad": 1, "group": 2},
    "conv5": {"pad": 1, "group": 2},
}


def alexnet(network, params, stats, x):
    for layer in ALEXNETS[network].split():
        own = params.get(layer, {})
        if layer in _CONVS:
            x = conv(x, **own, **_CONVS[layer])
        elif layer.startswith("bn"):
            x = bn(x, stats[layer], own)
        elif layer.startswith("fc"):
            x = x.reshape(len(x), -1) @ own["kernel"] + own["bias"]
        else:
            x = {"relu": relu, "lrn": lrn, "pool": pool}[layer](x)
    return x


def resnet(blocks, params, stats, x, *, v1, small_stem):
    def conv_bn(x, suffix, stride, pad, params=params, stats=stats):
        kernel = params[f"conv{suffix}"]["kernel"]
        x = conv(x, kernel, stride=stride, pad=pad)
        return bn(x, stats[f"bn{suffix}"], params[f"bn{suffix}"])

    if small_stem:
        x = relu(conv_bn(x, "1", 1, 1))
    else:
        x = pool(relu(conv_bn(x, "1", 2, 3)))
    for stage, count in enumerate(blocks, start=1):
        for block in range(1, count + 1):
            name = f"stage{stage}_block{block}"
            own = (params[name], stats[name])
            stride = 2 if stage > 1 and block == 1 else 1
            y = relu(conv_bn(x, "1", stride if v1 else 1, 0, *own))
            y = relu(conv_bn(y, "2", 1 if v1 else stride, 1, *own))
            y = conv_bn(y, "3", 1, 0, *own)
            if block == 1:
                x = conv_bn(x, "_projection", stride, 0, *own)
            x = relu(x + y)
    return x.mean((1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]
