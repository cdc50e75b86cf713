"""Law: 40 steps with a changing learning rate equal the float64 reference.

Recorded gradients check each step by itself; fed-back gradients (of a loss at the
current parameters) let errors grow. Tolerances are relative to a leaf's largest value:
in float64 1e-9 leaves room for 40 steps of differently ordered sums; in float32 2e-6 is
about 17 roundings of 2⁻²³ over 40 additions, 1e-5 the same fed back.
"""

import itertools

import numpy as np
import optax
import pytest
from compat import enable_x64
from reference import Lars
from trees import (
    MASKS,
    STEPS,
    as_mask,
    learning_rate,
    mask_names,
    params_tree,
    recorded_grads,
    replay,
    train,
)

import lars_optax

BETA, MU, ETA = 0.003, 0.9, 0.01


def build(order, denominator, masks, nesterov, params, fallback=1.0, eps=0.0):
    decayed, adapted = (as_mask(names, params) for names in masks)
    options = {
        "trust_coefficient": ETA,
        "eps": eps,
        "trust_ratio_mask": adapted,
        "fallback_ratio": fallback,
    }
    rate = optax.scale_by_learning_rate(learning_rate)
    trace = optax.trace(MU, nesterov)
    if order == "scaled":
        return lars_optax.lars(
            learning_rate, BETA, decayed, ETA, eps, adapted, MU, nesterov,
            denominator=denominator, fallback_ratio=fallback,
        )  # fmt: skip
    if order == "unscaled":
        scale = lars_optax.scale_by_lars(
            BETA, decayed, denominator=denominator, **options
        )
        return optax.chain(scale, trace, rate)
    scale = lars_optax.scale_by_lars(denominator="joint", **options)
    return optax.chain(optax.add_decayed_weights(BETA, decayed), trace, scale, rate)


def oracle(order, denominator, masks, nesterov, params, fallback=1.0, eps=0.0):
    decayed, adapted = masks
    return Lars(
        params, decayed=decayed, adapted=adapted, order=order, beta=BETA, mu=MU,
        eta=ETA, eps=eps, denominator=denominator, nesterov=nesterov, fallback=fallback,
    )  # fmt: skip


def assert_close(actual, expected, tolerance):
    for name, want in expected.items():
        error = np.max(np.abs(np.asarray(actual[name], np.float64) - want))
        assert error <= tolerance * np.max(np.abs(want)), (name, error)


CASES = [
    pytest.param(
        order,
        denominator,
        masks,
        nesterov,
        id=f"{order}-{denominator}-{masks}" + ("-nesterov" if nesterov else ""),
    )
    for order, denominator, masks, nesterov in itertools.product(
        ["scaled", "unscaled", "post"], ["separate", "joint"], MASKS, [False, True]
    )
    if not (order == "post" and denominator == "separate")
]


@pytest.mark.parametrize(("order", "denominator", "masks", "nesterov"), CASES)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_recorded_gradients(order, denominator, masks, nesterov, precision):
    dtype, tolerance = (
        (np.float64, 1e-9) if precision == "float64" else (np.float32, 2e-6)
    )
    params, grads = params_tree(dtype), recorded_grads(dtype)
    case = (order, denominator, mask_names(masks, params), nesterov, params)
    reference = oracle(*case)
    with enable_x64(precision == "float64"):
        history = replay(build(*case), params, grads)
        for step in range(STEPS):
            rate = float(learning_rate(step))
            expected = reference.step(grads[step], rate)
            assert_close(history[step], expected, tolerance)


def loss_grad(params, start):
    """The gradient of a quadratic whose minimum lies half-way from where it starts."""
    return {
        name: (0.3 + i) * (w - (0.5 * start[name] + 0.1))
        for i, (name, w) in enumerate(params.items())
    }


@pytest.mark.parametrize(("order", "denominator", "masks", "nesterov"), CASES)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_fed_back_gradients(order, denominator, masks, nesterov, precision):
    dtype, tolerance = (
        (np.float64, 1e-9) if precision == "float64" else (np.float32, 1e-5)
    )
    params = params_tree(dtype)
    # Raw rates on unadapted leaves would diverge: the fallback ratio of a BN-free net.
    case = (order, denominator, mask_names(masks, params), nesterov, params, 0.02, 1e-3)
    reference = oracle(*case)
    with enable_x64(precision == "float64"):
        history = train(
            build(*case), params, lambda w, _: loss_grad(w, params), np.arange(STEPS)
        )
        for step in range(STEPS):
            grads = loss_grad(reference.params, params)
            expected = reference.step(grads, float(learning_rate(step)))
            assert_close(history[step], expected, tolerance)
