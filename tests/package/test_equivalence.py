"""Laws that tie LARS to Optax's own transforms, over 40 steps and a changing rate.

Both sides do the same float32 arithmetic in a different order, so they agree to a few
roundings of the largest value: 2e-6 as against the reference.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import PARAMS, RECORDED, assert_same_history, learning_rate, replay, update

import lars_optax

DENOMINATORS = ("separate", "joint")
RATE = optax.scale_by_learning_rate(learning_rate)


def none_of(params):
    return jax.tree.map(lambda _: False, params)


UNADAPTED = {"trust_ratio_mask": none_of, "fallback_ratio": 1.0}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.003, optax.linear_schedule(0, 0.01, 40)])
def test_equals_optax_lars_with_masks_true_and_joint_norm(decay, eps, nesterov):
    assert_equals_optax(decay, True, 0.01, eps, True, 0.9, nesterov)


def test_equals_optax_lars_with_the_same_masks():
    mask = {name: name not in ("unseen", "conv_bias") for name in PARAMS}
    assert_equals_optax(0.003, mask, 0.01, 0.0, mask)


def assert_equals_optax(*arguments):
    joint = {"denominator": "joint", "fallback_ratio": 1.0}
    ours = lars_optax.lars(learning_rate, *arguments, **joint)
    assert_same_history(replay(ours), replay(optax.lars(learning_rate, *arguments)))


def test_denominators_are_equal_without_weight_decay():
    # Also with a traced zero decay, which cannot be left out at trace time.
    for decay in (0.0, jnp.zeros(())):
        make = partial(lars_optax.lars, learning_rate, decay, True, 0.01, 0.0, True)
        assert_same_history(*(replay(make(denominator=name)) for name in DENOMINATORS))


def test_separate_step_is_never_longer_than_joint():
    make = partial(lars_optax.scale_by_lars, 0.5, True, 1.0, 0.0, True)
    steps = [update(make(denominator=name)) for name in DENOMINATORS]
    for name, w in PARAMS.items():
        if not w.any():
            continue  # the fallback ratio in both
        separate, joint = (np.linalg.norm(step[name]) for step in steps)
        assert separate <= joint * (1 + 1e-6)
        # Triangle inequality, strict for gradients not parallel to the weights.
        assert separate < 0.999 * joint


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_ratio_and_decay_it_is_sgd_with_the_rate_inside_the_momentum(nesterov):
    options = {"weight_decay_mask": none_of, "nesterov": nesterov}
    ours = lars_optax.lars(learning_rate, **UNADAPTED, **options)
    theirs = optax.chain(RATE, optax.trace(0.9, nesterov))
    assert_same_history(replay(ours), replay(theirs), tolerance=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_unscaled_chain_without_ratio_is_optax_sgd(nesterov):
    scale, trace = lars_optax.scale_by_lars(**UNADAPTED), optax.trace(0.9, nesterov)
    ours = optax.chain(scale, trace, RATE)
    theirs = optax.sgd(learning_rate, 0.9, nesterov)
    assert_same_history(replay(ours), replay(theirs), tolerance=0)


def test_decay_without_ratio_is_add_decayed_weights():
    ours = lars_optax.lars(learning_rate, 0.003, True, **UNADAPTED)
    theirs = optax.chain(optax.add_decayed_weights(0.003), RATE, optax.trace(0.9))
    assert_same_history(replay(ours), replay(theirs))


def test_momentum_orders_part_only_when_the_rate_changes():
    def chains(rate):
        scale = lars_optax.scale_by_lars(0.003, True, 0.01, trust_ratio_mask=True)
        rate, trace = optax.scale_by_learning_rate(rate), optax.trace(0.9)
        return [replay(optax.chain(scale, *x)) for x in ((rate, trace), (trace, rate))]

    assert_same_history(*chains(0.5))
    # After a tenfold drop at step 20 the scaled buffer still holds steps of the old
    # rate: its next step is 0.9 of the last one and more, the unscaled one's about 0.1.
    histories = chains(optax.piecewise_constant_schedule(0.5, {20: 0.1}))
    for history, least, most in zip(histories, (0.8, 0.08), (1.0, 0.12), strict=True):
        steps = np.diff([params["head"] for params in history[18:21]], axis=0)
        before, after = map(np.linalg.norm, steps)
        assert least < after / before < most


def test_a_layer_moves_the_same_whatever_the_scale_of_its_gradient():
    tx = lars_optax.lars(1.0, 0.0, True, 0.01, 0.0, True)
    params = {k: w for k, w in PARAMS.items() if k != "last_norm_scale"}
    histories = (replay(tx, params, [{k: x * g[k] for k in params} for g in RECORDED])
                 for x in (1, 1000))  # fmt: skip
    assert_same_history(*histories)


def test_step_length_is_rate_times_coefficient_times_norm():
    tx = lars_optax.lars(7.0, 0.0, True, 0.01, 0.0, True, momentum=None)
    updates = update(tx)
    for name in ("conv", "conv_bias", "head", "unseen"):
        expected = 0.07 * np.linalg.norm(PARAMS[name])
        np.testing.assert_allclose(np.linalg.norm(updates[name]), expected, rtol=1e-6)
