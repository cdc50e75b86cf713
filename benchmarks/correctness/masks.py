"""Applies the package's default mask to networks in Linen, Haiku, NNX and Equinox.

    python -m benchmarks.correctness.masks

Counts the parameters that the mask adapts, that is gives a trust ratio. Also counts the
biases and normalisation parameters that the mask `x.ndim > 1` would adapt. NNX and
Equinox include no whole networks, so the layers of a ResNet-18 and of an AlexNet are
defined here. Writes benchmarks/results/masks.json and masks.md.
"""

import itertools
from functools import partial
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import tyro
from flax import nnx

import lars_optax
from benchmarks.networks import Encoder, shapes
from benchmarks.results import RESULTS, Record, markdown, save

HEAD = """# Masks of networks

The default mask `"exclude_bias_and_norm"` selects the weights of a network. In some
networks the mask `lambda x: x.ndim > 1` also selects biases and norm parameters. The
rows are networks from four frameworks. Each list below the table has all leaves of one
network and says which are adapted.

"""
IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
COLUMNS = {
    "model": "{model}",
    "adapted leaves": "{adapted_leaves} of {leaves}",
    "adapted parameters": "{adapted_parameters:,} of {parameters:,}",
    "biases and norms that `x.ndim > 1` adapts": "{wrong_by_rank}",
    "such as": "{such_as}",
}
TOKENS = jax.ShapeDtypeStruct((1, 197, 768), jnp.float32)


class Block(nnx.Module):
    """A block of ResNet-18: two 3×3 convolutions, and a 1×1 where channels change."""

    def __init__(self, inputs: int, channels: int, rngs: nnx.Rngs) -> None:
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = partial(nnx.BatchNorm, channels, rngs=rngs)
        self.conv1, self.bn1 = conv(inputs, channels, (3, 3)), norm()
        self.conv2, self.bn2 = conv(channels, channels, (3, 3)), norm()
        if inputs != channels:
            self.downsample = nnx.Sequential(conv(inputs, channels, (1, 1)), norm())


class ResNet18(nnx.Module):
    """ResNet-18 (He et al. 2015, Table 1)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 64, (7, 7), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(64, rngs=rngs)
        sizes = itertools.pairwise((64, 64, 64, 128, 128, 256, 256, 512, 512))
        self.blocks = nnx.List([Block(*pair, rngs) for pair in sizes])
        self.fc = nnx.Linear(512, 1000, rngs=rngs)


class AlexNet(eqx.Module):
    """AlexNet (Krizhevsky et al. 2012)."""

    convolutions: list[eqx.nn.Conv2d]
    linears: list[eqx.nn.Linear]

    def __init__(self, key: jax.Array) -> None:
        conv, linear = partial(eqx.nn.Conv2d, key=key), partial(eqx.nn.Linear, key=key)
        sizes = itertools.pairwise((3, 96, 256, 384, 384, 256))
        kernels = zip(sizes, (11, 5, 3, 3, 3), (1, 2, 1, 2, 2), strict=True)
        self.convolutions = [conv(*io, side, groups=n) for io, side, n in kernels]
        self.linears = [linear(9216, 4096), linear(4096, 4096), linear(4096, 1000)]


def networks() -> dict[str, Any]:
    """Returns the parameter shapes of each network, under its title in the table."""
    key = jax.random.key(0)
    haiku = hk.transform_with_state(lambda x: hk.nets.ResNet50(1000)(x, True))
    resnet18 = nnx.eval_shape(lambda: ResNet18(nnx.Rngs(0)))
    vit_block = jax.eval_shape(Encoder().init, key, TOKENS)["params"]
    return {
        "Linen ResNet-50 of `examples.imagenet`": shapes("resnet50"),
        "Linen block of ViT-B": vit_block,
        "Haiku `hk.nets.ResNet50`": jax.eval_shape(haiku.init, key, IMAGES)[0],
        "NNX ResNet-18": nnx.state(resnet18, nnx.Param),
        "Equinox AlexNet": eqx.filter_eval_shape(AlexNet, key),
    }


def count(name: str, params: Any, description: str) -> Record:
    """Returns a network's row of the table: how much the default mask adapts.

    The row also counts the leaves that only the mask `x.ndim > 1` adapts, and names the
    first. `description` is the text of `describe_mask` for `params`.
    """
    leaves = jax.tree.leaves(params)
    adapted = jax.tree.leaves(lars_optax.exclude_bias_and_norm(params))
    sizes = [x.size for x in leaves]
    lines = zip(description.splitlines(), leaves, adapted, strict=False)
    wrong = [line for line, x, yes in lines if x.ndim > 1 and not yes]
    return {
        "model": name,
        "adapted_leaves": sum(adapted),
        "leaves": len(leaves),
        "adapted_parameters": sum(itertools.compress(sizes, adapted)),
        "parameters": sum(sizes),
        "wrong_by_rank": len(wrong),
        "such_as": " ".join(wrong[0].split()[:-1]) if wrong else "",
    }


def page(rows: list[Record], descriptions: dict[str, str]) -> str:
    """Returns the text of masks.md: the table, then the mask of each leaf."""
    cells = ({k: form.format(**row) for k, form in COLUMNS.items()} for row in rows)
    lists = (
        f"\n<details><summary>{name}</summary>\n\n"
        f"```text\n{description}\n```\n\n</details>\n"
        for name, description in descriptions.items()
    )
    return HEAD + markdown(cells) + "".join(lists)


def main() -> None:
    rows, descriptions = [], {}
    for name, params in networks().items():
        text = lars_optax.describe_mask("exclude_bias_and_norm", params)
        rows.append(count(name, params, text))
        descriptions[name] = text
    text = page(rows, descriptions)
    (RESULTS / "masks.md").write_text(text)
    print(text)
    save("masks.json", {"rows": rows}, packages=("dm-haiku", "equinox"))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
