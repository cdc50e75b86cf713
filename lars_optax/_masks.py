"""Which leaves a transform applies to: by role, by path, or as a tree.

True in a mask means applied, as in every Optax mask. A mask is True, a tree of bool or
a prefix of one, a callable from params to such a tree, or "exclude_bias_and_norm".
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
    called,
    flatten,
    is_empty,
    list_some,
    path_string,
    quote,
)

Mask = bool | str | Any | Callable[[optax.Params], Any]

BY_ROLE = "exclude_bias_and_norm"
_STATIC_ARGS = (
    "optax.inject_hyperparams calls every callable with the step count. Name the "
    "argument that holds this one in its static_args, such as "
    "static_args=('weight_decay_mask', 'trust_ratio_mask'); the mask with the name "
    f"{BY_ROLE!r} needs none"
)


def exclude_bias_and_norm(params: optax.Params, *, stacked_axes: Any = None) -> Any:
    """True for weights, False for biases and the parameters of normalisation layers.

    A leaf's name is the last part of its path, and its module's name is the part before
    it. Slashes, dots and the entries of a key that is a tuple separate the parts of a
    path; underscores, digits and capitals separate the words of a name. The first of
    these rules that applies to a leaf decides:

    - A leaf named `b`, or with the word bias or biases in its name, is a bias.
    - A leaf named `scale`, `offset`, `gamma` or `beta` is a norm's parameter. So is an
      entry with a tuple for a key in the dict `scales`: a gain of `nnx.WeightNorm`.
    - A leaf named `kernel`, `w`, `embedding` or `embeddings` is a weight, unless it has
      rank 0 or 1 and its module is named for a norm.
    - A leaf whose module is named for a norm is a norm's parameter. The last word of
      such a name, before a number or a single letter, is a norm's: `BatchNorm_0`,
      `bn1`, `input_layernorm`, `ln_f`, `norms/0`. `WeightNorm_0` is not such a name,
      because it holds weights.
    - A leaf with the word kernel, w, weight, embedding or lora in its name, such as
      `w_i` and `weight_v`, is a weight if its rank is at least 2. So is a leaf whose
      last word ends in token, cls, probe, embed or embedding, such as `cls_token`.
      Their usual plurals count too. This rule does not apply to a name whose last
      word is g, gain or scale. An array in a list has the list's name for this rule.
    - A leaf of rank 2 without a name of its own, as in `[(kernel, bias), ...]`, is a
      weight.
    - Any other leaf is a weight if at least two of its axes are longer than 1.

    So Linen's 2-D attention bias, Haiku's rank-4 BatchNorm scale and Equinox's rank-3
    convolution bias are excluded, which a mask by rank alone gets wrong. A layer scale
    of shape (1, 1, 32) is excluded too, and so is WeightNorm's gain `weight_g` of shape
    (1, 1, 8), while a `kernel` of shape (32, 1) is a weight. NNX's trailing `value` is
    not part of a path, and a module's index in a list is not its name.

    Names can mislead, and an unnamed norm of rank 2 (`eqx.nn.Sequential`) looks like a
    weight: print the mask with `describe_mask`. Inside `shard_map` this function sees
    the shape of one device's shard. Where that shortens an axis to length 1, call it
    outside and pass the tree that it returns. With a mask given by its name the
    optimizer counts every axis that `axis_name` may shard as longer than 1. A tree of
    `PartitionSpec` says which axes those are. With an axis name alone it is every axis,
    so there a leaf that no name explains is a weight if its rank is at least 2.

    Args:
      params: a tree of arrays, or of anything with a shape.
      stacked_axes: the axis on which leaves stack several layers, as in
        `scale_by_lars`; it does not count in a leaf's rank. A mask given by its name
        takes the optimizer's; given as this function it does not know of it.

    Returns:
      A tree of bool like `params`; None and MaskedNode stay as they are.

    Raises:
      ValueError: if called with a step count, as `optax.inject_hyperparams` does.

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
    """A mask that is True where a regular expression is found in a leaf's path.

    Paths are keys joined by '/', as `describe_mask` prints them; `re.search` decides,
    so anchor a pattern with `^` and `$` where it matters.

    Args:
      *patterns: regular expressions; a leaf is selected when any of them is found.
      invert: True selects the leaves in which none is found.

    Returns:
      A callable from a tree of parameters to a tree of bool, for any Optax mask. It
      raises ValueError if a pattern matches no leaf, or if it is called with a step
      count, as `optax.inject_hyperparams` does with callables not in `static_args`.

    Raises:
      ValueError: without a pattern, and on what is no regular expression.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"conv": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
      >>> match_paths("^head/", invert=True)(params)
      {'conv': {'kernel': True}, 'head': {'kernel': False}}
    """
    if not patterns:
        raise ValueError("match_paths needs at least one pattern.")
    compiled = [_compile(pattern) for pattern in patterns]

    def mask_fn(params: optax.Params) -> Any:
        _refuse_step_count("match_paths", params)
        paths, leaves, structure = flatten(params)
        names = [None if is_empty(x) else path_string(path)
                 for path, x in zip(paths, leaves, strict=True)]  # fmt: skip
        known = [name for name in names if name is not None]
        for pattern in compiled:
            if not any(map(pattern.search, known)):
                raise ValueError(
                    f"match_paths: the pattern {pattern.pattern!r} is found in no path "
                    f"of the tree. Its paths begin: {', '.join(map(repr, known[:8]))}. "
                    "In optax.partition and optax.masked these are one group's."
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
            f"match_paths: {pattern!r} is not a regular expression: {error}."
        ) from error


