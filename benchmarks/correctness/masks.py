"""The default mask on real networks in Linen, Haiku, NNX and Equinox.

    python -m benchmarks.correctness.masks

Counts the biases and norm parameters that a mask by rank would adapt. NNX and Equinox
ship no such network: theirs are here, parameters only. Writes results/masks.json, .md.
"""

import itertools
import json
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

import lars_optax
from examples.imagenet.models import make_model
from examples.imagenet.provenance import provenance
from examples.imagenet.report.page import markdown_table

RESULTS = Path("benchmarks/results/masks.json")
HEAD = ("model", "adapted leaves", "adapted parameters",
        "biases and norms that `x.ndim > 1` adapts", "such as")  # fmt: skip
LINE = "{}|{} of {}|{:,} of {:,}|{}|{}"
FIELDS = ("model", "adapted_leaves", "leaves", "adapted_parameters", "parameters",
          "wrong_by_rank", "such_as")  # fmt: skip
IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((1, 197, 768), jnp.float32)


class Encoder(nn.Module):
    """A block of ViT-B (Dosovitskiy et al. 2020)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(12)(y, y)
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class Block(nnx.Module):
    """Of ResNet-18: two 3×3 convolutions, and one on the shortcut where it must be."""

    def __init__(self, inputs: int, channels: int, rngs: nnx.Rngs) -> None:
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = partial(nnx.BatchNorm, channels, rngs=rngs)
        self.conv1, self.bn1 = conv(inputs, channels, (3, 3)), norm()
        self.conv2, self.bn2 = conv(channels, channels, (3, 3)), norm()
        if inputs != channels:
            self.downsample = nnx.Sequential(conv(inputs, channels, (1, 1)), norm())


class ResNet18(nnx.Module):
    """He et al. 2015, Table 1."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 64, (7, 7), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(64, rngs=rngs)
        sizes = itertools.pairwise((64, 64, 64, 128, 128, 256, 256, 512, 512))
        self.blocks = nnx.List([Block(*pair, rngs) for pair in sizes])
        self.fc = nnx.Linear(512, 1000, rngs=rngs)


class AlexNet(eqx.Module):
    """Krizhevsky et al. 2012."""

    convolutions: list[eqx.nn.Conv2d]
    linears: list[eqx.nn.Linear]

    def __init__(self, key: jax.Array) -> None:
        conv, linear = partial(eqx.nn.Conv2d, key=key), partial(eqx.nn.Linear, key=key)
        sizes = itertools.pairwise((3, 96, 256, 384, 384, 256))
        kernels = zip(sizes, (11, 5, 3, 3, 3), (1, 2, 1, 2, 2), strict=True)
        self.convolutions = [conv(*io, side, groups=n) for io, side, n in kernels]
        self.linears = [linear(9216, 4096), linear(4096, 4096), linear(4096, 1000)]


def networks() -> Iterator[tuple[str, Any]]:
    """Names, and parameters as shapes."""
    key = jax.random.key(0)
    ours = make_model("resnet50", classes=1000, pixel_mean=128.0, pixel_std=64.0)
    resnet = jax.eval_shape(partial(ours.init, train=False), key, IMAGES)
    yield "Linen ResNet-50 of `examples.imagenet`", resnet["params"]
    yield "Linen block of ViT-B", jax.eval_shape(Encoder().init, key, TOKENS)["params"]
    net = hk.transform_with_state(lambda x: hk.nets.ResNet50(1000)(x, True))
    yield "Haiku `hk.nets.ResNet50`", jax.eval_shape(net.init, key, IMAGES)[0]
    model = nnx.eval_shape(lambda: ResNet18(nnx.Rngs(0)))
    yield "NNX ResNet-18", nnx.state(model, nnx.Param)
    yield "Equinox AlexNet", eqx.filter_eval_shape(AlexNet, key)


def main() -> None:
    rows, summary, folds = [], [list(HEAD)], ""
    for name, params in networks():
        leaves = jax.tree.leaves(params)
        adapted = jax.tree.leaves(lars_optax.exclude_bias_and_norm(params))
        table = lars_optax.describe_mask("exclude_bias_and_norm", params)
        triples = zip(table.splitlines(), leaves, adapted, strict=False)
        wrong = [line for line, x, yes in triples if x.ndim > 1 and not yes]
        sizes = [x.size for x in leaves]
        chosen = sum(n for n, yes in zip(sizes, adapted, strict=True) if yes)
        example = " ".join(wrong[0].split()[:-1]) if wrong else ""
        row = (name, sum(adapted), len(leaves), chosen, sum(sizes), len(wrong), example)
        rows.append(dict(zip(FIELDS, row, strict=True)))
        summary.append(LINE.format(*row).split("|"))
        folds += f"\n<details><summary>{name}</summary>\n\n"
        folds += f"```text\n{table}\n```\n\n</details>\n"
    record = provenance() | {"rows": rows}
    record["versions"] |= {x: version(x) for x in ("dm-haiku", "equinox")}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    page = markdown_table(summary) + folds
    RESULTS.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
