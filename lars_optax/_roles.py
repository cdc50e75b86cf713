"""What a leaf is by its name, its module's name and its rank: weight, bias or norm."""

import re

from lars_optax._tree import Path, path_string

# What leaves and modules are called in Linen, NNX, Haiku and Equinox.
_NORM_LEAVES = {"scale", "offset", "gamma", "beta"}
_WEIGHT_LEAVES = {"kernel", "w", "embedding", "embeddings"}
# A module named for a norm by its last word, with or without a number.
_NORM_MODULE = re.compile(
    r"(^|_|batch|layer|group|instance|rms)(norms?|normali[sz]ation|bn|ln|gn)"
    r"(\d[0-9a-z]*)?(_\d+|_[a-z])?$"
)


def is_weight(path: Path, rank: int) -> bool:
    """False for a bias or a norm's parameter, as `exclude_bias_and_norm` tells."""
    # Haiku writes a module's whole path into one key, 'net/~/batchnorm'; the index of a
    # module in a list is not its name.
    *modules, name = path_string(path).split("/")
    words = re.split(r"[_\d]+", _snake_case(name))
    if name == "b" or {"bias", "biases"} & set(words) or name.lower() in _NORM_LEAVES:
        return False
    named = [_snake_case(module) for module in modules if not module.isdecimal()]
    in_norm = bool(named and _NORM_MODULE.search(named[-1]))
    if name in _WEIGHT_LEAVES:
        return not in_norm or rank > 1
    return not in_norm and rank > 1


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
