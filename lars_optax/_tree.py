"""The leaves of a tree, their paths, prefix trees, and checks that trees match."""

import numbers
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Path = tuple[Any, ...]
VALUE = jax.tree_util.GetAttrKey("value")  # the key of the array in an NNX variable


def is_empty(x: Any) -> bool:
    """Returns True for None and MaskedNode, which stand for a leaf without an array."""
    return x is None or isinstance(x, optax.MaskedNode)


def flatten(
    tree: Any, is_leaf: Callable[[Any], bool] = is_empty
) -> tuple[list[Path], list[Any], Any]:
    """Returns the paths, the leaves and the structure of a tree.

    None and MaskedNode count as leaves. The path of an NNX variable ends before its
    `.value`, unless the variable holds something else too.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    paths = [path for path, _ in flat]
    if any(path[-1:] == (VALUE,) for path in paths):
        held = Counter(path[:n] for path in paths for n in range(len(path)))
        paths = [
            path[:-1] if path[-1:] == (VALUE,) and held[path[:-1]] == 1 else path
            for path in paths
        ]
    return paths, [leaf for _, leaf in flat], structure


def path_string(path: Path) -> str:
    """Returns the keys of a path joined by '/', for example 'conv/kernel'."""
    return "/".join(_key_names(path))


def _key_names(path: Path) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def replace_leaves(tree: Any, values: Iterable[Any]) -> Any:
    """Returns the tree with `values` in place of the leaves of `flatten(tree)`.

    Where the tree has an NNX variable, a value replaces the whole variable.
    """

    def is_variable(x: Any) -> bool:
        return hasattr(type(x), "value") and flatten(x)[0] == [()]

    structure: Any = jax.tree.structure(
        tree, is_leaf=lambda x: is_empty(x) or is_variable(x)
    )
    return structure.unflatten(values)


def quote(path: Path) -> str:
    """Returns a path in quotes, for an error message."""
    return repr(path_string(path)) if path else "the root of the tree"


def list_some(paths: Iterable[Path], limit: int = 4) -> str:
    """Returns text with the first `limit` paths and the number of further paths."""
    paths = list(paths)
    text = ", ".join(quote(path) for path in paths[:limit])
    return text + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def call_if_function(value: Any, params: Any) -> Any:
    """Returns `value(params)` if `value` is a function, and otherwise `value`.

    A tree made from an Equinox model is callable too, but it is not a function. It has
    the type of the parameters.
    """
    is_tree = type(value) is type(params)
    return value(params) if callable(value) and not is_tree else value


def broadcast_prefix(
    prefix: Any, tree: Any, argument: str, is_leaf: Callable[[Any], bool] = is_empty
) -> list[Any]:
    """Returns the value of `prefix` for each leaf of `flatten(tree)`.

    A prefix may have one value for a whole subtree. The value of a None or MaskedNode
    that the prefix does not cover is None. Keys are compared by their names whatever
    the containers are. A dict can therefore be a prefix of a module that has attributes
    of those names.

    Raises ValueError with `argument` and the paths if the prefix does not cover a leaf
    of the tree, has a leaf that the tree does not have, or has two leaves with the same
    name.
    """
    paths, leaves, _ = flatten(tree)
    places, values, _ = flatten(prefix, is_leaf)
    names = [_key_names(path) for path in places]
    entries = dict(zip(names, zip(places, values, strict=True), strict=True))
    if len(entries) < len(names):
        raise ValueError(
            f"{argument} has two leaves with the same name among {list_some(places)}."
            " Rename one of them."
        )
    owners = [
        next((name[:n] for n in range(len(name) + 1) if name[:n] in entries), None)
        for name in map(_key_names, paths)
    ]
    pairs = list(zip(paths, leaves, owners, strict=True))
    if missing := [p for p, x, owner in pairs if owner is None and not is_empty(x)]:
        raise ValueError(
            f"{argument} must be a tree like the parameters or a prefix of one, but it "
            f"does not cover {list_some(missing)}. Add values there."
        )
    if extra := entries.keys() - set(owners) - _paths_without_leaves(tree):
        raise ValueError(
            f"{argument} must be a tree like the parameters or a prefix of one, but "
            f"the parameters have nothing at "
            f"{list_some(entries[name][0] for name in sorted(extra))}. Remove its "
            "values there."
        )
    return [None if owner is None else entries[owner][1] for owner in owners]


def _paths_without_leaves(tree: Any) -> set[tuple[str, ...]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: not jax.tree.leaves(x)
    )
    return {_key_names(path) for path, x in flat if not jax.tree.leaves(x)}


def check_updates(updates: Any, params: Any) -> None:
    """Raises ValueError unless gradients and parameters match leaf by leaf.

    Both trees must have the same structure, and the leaves must have the same shapes
    and be floating-point or complex. A gradient may be None.
    """
    grad_paths, grads, grad_structure = flatten(updates)
    paths, weights, structure = flatten(params)
    if grad_structure != structure:
        missing = [path for path in paths if path not in grad_paths]
        extra = [path for path in grad_paths if path not in paths]
        differences = [
            *([f"updates have nothing at {list_some(missing)}"] if missing else []),
            *([f"params have nothing at {list_some(extra)}"] if extra else []),
        ] or [f"their containers differ: {grad_structure} and {structure}"]
        raise ValueError(
            "updates and params must be trees of the same structure, but "
            f"{' and '.join(differences)}. Pass the gradients of these parameters."
        )
    for path, grad, weight in zip(paths, grads, weights, strict=True):
        if grad is not None:
            _check_leaf(path, grad, weight)


def _check_leaf(path: Path, grad: Any, weight: Any) -> None:
    if is_empty(grad) or is_empty(weight):
        if type(grad) is not type(weight):
            raise ValueError(
                f"updates have {type(grad).__name__} at {quote(path)}, but params have "
                f"{type(weight).__name__}. Pass the gradients of these parameters."
            )
    elif jnp.shape(grad) != jnp.shape(weight):
        raise ValueError(
            f"the update at {quote(path)} has shape {jnp.shape(grad)}, but its "
            f"parameter has shape {jnp.shape(weight)}. Pass the gradients of these "
            "parameters."
        )
    elif jnp.iscomplexobj(grad) and not jnp.iscomplexobj(weight):
        raise ValueError(
            f"the update at {quote(path)} is complex, but its parameter has the real "
            f"dtype {jnp.result_type(weight)}. Pass a real update."
        )
    else:
        check_parameter(path, weight)
        if not jnp.issubdtype(jnp.result_type(grad), jnp.inexact):
            raise ValueError(
                f"the update at {quote(path)} has dtype {jnp.result_type(grad)}, but "
                "it must be floating-point, as the gradients of jax.grad are."
            )


def check_parameter(path: Path, leaf: Any) -> None:
    """Raises ValueError unless a parameter is a floating-point or complex array."""
    # A class such as jnp.float32 has the attribute dtype too.
    is_array = hasattr(leaf, "dtype") and not isinstance(leaf, type)
    if is_array or isinstance(leaf, numbers.Number):
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.inexact):
            return
        found = f"has dtype {dtype}"
    else:
        found = f"is of type {type(leaf).__name__}, not an array"
    raise ValueError(
        f"the parameter at {quote(path)} {found}. LARS accepts only floating-point and "
        "complex arrays. For an Equinox module pass equinox.filter(model, "
        "equinox.is_inexact_array). For an NNX module pass nnx.state(model, "
        "nnx.Param). Or exclude the other leaves with optax.masked."
    )
