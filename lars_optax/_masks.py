"""Masks, which select leaves of the parameters by role, by path or as a tree.

True in a mask selects a leaf, as in every Optax mask. A mask is True, a tree of bool, a
prefix of such a tree, a function from the parameters to one of these, or the name
"exclude_bias_and_norm". The role of a leaf is weight, bias or norm parameter.
"""

import numbers
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lars_optax._axes import resolve_stacked_axes
from lars_optax._roles import is_weight
from lars_optax._tree import (
    broadcast_prefix,
    call_if_function,
    flatten,
    is_empty,
    list_some,
    path_string,
    quote,
)
from lars_optax._validate import check_bool

Mask = bool | str | Any | Callable[[optax.Params], Any]

BY_ROLE = "exclude_bias_and_norm"
_STATIC_ARGS = (
    "optax.inject_hyperparams calls every function with the step count. If a mask is "
    "a function, name its argument in static_args, as in "
    "static_args=('weight_decay_mask', 'trust_ratio_mask'). The mask named "
    f"{BY_ROLE!r} needs no static_args"
)


def exclude_bias_and_norm(params: optax.Params, *, stacked_axes: Any = None) -> Any:
    """Returns a mask that is True for weights and False for biases and norm parameters.

    Norm parameters are the parameters of normalisation layers. The last part of a
    leaf's path is its name, and the part before it is the name of its module. Slashes,
    dots and the entries of a tuple key separate the parts of a path. Underscores,
    digits and capitals separate the words of a name. The role of a leaf is decided by
    the first of these rules that applies:

    - A leaf named `b`, or with the word bias or biases in its name, is a bias.
    - A leaf named `scale`, `offset`, `gamma` or `beta` is a norm parameter. So is a
      gain of `nnx.WeightNorm`, which has a tuple key in a dict named `scales`.
    - A leaf named `kernel`, `w`, `embedding` or `embeddings` is a weight, unless it
      belongs to a normalisation layer and has rank 0 or 1.
    - Any other leaf of a normalisation layer is a norm parameter. A module is a
      normalisation layer if the last word of its name is that of one. A number or a
      single letter may follow the word, as in `BatchNorm_0`, `bn1`, `input_layernorm`,
      `ln_f` and `norms/0`. `WeightNorm_0` does not count, because it holds weights.
    - A leaf with the word kernel, w, weight, embedding or lora in its name is a weight
      if its rank is at least 2. Examples are `w_i` and `weight_v`. The same holds for a
      leaf whose last word ends in token, cls, probe, embed or embedding, such as
      `cls_token`. The usual plurals of these words count too. The rule does not apply
      if the last word is g, gain or scale. For this rule an array in a list has the
      name of the list.
    - A leaf of rank 2 without a name, as in `[(kernel, bias), ...]`, is a weight.
    - Any other leaf is a weight if at least two of its axes are longer than 1.

    So the mask excludes Linen's 2-D attention bias, Haiku's rank-4 BatchNorm scale and
    Equinox's rank-3 convolution bias, which a mask by rank selects. It also excludes a
    layer scale of shape (1, 1, 32) and the gain `weight_g` of shape (1, 1, 8) of a
    WeightNorm. It selects a `kernel` of shape (32, 1). The `value` at the end of a path
    in NNX is not part of the path. The index of a module in a list is not its name.

    Names can mislead. A normalisation layer without a name, for example in
    `eqx.nn.Sequential`, looks like a weight if its parameters have rank 2. Check the
    mask with `describe_mask`.

    Inside `shard_map` this function sees the shapes of one device's shards. If sharding
    shortens an axis to length 1, call it outside of `shard_map` and pass the tree that
    it returns. If the optimizer gets the mask by its name, it counts each axis that may
    be sharded as longer than 1. A tree of `PartitionSpec` as `axis_name` tells which
    axes are sharded. With a name as `axis_name`, each axis may be sharded. The last
    rule then selects a leaf if its rank is at least 2.

    Args:
      params: A tree of arrays, or of other objects with a shape.
      stacked_axes: The axis along which a leaf stacks several layers, as in
        `scale_by_lars`. It does not count in the rank of the leaf. None means that
        every leaf is a single layer. An optimizer that gets the mask by its name uses
        its own `stacked_axes`. An optimizer that gets this function does not pass them
        on.

    Returns:
      A tree of bool like `params`. None and MaskedNode stay unchanged.

    Raises:
      ValueError: If `params` is a step count, which `optax.inject_hyperparams` passes
        to a function that is not in its `static_args`. Also if `stacked_axes` does not
        fit the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> exclude_bias_and_norm({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
      {'bias': False, 'kernel': True}
    """
    _refuse_step_count(BY_ROLE, params)
    stacked = resolve_stacked_axes(stacked_axes, params)
    _, leaves, structure = flatten(params)
    values = zip(leaves, _by_role(params, stacked), strict=True)
    return structure.unflatten(x if is_empty(x) else role for x, role in values)


