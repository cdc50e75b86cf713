"""Computes LARS in float64, layer by layer, and the errors of optimizers against it.

γ is the learning rate, β the weight decay, η the trust coefficient, λ the trust ratio
and μ the momentum.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lars_optax

BETA, ETA, MU = 0.01, 0.001, 0.9
STEPS = 3
RATE = optax.exponential_decay(10.0, 1, 0.5)  # γ falls, so that the order matters
MASKS = ("weight_decay_mask", "trust_ratio_mask")
LAYER = ((64, 32), 0.05, 1.0)  # shape, scale of w, scale of g

Tree = dict[str, Any]
Seen = list[tuple[Tree, Tree]]  # the parameters before each step, and its update
Cell = float | str  # an error of the update, or in words what happened instead


class Case(NamedTuple):
    """Parameters, a gradient for each step, and the LARS rule that is right for them.

    `denominator` is "joint" for ‖g + βw‖ or "separate" for ‖g‖ + β‖w‖. `order` says
    where the momentum comes: "scaled" after λ and γ, "unscaled" between λ and γ, "post"
    before both.
    """

    params: Tree
    grads: list[Tree]
    stacked: bool = False  # each slice of a leaf is a layer
    excluded: tuple[str, ...] = ()  # leaves whose update is -γg
    momentum: float | None = MU
    decay: float = BETA
    denominator: str = "joint"
    order: str = "scaled"


def make(dtype: str = "float32", **leaves: tuple[Any, Any, Any]) -> Case:
    """Returns a case with normally distributed parameters and gradients.

    Each keyword argument of `leaves` names a leaf. It gives the shape, and the standard
    deviations of the parameters and of the gradients.
    """
    random = np.random.default_rng(0)

    def normal(shape: Any, scale: Any) -> jax.Array:
        x, y = random.normal(0, scale, (2, *shape))
        return jnp.asarray(x + 1j * y if dtype == "complex64" else x).astype(dtype)

    def draw(which: int) -> Tree:
        return {name: normal(leaf[0], leaf[which]) for name, leaf in leaves.items()}

    return Case(draw(1), [draw(2) for _ in range(STEPS)])


def right_updates(case: Case, seen: Seen) -> Iterator[Tree]:
    """Yields for each step the update of each layer by the case's rule, in float64.

    `seen` has the parameters that the optimizer under test had before each step.
    """
    buffer: Tree = {}
    for count, ((params, _), grads) in enumerate(zip(seen, case.grads, strict=True)):
        rate, gs = float(RATE(count)), layers(grads, case)
        updates = {}
        for name, w in layers(params, case).items():
            beta = 0 if name in case.excluded else case.decay
            step = gs[name] + beta * w
            if case.order != "post" and name not in case.excluded:
                step = ratio(w, gs[name], beta, case.denominator) * step
            if case.order == "scaled":
                step = rate * step
            step = buffer[name] = (case.momentum or 0) * buffer.get(name, 0) + step
            if case.order == "post":
                step = ratio(w, step, 0, "joint") * step
            updates[name] = -step if case.order == "scaled" else -rate * step
        yield updates


def ratio(w: Any, g: Any, beta: float, denominator: str) -> Any:
    """Returns the trust ratio of one layer, or 1 if the norm of `w` or `g` is zero."""
    joint = denominator == "joint"
    norm_w, norm_g = norm(w), norm(g + beta * w if joint else g)
    if not (norm_w and norm_g):
        return 1.0
    return ETA * norm_w / (norm_g if joint else norm_g + beta * norm_w)


def norm(x: Any) -> Any:
    return np.sqrt(np.sum(np.abs(x) ** 2))


def layers(tree: Tree, case: Case) -> Tree:
    """Returns the layers of a tree by name, in double precision.

    A layer is a leaf or, if the case is stacked, a slice along a leaf's first axis.
    """
    tree = {name: np.asarray(x) for name, x in tree.items()}
    wide = {k: x.astype(np.result_type(x, np.float64)) for k, x in tree.items()}
    if not case.stacked:
        return wide
    return {f"{k} {i}": x for k, leaf in wide.items() for i, x in enumerate(leaf)}


def train(tx: Any, params: Tree, grads: list[Tree]) -> Seen:
    state, seen = tx.init(params), []
    for g in grads:
        updates, state = tx.update(g, state, params)
        seen.append((params, updates))
        params = optax.apply_updates(params, updates)
    return seen


def error(tx: Any, case: Case, wrap: Any = None) -> Cell:
    """Returns the largest relative error of an optimizer's updates in all steps.

    Returns "raises" and the exception's name if the optimizer raises one. `wrap`, such
    as `shard_map`, is applied to the training function before it is compiled.
    """
    try:
        step = partial(train, tx)
        seen = jax.jit(wrap(step) if wrap else step)(case.params, case.grads)
    except Exception as raised:  # whatever it is, it is the result
        return f"raises {type(raised).__name__}"
    errors = []
    for (_, updates), right in zip(seen, right_updates(case, seen), strict=True):
        for name, x in layers(updates, case).items():
            errors.append(np.max(np.abs(x - right[name])) / np.max(np.abs(right[name])))
    return float(np.max(errors))


class Row(NamedTuple):
    """A row of the table of errors: a situation and each optimizer's error in it."""

    regime: str
    optax_lars: Cell
    lars_optax: Cell
    what_happens: str
    shown_in: str  # "wrong", "lacks", or "" for neither table
    ours_is_right: bool = True


def both(case: Case, **only_ours: Any) -> tuple[Any, Any]:
    """Returns `optax.lars` and `lars_optax.lars`, both set to the same LARS rule.

    `only_ours` are further arguments of `lars_optax.lars`.
    """
    same = {"learning_rate": RATE, "weight_decay": case.decay}
    same |= {"momentum": case.momentum, "trust_coefficient": ETA}
    options = dict.fromkeys(MASKS, True) | {"denominator": "joint"}
    options |= {"fallback_ratio": 1.0} | only_ours
    return optax.lars(**same), lars_optax.lars(**same | options)


def compare(
    regime: str,
    case: Case,
    note: str = "",
    allowed: float = 1e-6,
    *,
    pair: Any = None,
    wrap: Any = None,
    shown_in: str | None = None,
    **only_ours: Any,
) -> Row:
    """Measures `optax.lars` and `lars_optax.lars` on a case, and returns the table row.

    An optimizer is right if its error is at most `allowed`. `pair` replaces the two
    optimizers. `shown_in` is the table of docs/compared.md that has the row: "wrong",
    "lacks" or "" for neither. By default it is "wrong" if `optax.lars` is wrong, and
    else "".
    """
    pair = pair or both(case, **only_ours)
    theirs, ours = (error(tx, case, wrap) for tx in pair)
    right, ours_is_right = (
        isinstance(x, float) and x <= allowed for x in (theirs, ours)
    )
    if shown_in is None:
        shown_in = "" if right else "wrong"
    note = note or ("Both are right." if right else "")
    return Row(regime, theirs, ours, note, shown_in, ours_is_right)
