"""Law: 40 steps with a changing learning rate equal the float64 reference.

Recorded gradients check each step by itself; fed-back gradients (of a loss at the
current parameters) let errors grow. Tolerances are relative to a leaf's largest value:
in float64 1e-9 leaves room for 40 steps of differently ordered sums; in float32 2e-6 is
about 17 roundings of 2⁻²³ over 40 additions, 1e-5 the same fed back.
"""

from functools import cache, partial

import jax
import numpy as np
import optax
import pytest
import trees
from compat import enable_x64
from reference import Lars

import lars_optax

BETA, MU, ETA = 0.003, 0.9, 0.01


def build(order, denominator, masks, nesterov, params, fallback, eps):
    decayed, adapted = (trees.as_mask(names, params) for names in masks)
    options = {"trust_coefficient": ETA, "eps": eps, "trust_ratio_mask": adapted,
               "fallback_ratio": fallback}  # fmt: skip
    decay, kind = (BETA, decayed), {"denominator": denominator}
    rate = optax.scale_by_learning_rate(trees.learning_rate)
    trace = optax.trace(MU, nesterov)
    if order == "scaled":
        options |= {"momentum": MU, "nesterov": nesterov}
        return lars_optax.lars(trees.learning_rate, *decay, **kind, **options)
    if order == "unscaled":
        scale = lars_optax.scale_by_lars(*decay, **kind, **options)
        return optax.chain(scale, trace, rate)
    scale = lars_optax.scale_by_lars(denominator="joint", **options)
    return optax.chain(optax.add_decayed_weights(*decay), trace, scale, rate)


def oracle(order, denominator, masks, nesterov, params, fallback, eps):
    decayed, adapted = masks
    return Lars(
        params, decayed=decayed, adapted=adapted, order=order, beta=BETA, mu=MU,
        eta=ETA, eps=eps, denominator=denominator, nesterov=nesterov, fallback=fallback,
    )  # fmt: skip


RULES = [(order, denominator) for order in ("scaled", "unscaled")
         for denominator in ("separate", "joint")] + [("post", "joint")]  # fmt: skip


@cache
def compiled(order, denominator, masks, nesterov):
    """A step that takes ε and the fallback, to be compiled once for both gradients."""

    @jax.jit
    def step(params, state, grads, fallback, eps):
        names = trees.MASKS[masks]
        tx = build(order, denominator, names, nesterov, params, fallback, eps)
        return trees.train_step(tx)(grads, state, params)

    return step


@cache
def rates(precision):
    return [float(trees.learning_rate(step)) for step in range(trees.STEPS)]


def loss_grad(start, params):
    """The gradient of a quadratic whose minimum lies half-way from where it starts."""
    slopes = {name: 0.3 + i for i, name in enumerate(params)}
    return {k: slopes[k] * (w - (0.5 * start[k] + 0.1)) for k, w in params.items()}


# Fed back, a ratio of 1 would diverge: the default is used.
GRADIENTS = {
    "recorded": (2e-6, {"fallback": 1.0, "eps": 0.0}),
    "fed_back": (1e-5, {"fallback": 0.02, "eps": 1e-3}),
}


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("nesterov", [False, True], ids=["classic", "nesterov"])
@pytest.mark.parametrize("masks", trees.MASKS)
@pytest.mark.parametrize(("order", "denominator"), RULES)
def test_equals_the_reference(
    order, denominator, masks, nesterov, precision, gradients
):
    dtype = np.dtype(precision)
    tolerance, options = GRADIENTS[gradients]
    tolerance = 1e-9 if precision == "float64" else tolerance
    params, recorded = trees.params_tree(dtype), trees.recorded_grads(dtype)
    case = (order, denominator, trees.MASKS[masks], nesterov, params)
    reference = oracle(*case, **options)
    fed_back = partial(loss_grad, params)
    with enable_x64(precision == "float64"):
        state = build(*case, **options).init(params)
        for count, rate in enumerate(rates(precision)):
            if gradients == "recorded":
                ours = theirs = recorded[count]
            else:
                ours, theirs = fed_back(params), fed_back(reference.params)
            step = compiled(order, denominator, masks, nesterov)
            params, state = jax.device_get(step(params, state, ours, **options))
            expected = reference.step(theirs, rate)
            trees.assert_same_history([params], [expected], tolerance)