def match_paths(*patterns: str, invert: bool = False) -> Callable[[Any], Any]:
    """Returns a mask that is True where a regular expression matches a leaf's path.

    The path consists of the keys joined by '/', as `describe_mask` prints it. A pattern
    matches if `re.search` finds it anywhere in the path. Use `^` and `$` to match the
    start and the end.

    Args:
      *patterns: Regular expressions. A leaf is selected if any of them matches.
      invert: Whether to select the leaves that no pattern matches instead.

    Returns:
      A function from a tree of parameters to a tree of bool, for use as any Optax mask.
      It raises ValueError if a pattern matches no leaf. It also raises ValueError if it
      is called with a step count, as `optax.inject_hyperparams` does with a function
      that is not in `static_args`.

    Raises:
      ValueError: If there is no pattern, or if a pattern is not a valid regular
        expression.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"conv": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
      >>> match_paths("^head/", invert=True)(params)
      {'conv': {'kernel': True}, 'head': {'kernel': False}}
    """
    if not patterns:
        raise ValueError("match_paths got no pattern; pass at least one.")
    check_bool("invert", invert)
    compiled = [_compile(pattern) for pattern in patterns]

    def mask_fn(params: optax.Params) -> Any:
        _refuse_step_count("match_paths", params)
        paths, leaves, structure = flatten(params)
        names = [None if is_empty(x) else path_string(path)
                 for path, x in zip(paths, leaves, strict=True)]  # fmt: skip
        known = [name for name in names if name is not None]
        if not known:
            raise ValueError(
                "match_paths got a tree without leaves, so no pattern matches. An "
                "unused group of optax.partition is such a tree. Remove the group."
            )
        for pattern in compiled:
            if not any(map(pattern.search, known)):
                raise ValueError(
                    f"match_paths: the pattern {pattern.pattern!r} matches no path of "
                    f"the tree. The first paths are {', '.join(map(repr, known[:8]))}. "
                    "Correct or remove the pattern. In optax.partition and "
                    "optax.masked only the paths of one group are visible."
                )
        return structure.unflatten(
            x
            if name is None
            else any(pattern.search(name) for pattern in compiled) != invert
            for x, name in zip(leaves, names, strict=True)
        )

    return mask_fn


def _compile(pattern: str) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise ValueError(f"match_paths: patterns must be strings, got {pattern!r}.")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"match_paths: {pattern!r} is not a valid regular expression: {error}."
        ) from error


