"""Decides whether a leaf is a weight, a bias or a parameter of a normalisation layer.

This role follows from the name of the leaf, the name of its module and its shape.
"""

import re

import jax

from lars_optax._tree import Path, path_string

# Names of leaves and modules in Linen, NNX, Haiku, Equinox and PyTorch. PyTorch's names
# remain in models ported to JAX.
_BIAS_WORDS = {"bias", "biases"}
_NORM_LEAVES = {"scale", "offset", "gamma", "beta"}
_WEIGHT_LEAVES = {"kernel", "w", "embedding", "embeddings"}
_WEIGHT_WORDS = {"kernel", "kernels", "w", "weight", "weights", "embedding",
                 "embeddings", "lora"}  # fmt: skip
# The last word of a factor of a weight, such as the gain weight_g of weight_v.
_GAIN_WORDS = {"g", "gain", "scale"}
# Class tokens, attention-pooling probes and position embeddings.
_TOKEN_WORD = re.compile(r"(token|cls|probe|embed|embedding)s?$")
# The name of a normalisation layer ends in such a word, with or without a number.
# Weight normalisation does not count, because its module holds weights.
_NORM_MODULE = re.compile(
    r"(^|(?<!weight)_|batch|layer|group|instance|rms)"
    r"(norms?|normali[sz]ation|bn|ln|gn)(\d[0-9a-z]*)?(_\d+|_[a-z])?$"
)


def is_weight(path: Path, shape: tuple[int, ...]) -> bool:
    """Returns True if a leaf is a weight by the rules of `exclude_bias_and_norm`.

    `shape` is the shape of one layer, without the axis along which layers are stacked.
    """
    *parents, name = _module_and_leaf_names(path)
    # The index of a module in a list is not its name.
    modules = [module for module in parents if not module.isdecimal()]
    if _is_bias(name) or name.lower() in _NORM_LEAVES or _is_nnx_gain(path):
        return False
    in_norm = bool(modules and _NORM_MODULE.search(_snake_case(modules[-1])))
    if name in _WEIGHT_LEAVES:
        return not in_norm or len(shape) > 1
    if in_norm:
        return False
    # An array in a list has the name of the list.
    if _names_a_weight(modules[-1] if name.isdecimal() and modules else name):
        return len(shape) > 1
    if len(shape) == 2 and (name.isdecimal() or not name):
        return True  # a kernel, as in [(kernel, bias), ...]
    return sum(length > 1 for length in shape) > 1


def _module_and_leaf_names(path: Path) -> list[str]:
    """Returns the names in a path, from the outermost module to the leaf.

    One key can hold several names. Haiku has keys such as 'net/~/batchnorm'. Flat trees
    have keys such as 'block.norm.weight', or tuples of names as from Flax's
    `flatten_dict`.
    """
    names: list[str] = []
    for key in path:
        parts = key.key if isinstance(key, jax.tree_util.DictKey) else None
        if isinstance(parts, tuple) and len(parts) > 1:
            names += map(str, parts)
        else:
            names += re.split(r"[/.]", path_string((key,)))
    return names or [""]


def _is_bias(name: str) -> bool:
    return name == "b" or not _BIAS_WORDS.isdisjoint(_words(name))


def _is_nnx_gain(path: Path) -> bool:
    # nnx.WeightNorm keeps its gains in the dict `scales`, whose keys are tuples.
    return path_string(path[-2:]).startswith("scales/(")


def _names_a_weight(name: str) -> bool:
    words = _words(name)
    if not words or words[-1] in _GAIN_WORDS:
        return False
    return not _WEIGHT_WORDS.isdisjoint(words) or bool(_TOKEN_WORD.search(words[-1]))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[_\d]+", _snake_case(name)) if word]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
