"""What a leaf is by its name, its module's name and its rank: weight, bias or norm."""

import re

from lars_optax._tree import Path, path_string

# What leaves and modules are called in Linen, NNX, Haiku and Equinox.
_NORM_LEAVES = {"scale", "offset", "gamma", "beta"}
_WEIGHT_LEAVES = {"kernel", "w", "embedding", "embeddings"}
_NORM_MODULE = re.compile(
    r"(^|_|batch|layer|group|instance|rms)(norm|bn|ln|gn)\d*(_|$)"
)


def is_weight(path: Path, rank: int) -> bool:
    """False for a bias or a norm's parameter, as `exclude_bias_and_norm` tells."""
    # Haiku writes a module's whole path into one key ('net/~/batchnorm'); CamelCase
    # module names become snake_case.
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path_string(path)).lower()
    *modules, name = snake.split("/")
    if name == "b" or "bias" in re.split(r"[_\d]+", name) or name in _NORM_LEAVES:
        return False
    if name in _WEIGHT_LEAVES:
        return True
    if modules and _NORM_MODULE.search(modules[-1]):
        return False
    return rank > 1