def check_mask(mask: Mask, argument: str) -> None:
    """Raises ValueError if `mask` is None, False, a number or an unknown name.

    `argument` is the name of the argument, for the message.
    """
    if mask is None or (_is_bool(mask) and not mask):
        raise ValueError(
            f"{argument} is {mask}, which is not a mask. To select no leaf, pass a "
            "tree of False: lambda params: jax.tree.map(lambda _: False, params). If "
            f"you passed a function: {_STATIC_ARGS}."
        )
    if isinstance(mask, numbers.Number) and not isinstance(mask, bool | np.bool_):
        raise ValueError(
            f"{argument} must be a mask, got the number {mask!r}. To select every "
            "leaf, pass True."
        )
    if isinstance(mask, str) and mask != BY_ROLE:
        raise ValueError(
            f"{argument} is {mask!r}, but the only name of a mask is {BY_ROLE!r}. "
            "For another mask use match_paths(...), a tree of bool, or True."
        )


def resolve_mask(
    mask: Mask,
    argument: str,
    params: Any,
    stacked: list[int | None],
    shapes: list[tuple[int, ...]] | None = None,
) -> list[bool]:
    """Returns for each leaf of `flatten(params)` whether the mask selects it.

    The value is False for None and MaskedNode. A mask given by its name decides by
    `shapes` if they are given, and otherwise by the shapes of the leaves. `stacked` has
    the axis along which each leaf stacks layers, or None.

    Raises ValueError with the name `argument` if the mask is invalid or does not fit
    the parameters.
    """
    check_mask(mask, argument)
    paths, leaves, _ = flatten(params)
    if isinstance(mask, str):
        return _by_role(params, stacked, shapes)
    values = broadcast_prefix(call_if_function(mask, params), params, argument)
    for path, leaf, value in zip(paths, leaves, values, strict=True):
        if not is_empty(leaf) and not _is_bool(value):
            raise ValueError(
                f"{argument} must be a tree of bool, got {value!r} for {quote(path)}. "
                "Pass True or False there."
            )
    return [
        not is_empty(leaf) and bool(value)
        for leaf, value in zip(leaves, values, strict=True)
    ]


def refuse_empty_default(
    mask: Mask, argument: str, params: Any, chosen: list[bool]
) -> None:
    """Raises ValueError if a mask given by its name selects no leaf.

    It selects none if the parameters were flattened to one vector, or if all of them
    are biases. `chosen` has for each leaf whether the mask selects it.
    """
    if isinstance(mask, str) and not any(chosen):
        paths, leaves, _ = flatten(params)
        named = [p for p, x in zip(paths, leaves, strict=True) if not is_empty(x)]
        if named:
            raise ValueError(
                f"{argument}={mask!r} selects no leaf of {list_some(named)}, because "
                "none has the name or the shape of a weight. Remove optax.flatten if "
                f"you use it, or pass {argument}=True to select every leaf. For a "
                "recipe call recipe.replace(mask=True)."
            )


def _is_bool(value: Any) -> bool:
    # A boolean array of rank 0 counts unless it is traced, because masks are static.
    return isinstance(value, bool | np.bool_) or (
        isinstance(value, np.ndarray | jax.Array)
        and not isinstance(value, jax.core.Tracer)
        and value.shape == ()
        and value.dtype == bool
    )


def _by_role(
    params: Any,
    stacked: list[int | None],
    shapes: list[tuple[int, ...]] | None = None,
) -> list[bool]:
    # `shapes` replaces the shapes of the leaves if `params` holds shards.
    paths, leaves, _ = flatten(params)
    shapes = list(map(np.shape, leaves)) if shapes is None else shapes
    return [
        not is_empty(leaf)
        and is_weight(path, tuple(n for i, n in enumerate(shape) if i != axis))
        for path, leaf, shape, axis in zip(paths, leaves, shapes, stacked, strict=True)
    ]


def _refuse_step_count(name: str, params: Any) -> None:
    # The argument of a schedule is one integer. Parameters are floating-point.
    if isinstance(params, int) or (
        hasattr(params, "dtype") and jnp.issubdtype(params.dtype, jnp.integer)
    ):
        raise ValueError(
            f"{name} was called with a step count instead of parameters. "
            f"{_STATIC_ARGS}."
        )
