"""What a leaf is by its name, its module's name and its shape: weight, bias or norm."""

import re

import jax

from lars_optax._tree import Path, path_string

# What leaves and modules are called in Linen, NNX, Haiku and Equinox, and in PyTorch,
# whose names remain in models ported to JAX.
_BIAS_WORDS = {"bias", "biases"}
_NORM_LEAVES = {"scale", "offset", "gamma", "beta"}
_WEIGHT_LEAVES = {"kernel", "w", "embedding", "embeddings"}
_WEIGHT_WORDS = {"kernel", "kernels", "w", "weight", "weights", "embedding",
                 "embeddings", "lora"}  # fmt: skip
# Last words of what multiplies a weight: weight_g is the gain of the weight weight_v.
_GAIN_WORDS = {"g", "gain", "scale"}
# Class tokens, probes of attention pooling and position embeddings.
_TOKEN_WORD = re.compile(r"(token|cls|probe|embed|embedding)s?$")
# A module named for a norm by its last word, with or without a number. Weight
# normalisation is not one of them: its module holds weights.
_NORM_MODULE = re.compile(
    r"(^|(?<!weight)_|batch|layer|group|instance|rms)"
    r"(norms?|normali[sz]ation|bn|ln|gn)(\d[0-9a-z]*)?(_\d+|_[a-z])?$"
)


def is_weight(path: Path, shape: tuple[int, ...]) -> bool:
    """False for a bias or a norm's parameter, as `exclude_bias_and_norm` describes.

    The shape is that of one layer: it does not have the axis on which layers are
    stacked.
    """
    *parents, name = _names(path)
    # The index of a module in a list is not its name.
    modules = [module for module in parents if not module.isdecimal()]
    if _is_bias(name) or name.lower() in _NORM_LEAVES or _is_nnx_gain(path):
        return False
    in_norm = bool(modules and _NORM_MODULE.search(_snake_case(modules[-1])))
    if name in _WEIGHT_LEAVES:
        return not in_norm or len(shape) > 1
    if in_norm:
        return False
    # An array in a list has the list's name.
    if _names_a_weight(modules[-1] if name.isdecimal() and modules else name):
        return len(shape) > 1
    if len(shape) == 2 and (name.isdecimal() or not name):
        return True  # a kernel, as in [(kernel, bias), ...]
    return sum(length > 1 for length in shape) > 1


def _names(path: Path) -> list[str]:
    """The names of a path, from the outermost module to the leaf.

    Haiku writes a module's whole path into one key, 'net/~/batchnorm'. A flat tree has
    keys such as 'block.norm.weight', or tuples of names as Flax's `flatten_dict` makes.
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
    # nnx.WeightNorm keeps its gains in a dict `scales`, whose keys are tuples.
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