def check_mask(mask: Mask, argument: str) -> None:
    """Refuse at construction what cannot be a mask: bare False, None, unknown names."""
    if mask is None or (_is_bool(mask) and not mask):
        raise ValueError(
            f"{argument} is {mask}. If that is meant, pass a tree of False: "
            "lambda params: jax.tree.map(lambda _: False, params). Otherwise: "
            f"{_STATIC_ARGS}."
        )
    if isinstance(mask, numbers.Number) and not isinstance(mask, bool | np.bool_):
        raise ValueError(f"{argument} must be a mask, got the number {mask!r}.")
    if isinstance(mask, str) and mask != BY_ROLE:
        raise ValueError(
            f"{argument} is {mask!r}; the only mask with a name is {BY_ROLE!r}. For "
            "others use match_paths(...), a tree of bool, or True."
        )


def resolve_mask(
    mask: Mask,
    argument: str,
    params: Any,
    stacked: list[int | None],
    shapes: list[tuple[int, ...]] | None = None,
) -> list[bool]:
    """One bool per leaf of `flatten(params)`; False where the leaf is empty.

    `shapes`: those by which roles are told, where they are not the leaves' own.
    """
    check_mask(mask, argument)
    paths, leaves, _ = flatten(params)
    if isinstance(mask, str):
        return _by_role(params, stacked, shapes)
    values = broadcast_prefix(called(mask, params), params, argument)
    for path, leaf, value in zip(paths, leaves, values, strict=True):
        if not is_empty(leaf) and not _is_bool(value):
            raise ValueError(
                f"{argument} must be a tree of bool; found {value!r} for {quote(path)}."
            )
    return [
        not is_empty(leaf) and bool(value)
        for leaf, value in zip(leaves, values, strict=True)
    ]


def refuse_empty_default(
    mask: Mask, argument: str, params: Any, chosen: list[bool]
) -> None:
    """Raise if the default mask selects nothing: flat parameters, or only biases."""
    if isinstance(mask, str) and not any(chosen):
        paths, leaves, _ = flatten(params)
        named = [p for p, x in zip(paths, leaves, strict=True) if not is_empty(x)]
        if named:
            raise ValueError(
                f"{argument}={mask!r} selects no leaf: {list_some(named)}. Were the "
                "parameters flattened (optax.flatten removes the layers LARS needs), "
                "or has none of them the name or the shape of a weight? "
                f"{argument}=True selects every leaf."
            )


def _is_bool(value: Any) -> bool:
    # A concrete 0-d boolean array is a bool; a traced one is not: masks are static.
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
    # `shapes` stands for the leaves' own where `params` holds shards of them.
    paths, leaves, _ = flatten(params)
    shapes = list(map(np.shape, leaves)) if shapes is None else shapes
    return [
        not is_empty(leaf)
        and is_weight(path, tuple(n for i, n in enumerate(shape) if i != axis))
        for path, leaf, shape, axis in zip(paths, leaves, shapes, stacked, strict=True)
    ]


def _refuse_step_count(name: str, params: Any) -> None:
    # No tree of parameters is one integer; a schedule's argument is.
    if isinstance(params, int) or (
        hasattr(params, "dtype") and jnp.issubdtype(params.dtype, jnp.integer)
    ):
        raise ValueError(
            f"{name} was called with a step count, not with parameters. {_STATIC_ARGS}."
        )
