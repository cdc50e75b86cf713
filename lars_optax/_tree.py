"""Leaves and their paths: prefix trees, trees that must match, names in errors."""

import numbers
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Path = tuple[Any, ...]
VALUE = jax.tree_util.GetAttrKey("value")  # what is inside an NNX variable


def is_empty(x: Any) -> bool:
    """True for what holds a place in a tree but no array: None and MaskedNode."""
    return x is None or isinstance(x, optax.MaskedNode)


def flatten(
    tree: Any, is_leaf: Callable[[Any], bool] = is_empty
) -> tuple[list[Path], list[Any], Any]:
    """Paths, leaves and structure of a tree; None and MaskedNode count as leaves.

    A path ends before the `.value` of an NNX variable, which holds nothing else.
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
    """'/'-joined key path of a leaf."""
    return "/".join(_names(path))


def _names(path: Path) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def replace_leaves(tree: Any, values: Iterable[Any]) -> Any:
    """The tree with a value for each leaf of `flatten`, in an NNX variable's place."""

    def is_variable(x: Any) -> bool:
        return hasattr(type(x), "value") and flatten(x)[0] == [()]

    structure: Any = jax.tree.structure(
        tree, is_leaf=lambda x: is_empty(x) or is_variable(x)
    )
    return structure.unflatten(values)


def quote(path: Path) -> str:
    """A path as it stands in an error message."""
    return repr(path_string(path)) if path else "the root of the tree"


def list_some(paths: Iterable[Path], limit: int = 4) -> str:
    """The first few paths, quoted, and how many more there are."""
    paths = list(paths)
    text = ", ".join(quote(path) for path in paths[:limit])
    return text + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def called(value: Any, params: Any) -> Any:
    """What a function returns for the parameters; anything else as it is.

    A tree made from an Equinox model can be called too. It has the parameters' type.
    """
    is_tree = type(value) is type(params)
    return value(params) if callable(value) and not is_tree else value


def broadcast_prefix(
    prefix: Any, tree: Any, argument: str, is_leaf: Callable[[Any], bool] = is_empty
) -> list[Any]:
    """One value of `prefix` for each leaf of `flatten(tree)`, None where it is empty.

    They are matched by the names in their paths, of whatever container: a dict is a
    prefix of a module with attributes of those names.

    Raises ValueError naming `argument` and the path where the prefix leaves a leaf of
    the tree uncovered or holds one the tree has not.
    """
    paths, leaves, _ = flatten(tree)
    places, values, _ = flatten(prefix, is_leaf)
    names = [_names(path) for path in places]
    entries = dict(zip(names, zip(places, values, strict=True), strict=True))
    if len(entries) < len(names):
        raise ValueError(
            f"{argument} has two leaves of one name among {list_some(places)}."
        )
    owners = [
        next((name[:n] for n in range(len(name) + 1) if name[:n] in entries), None)
        for name in map(_names, paths)
    ]
    pairs = list(zip(paths, leaves, owners, strict=True))
    if missing := [p for p, x, owner in pairs if owner is None and not is_empty(x)]:
        raise ValueError(
            f"{argument} must be a tree like the parameters or a prefix of one; "
            f"it does not cover {list_some(missing)}."
        )
    if extra := entries.keys() - set(owners) - _paths_without_leaves(tree):
        raise ValueError(
            f"{argument} must be a tree like the parameters or a prefix of one; "
            f"the parameters have nothing at "
            f"{list_some(entries[name][0] for name in sorted(extra))}."
        )
    return [None if owner is None else entries[owner][1] for owner in owners]


def _paths_without_leaves(tree: Any) -> set[tuple[str, ...]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: not jax.tree.leaves(x)
    )
    return {_names(path) for path, x in flat if not jax.tree.leaves(x)}


def check_updates(updates: Any, params: Any) -> None:
    """Raise ValueError unless gradients and parameters match leaf by leaf.

    Both trees have the same paths, and each pair of leaves the same shape; a gradient
    may be None. Where it is not, both are floating-point or complex.
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
            "updates and params must be trees of one structure, but "
            f"{' and '.join(differences)}."
        )
    for path, grad, weight in zip(paths, grads, weights, strict=True):
        if grad is not None:
            _check_leaf(path, grad, weight)


def _check_leaf(path: Path, grad: Any, weight: Any) -> None:
    if is_empty(grad) or is_empty(weight):
        if type(grad) is not type(weight):
            raise ValueError(
                f"updates have {type(grad).__name__} at {quote(path)}, "
                f"params have {type(weight).__name__}."
            )
    elif jnp.shape(grad) != jnp.shape(weight):
        raise ValueError(
            f"the update at {quote(path)} has shape {jnp.shape(grad)}, its parameter "
            f"has shape {jnp.shape(weight)}."
        )
    elif jnp.iscomplexobj(grad) and not jnp.iscomplexobj(weight):
        raise ValueError(
            f"the update at {quote(path)} is complex, its parameter has dtype "
            f"{jnp.result_type(weight)}."
        )
    else:
        check_parameter(path, weight)
        if not jnp.issubdtype(jnp.result_type(grad), jnp.inexact):
            raise ValueError(
                f"the update at {quote(path)} has dtype {jnp.result_type(grad)}; it "
                "must be floating-point, as jax.grad makes it."
            )


def check_parameter(path: Path, leaf: Any) -> None:
    """Raise ValueError unless a leaf is a floating-point or complex array or number."""
    # A dtype such as jnp.float32, which is a class, has an attribute of that name too.
    is_array = hasattr(leaf, "dtype") and not isinstance(leaf, type)
    if is_array or isinstance(leaf, numbers.Number):
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.inexact):
            return
        found = f"has dtype {dtype}"
    else:
        found = f"is of type {type(leaf).__name__}, not an array"
    raise ValueError(
        f"the parameter at {quote(path)} {found}. LARS takes floating-point or complex "
        "arrays alone. Pass equinox.filter(model, equinox.is_inexact_array) for an "
        "Equinox module, nnx.state(model, nnx.Param) for an NNX module, or exclude the "
        "other leaves with optax.masked."
    )
